"""Rewards and sampling."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gro.assemble.models import decoder, model_folder
from gro.config import Config
from gro.engines.base import Sampling
from gro.errors import GroError, nearest
from gro.judges.reward import JudgeReward, open_judge
from gro.judges.spec import JudgeSettings
from gro.policy.folder import find
from gro.policy.loading import load_tokenizer
from gro.policy.reward_model import RewardModel
from gro.raters.human import RATINGS, Asking, Human, Inner
from gro.raters.spec import HUMAN, HumanSettings
from gro.recipe import ModelSettings
from gro.rewards import Failure, Rewards
from gro.rewards.ranges import ScoreRange
from gro.rewards.rewards import Inside, scoring_of
from gro.rewards.spec import RewardSpec
from gro.rewards.trained import Trained
from gro.runs.store import Run


def rewards_of(
    config: Config,
    specs: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    run: Run | None = None,
    people: Asking | None = None,
) -> Rewards:
    """Rewards in their processes; failures go to files of the run, and what is odd about a reward to its events.

    people: how they are asked; None: a reward that asks them is refused.
    """

    def keep(failure: Failure) -> None:
        if run is not None:
            text = f"prompt:\n{failure.prompt}\n\ncompletion:\n{failure.completion}\n\n{failure.traceback}"
            run.failure(f"reward {failure.reward}", f"{text}\n{failure.kind}: {failure.message}", failure.step)

    def note(notice: str) -> None:
        if run is not None:
            run.event("warning", notice)

    return Rewards(
        specs,
        decoder(tokenizer),
        time_limit=config.reward_time_limit,
        failure_stop_share=config.reward_failure_stop_share,
        on_failure=keep,
        on_notice=note,
        inside=rewards_inside(config.model, tokenizer, people, config.reward_time_limit),
    )


def rewards_inside(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    people: Asking | None = None,
    time_limit: float | None = None,
) -> dict[str, Inside]:
    """Rewards that are models or people: they run in this process, where these settings have the policy."""
    models: dict[str, Inside] = {
        "judge": partial(_judge, settings),
        "reward_model": partial(_reward_model, settings, tokenizer),
    }
    return models | {HUMAN: partial(_human, models, people, time_limit)}


def asking_in(config: Config, run: Path) -> Asking:
    """How a run asks people, from when it says what it waits for."""
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    return Asking(run / RATINGS, config.group_size, config.training.seed, how=f"gro label {shlex.quote(str(shown))}")


def _human(
    models: Mapping[str, Inside], people: Asking | None, time_limit: float | None, params: Mapping[str, Any]
) -> Human:
    """The reward `human`: a GroError where nobody would be asked."""
    if people is None:
        raise GroError("reward human: people are asked while gro train goes on; here give another reward")
    settings = HumanSettings.parse(params)
    if (raters := settings.raters) is None:
        return Human(settings, people)
    spec = RewardSpec.parse(raters.reward)
    return Human(settings, people, Inner(scoring_of(spec, models, time_limit), spec, raters))


def _judge(settings: ModelSettings, params: Mapping[str, Any]) -> JudgeReward:
    """The reward `judge`: an endpoint, or a model on the policy's device unless its own settings name one."""
    asked = JudgeSettings.parse({"device": settings.device, **params})
    return JudgeReward(open_judge(asked if asked.base_url else replace(asked, model=model_folder(asked.model))))


def _reward_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, params: Mapping[str, Any]) -> Trained:
    """The reward `reward_model`: a GroError where it does not read the policy's tokens."""
    path = model_folder(str(params["path"]))
    theirs = load_tokenizer(find(path))
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise GroError(
            f"reward_model: {path} has another tokenizer than the policy ({len(theirs)} and {len(tokenizer)} tokens), "
            "and reads the policy's token ids. Served over HTTP it can have its own"
        )
    model = RewardModel.read(path, device=settings.device, allow_pickle=settings.allow_pickle)
    own = {key: value for key, value in params.items() if key != "path"}
    return Trained(model, scores=ScoreRange.read(find(path)), **own)


def evaluation_rewards(config: Config) -> Sequence[Any]:
    """By what held-out answers are judged: the eval section's rewards, or the recipe's."""
    if config.eval is None:
        return ()
    return config.rewards if config.eval.rewards is None else config.eval.rewards


def sampling_of(config: Config, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Sampling:
    """The recipe's sampling; `ends`: every token that ends a completion, besides the recipe's own."""
    settings = config.sampling
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in settings.stop if token not in vocabulary]
    if missing:
        near = nearest(missing[0], tokenizer.all_special_tokens)
        raise GroError(f"sampling.stop: {missing[0]!r} is not a token of the model's tokenizer{near}")
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=settings.max_new_tokens,
        stop_ids=tuple(sorted({*ends, *(vocabulary[token] for token in settings.stop)})),
    )
