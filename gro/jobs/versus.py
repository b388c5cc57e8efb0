"""One model against another on the same prompts: `gro eval --against`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gro.assemble import Start, decoder, load_data, load_policy, model_folder, rewards_of, sampling_of, start_at
from gro.config import Config
from gro.data.dataset import Dataset
from gro.engines.base import Progress, Sampling
from gro.engines.local import LocalEngine
from gro.errors import GroError
from gro.evaluation.estimates import Estimate, mean
from gro.evaluation.heldout import HeldOut, Scorer, answer
from gro.evaluation.win_rate import by_judge, by_reward, summary
from gro.judges.judge import Case
from gro.judges.reward import open_judge
from gro.judges.spec import JudgeSettings
from gro.runs import files
from gro.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class Rival:
    """The other model, and the held-out data as its tokenizer has them."""

    path: str
    start: Start
    data: Dataset


@dataclass(frozen=True, slots=True)
class Versus:
    """What came of a comparison."""

    model: str
    """The other one."""
    judge: str | None
    """Who judged; None: the rewards."""
    metrics: dict[str, Estimate]
    rows: list[tuple[str, str, str, float | None]]
    """Prompt, answer, the other's answer, and the outcome: 1, 0, ½ for a tie, None where it failed."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        names = ("prompt", "answer", "other", "outcome")
        rows = [dict(zip(names, row, strict=True)) for row in self.rows]
        return {"model": self.model, "judge": self.judge, "rows": rows}


def read_judge(path: Path) -> JudgeSettings:
    """The settings of a judge in a YAML file; a run as its model stands for the model exported in it."""
    if not path.is_file():
        raise GroError(f"--judge: {str(path)!r} is not a file; expected one with model: and further settings")
    values = files.read_yaml(path)
    if not isinstance(values, dict):
        raise GroError(f"{path} holds no keys and values; expected model: and further settings of a judge")
    settings = JudgeSettings.parse(values, str(path))
    return settings if settings.base_url else replace(settings, model=model_folder(settings.model))


def check_versus(against: str | None, judge: JudgeSettings | None, rewarded: bool) -> None:
    """Raises GroError where a comparison was asked for that nobody can judge, or a judge with nothing to compare."""
    if judge is not None and against is None:
        raise GroError("--judge compares two models: name the other one with --against")
    if against is not None and judge is None and not rewarded:
        raise GroError("--against: there is neither a reward nor a judge to say who is better; give --judge or rewards")


def held_out_data(config: Config, start: Start) -> Dataset:
    """The recipe's held-out rows, as the tokenizer of this model has them."""
    data = load_data(config.model_copy(update={"offline": (), "online": None}), start).held_out
    assert data is not None
    return data


def rival_of(config: Config, path: str) -> Rival:
    """The model at `path`, without its weights."""
    start = start_at(path, allow_pickle=config.model.allow_pickle)
    return Rival(path, start, held_out_data(config, start))


def compare(
    config: Config,
    held_out: HeldOut,
    rival: Rival,
    rewards: Sequence[Any] | None,
    judge: JudgeSettings | None,
    on_progress: Progress | None,
) -> Versus:
    """Both models answer the same prompts in the same way: greedily, or with `eval.samples` samples each.

    rewards: what says who is better, as a recipe lists them; None: the judge does.
    """
    ours = _answers(held_out)
    by_key = {group.prompt.key: group.prompt for group in rival.data}
    ours = [group for group in ours if group.prompt.key in by_key]
    theirs = _rival_answers(config, held_out, rival, [by_key[g.prompt.key] for g in ours], rewards, on_progress)
    decode, decode_theirs = decoder(held_out.policy.tokenizer), decoder(rival.start.tokenizer)
    cases = [
        [
            Case(one.prompt.row["prompt"], (decode(a.ids), decode_theirs(b.ids)), one.prompt.row)
            for a, b in zip(one.completions, two.completions, strict=True)
        ]
        for one, two in zip(ours, theirs, strict=True)
    ]
    more: dict[str, Estimate] = {"other_mean_length": mean([float(len(c.ids)) for g in theirs for c in g.completions])}
    if judge is not None:
        with open_judge(judge) as asked:
            outcomes, found = by_judge(asked, cases)
        more |= found
    else:
        outcomes = by_reward(ours, theirs)
        more["other_reward"] = mean([c.reward for g in theirs for c in g.completions if c.reward is not None])
    rows = [
        (decode(group.prompt.ids), case.answers[0], case.answers[1], outcome)
        for group, same, values in zip(ours, cases, outcomes, strict=True)
        for case, outcome in zip(same, values, strict=True)
    ]
    return Versus(rival.path, judge and judge.model, summary(outcomes) | more, rows)


def _answers(held_out: HeldOut) -> Sequence[Group]:
    """Those that have been measured; without rewards only samples are, and the greedy ones are drawn now."""
    if held_out.samples is not None:
        return held_out.sampled
    if held_out.answers is None:
        assert held_out.engine is not None
        prompts = [group.prompt for group in held_out.groups]
        held_out.answers = answer(held_out.engine, held_out.rewards, prompts, _drawn(held_out, held_out.sampling))
    return held_out.answers.groups


def _rival_answers(
    config: Config,
    held_out: HeldOut,
    rival: Rival,
    prompts: Sequence[Prompt],
    rewards: Sequence[Any] | None,
    on_progress: Progress | None,
) -> Sequence[Group]:
    policy = load_policy(config, rival.path, trains=False)
    sampling = replace(
        sampling_of(config, rival.start.tokenizer, rival.data.ends), max_new_tokens=held_out.sampling.max_new_tokens
    )
    with ExitStack() as stack:
        scorer: Scorer | None = None
        if rewards is not None:  # with the other tokenizer's texts
            scorer = stack.enter_context(rewards_of(config, rewards, rival.start.tokenizer))
        engine = LocalEngine(policy.model, slots=config.slots)
        n = held_out.samples or 1
        return answer(engine, scorer, prompts, _drawn(held_out, sampling), n=n, on_progress=on_progress).groups


def _drawn(held_out: HeldOut, sampling: Sampling) -> Sampling:
    return replace(sampling, greedy=held_out.samples is None)
