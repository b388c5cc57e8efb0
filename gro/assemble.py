"""From a recipe to the parts of a job: model, data, source, rewards, learner, held-out evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gro.algorithms import build
from gro.config import Config
from gro.data.dataset import Dataset
from gro.data.encode import load_dataset
from gro.data.files import read_rows
from gro.data.spec import DataSpec
from gro.engines.base import Engine, Sampling
from gro.engines.base import Progress as OnProgress
from gro.errors import DataError, GroError, nearest
from gro.objective import Algorithm
from gro.policy.create import configuration, create_model, train_tokenizer
from gro.policy.critic import Critic
from gro.policy.folder import find, inspect
from gro.policy.loading import load_tokenizer
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel
from gro.recipe import CriticSettings
from gro.rewards import Failure, Normalised, Rewards
from gro.rewards.trained import Trained
from gro.runs import files
from gro.runs.store import CHECKPOINTS, DATABASE, Run
from gro.training.critic import CriticLearner
from gro.training.learner import Learner, PolicyLearner
from gro.training.loop import Source, Warmup
from gro.training.processes import ALONE, Processes
from gro.training.replay import Replay
from gro.training.rollouts import Judged, Online
from gro.training.shaping import Shape, Shaped, best_against_worst, with_mismatches
from gro.training.sources import Mixture, Offline, Part
from gro.training.trust_region import TrustRegionLearner

MODEL, START = "model", "start"
"""Folders of a run: the exported model, and the model it started from where the recipe made one."""


@dataclass(frozen=True, slots=True)
class Data:
    """All data of a recipe, tokenised."""

    offline: tuple[tuple[Dataset, float], ...] = ()
    """With their weights."""
    online: Dataset | None = None
    held_out: Dataset | None = None

    @property
    def named(self) -> dict[str, Dataset]:
        """Every data set under its key in the recipe."""
        several = len(self.offline) > 1
        found = {f"offline.{i}" if several else "offline": d for i, (d, _) in enumerate(self.offline)}
        found |= {"online": self.online} if self.online else {}
        return found | ({"eval.data": self.held_out} if self.held_out else {})

    @property
    def ends(self) -> frozenset[int]:
        """Every token that ends a completion in training, so that sampling stops at the same."""
        return frozenset().union(*(dataset.ends for dataset in self.named.values()))


def build_algorithm(config: Config) -> Algorithm:
    """The algorithm that the recipe names, with its parameters."""
    return build(str(config.algorithm["name"]), **config.parameters)


# --- models ----------------------------------------------------------------------------------------------------------


def model_folder(path: str) -> str:
    """A run directory stands for the model exported in it; a GroError where it has none yet."""
    folder = Path(path).expanduser()
    if (folder / MODEL).is_dir():
        return str(folder / MODEL)
    if (folder / DATABASE).is_file():
        saved = sorted((folder / CHECKPOINTS).glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        other = f"; {saved[-1]} is its latest checkpoint" if saved else ""
        raise GroError(f"{path} is a run that has exported no model: it is not finished{other}")
    return path


@dataclass(frozen=True, slots=True)
class Start:
    """The starting model, as far as it can be known without its weights."""

    path: str | None
    """Its folder; None: it would be made from nothing, and was not."""
    tokenizer: PreTrainedTokenizerBase
    architecture: Any
    """The transformers configuration."""
    ends: tuple[int, ...]
    """End tokens of the tokenizer and of the model's generation configuration."""


def start_of(config: Config, run: Path | None = None) -> Start:
    """The recipe's starting model.  run: where a model from nothing is made; None: its weights are not made."""
    create = config.model.create
    if create is None:
        path = config.model.path
        assert path is not None
        try:
            return start_at(model_folder(path), allow_pickle=config.model.allow_pickle)
        except GroError as error:
            missing = "" if Path(path).expanduser().exists() else ". The run of another recipe has to be trained first"
            raise GroError(f"model: {error}{missing}") from error
    if run is not None and (run / START).exists():
        return start_at(str(run / START))
    with _of_create():
        tokenizer = train_tokenizer(_texts(config), create.vocab_size, all_bytes=create.all_bytes)
        if run is None:
            return Start(None, tokenizer, configuration(create, tokenizer), _end_ids(None, tokenizer))
        with files.new_directory(run / START) as folder:
            create_model(create, tokenizer, folder)
    return start_at(str(run / START))


def start_at(path: str, *, allow_pickle: bool = False) -> Start:
    """The model in a folder or on the hub, inspected: its files are complete, and nothing in them is executed."""
    folder = inspect(find(path), allow_pickle=allow_pickle)
    tokenizer = load_tokenizer(folder.path)
    return Start(path, tokenizer, folder.config, _end_ids(folder.path, tokenizer))


def _end_ids(folder: Path | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    found = [tokenizer.eos_token_id]
    if folder is not None and (folder / "generation_config.json").is_file():
        ids = files.read_json(folder / "generation_config.json").get("eos_token_id")
        found += ids if isinstance(ids, list) else [ids]
    return tuple(sorted({i for i in found if isinstance(i, int)}))


@contextmanager
def _of_create() -> Iterator[None]:
    try:
        yield
    except GroError:
        raise
    except ValueError as error:
        raise GroError(f"model.create: {error}") from error


def load_policy(config: Config, path: str) -> Policy:
    """The model at `path` as the recipe wants it."""
    settings = config.model
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise GroError(
            f"model.device: {settings.device}, but torch finds no CUDA device here; auto takes what there is"
        )
    return Policy.load(
        path,
        dtype=settings.dtype,
        device=settings.device,
        activation_checkpointing=settings.activation_checkpointing,
        allow_pickle=settings.allow_pickle,
        autocast=settings.autocast,
    )


@dataclass(frozen=True, slots=True)
class Learning:
    """Who learns in a run."""

    learners: tuple[Learner, ...]
    critic: Critic | None = None
    warmup: Warmup = field(default_factory=Warmup)


def learning_of(config: Config, policy: Policy, algorithm: Algorithm, processes: Processes = ALONE) -> Learning:
    """What improves the policy, and the critic where the algorithm has one."""
    portions, settings = config.training, config.critic or CriticSettings()
    critic = critic_of(config, policy, algorithm)
    warmup_steps = 0 if critic is None else settings.warmup_steps
    updates = (portions.steps - warmup_steps) * portions.updates_per_step
    learner = learner_of(config, policy, algorithm, critic, updates, processes)
    if critic is None or algorithm.critic is None:
        return Learning((learner,))
    only_first = critic.shared or algorithm.critic.frozen
    fitting = CriticLearner(
        critic,
        algorithm,
        settings.optimizer or config.optimizer,
        total_updates=(warmup_steps if only_first else portions.steps) * portions.updates_per_step,
        tokens_per_micro=portions.tokens_per_micro,
        processes=processes,
    )
    learners = (learner,) if only_first else (learner, fitting)
    return Learning(learners, critic, Warmup(warmup_steps, (fitting,)))


def learner_of(
    config: Config, policy: Policy, algorithm: Algorithm, critic: Critic | None, updates: int, processes: Processes
) -> Learner:
    """What improves the policy, over so many updates; and a critic on the same trunk."""
    if algorithm.step is not None:
        tokens = config.training.tokens_per_micro
        return TrustRegionLearner(policy, algorithm, tokens_per_micro=tokens, processes=processes)
    return PolicyLearner(
        policy,
        algorithm,
        config.optimizer,
        total_updates=updates,
        tokens_per_micro=config.training.tokens_per_micro,
        critic=critic if critic is not None and critic.shared else None,
        processes=processes,
    )


def critic_of(config: Config, policy: Policy, algorithm: Algorithm) -> Critic | None:
    """Where the algorithm reads values, what gives them at first."""
    settings = config.critic or CriticSettings()
    if algorithm.critic is None:
        return None
    if settings.kind == "shared":
        return Critic.on(policy)
    if settings.path is None:
        return Critic.beside(policy)
    try:
        return Critic.load(model_folder(settings.path), policy, allow_pickle=config.model.allow_pickle)
    except GroError as error:
        raise GroError(f"critic.path: {error}") from error


def needs_start(config: Config, algorithm: Algorithm, data: Data) -> bool:
    """Whether a frozen copy of the start is kept: the algorithm reads it, or something is measured against it."""
    preferences = "paired" in algorithm.roles or (data.held_out is not None and data.held_out.kind == "preference")
    return "ref" in algorithm.reads or preferences or (config.online is not None and config.training.kl_every > 0)


# --- data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config, start: Start, run: Run | None = None) -> Data:
    """Reads and checks all data; rows that are skipped as asked for are kept in the run."""

    def reject(error: Exception, row: Mapping[str, Any] | None) -> None:
        if run is not None:
            run.reject({"why": str(error), "row": dict(row or {})})

    def load(spec: DataSpec) -> Dataset:
        return load_dataset(spec, start.tokenizer, end_ids=start.ends, reject=reject)

    def load_prompts(spec: DataSpec, algorithm: Algorithm) -> Dataset:
        if not algorithm.beside:
            return load(prompts_of(spec))
        try:
            return load(demonstrated(spec))
        except DataError as error:
            raise GroError(f"online: {algorithm.name} needs a demonstration with every prompt. {error}") from error

    return Data(
        offline=tuple((load(weighted.data), weighted.weight) for weighted in config.offline),
        online=load_prompts(config.online, build_algorithm(config)) if config.online else None,
        held_out=load(config.eval.data) if config.eval else None,
    )


def prompts_of(spec: DataSpec) -> DataSpec:
    """Online only the prompts of a file are used, whatever else is in it."""
    return replace(spec, kind="prompt_only") if spec.kind == "auto" else spec


def demonstrated(spec: DataSpec) -> DataSpec:
    """Unless demonstrations stand beside the samples."""
    return replace(spec, kind="prompt_completion") if spec.kind == "auto" else spec


def longest_offline(data: Data) -> int:
    """Most tokens of a prompt with one of its completions."""
    return max(dataset.report.longest for dataset, _ in data.offline)


def source_of(
    config: Config,
    data: Data,
    engine: Engine,
    rewards: Rewards | None,
    sampling: Sampling,
    algorithm: Algorithm,
    on_progress: OnProgress | None,
) -> Source:
    """Offline rows, rollouts, or both in their shares; in the form that the algorithm learns from."""
    source = _unshaped(config, data, engine, rewards, sampling, algorithm, on_progress)
    logged = any(dataset.kind == "rewarded" for dataset, _ in data.offline)
    shapes: list[Shape] = [best_against_worst] if algorithm.pairs and (data.online is not None or logged) else []
    shapes += [with_mismatches] if algorithm.mismatches else []
    return Shaped(source, shapes) if shapes else source


def _unshaped(
    config: Config,
    data: Data,
    engine: Engine,
    rewards: Rewards | None,
    sampling: Sampling,
    algorithm: Algorithm,
    on_progress: OnProgress | None,
) -> Offline | Online | Replay | Mixture:
    per_step, seed = config.prompts_per_step, config.training.seed
    offline: list[tuple[Part, float]] = []
    for rows, weight in data.offline:
        part = Offline(rows, per_step, seed)
        offline.append((Judged(part, rewards) if rows.pending and rewards is not None else part, weight))
    if data.online is None:
        return Mixture(offline, per_step)
    if rewards is not None:
        check_names(config, rewards)
    scorer = rewards
    if rewards is not None and config.reward_normalise != "none":
        scorer = Normalised(rewards, config.reward_normalise)
    online: Online | Replay = Online(
        data.online,
        engine,
        scorer if algorithm.rewarded else None,
        sampling,
        prompts_per_step=per_step,
        group_size=config.group_size,
        seed=seed,
        greedy="greedy" in algorithm.reads,
        beside=algorithm.beside,
        resample=config.resample,
        on_progress=on_progress,
    )
    if (kept := config.replay) is not None:
        online = Replay(online, capacity=kept.capacity, per_step=kept.per_step, fresh=per_step, seed=seed)
    if config.offline_share is None:
        return online
    parts: list[tuple[Part, float]] = [
        (online, 1 - config.offline_share),
        (Mixture(offline, per_step), config.offline_share),
    ]
    return Mixture([(part, share) for part, share in parts if share > 0], per_step)


def check_names(config: Config, rewards: Rewards) -> None:
    """Raises GroError where the recipe names a reward that it does not have."""
    by = config.resample.by if config.resample is not None else None
    if by is not None and by not in rewards.names:
        names = ", ".join(rewards.names)
        raise GroError(f"resample.by: no reward is called {by!r}{nearest(by, rewards.names)}; there is {names}")


def _texts(config: Config) -> Iterator[str]:
    """Every text of the recipe's training rows, for the tokenizer of a new model."""
    specs = [weighted.data for weighted in config.offline] + ([config.online] if config.online else [])
    for spec in specs:
        for index, row in enumerate(_rows(spec)):
            if spec.stop is not None and index >= spec.stop:
                break
            if row is not None and index >= spec.start:
                yield from _strings(row)


def _rows(spec: DataSpec) -> Iterator[Mapping[str, Any] | None]:
    """The rows of all files; None for one that cannot be read, which loading the data reports."""
    for path in spec.paths:
        unreadable: list[Exception] = []
        for row in read_rows(path, unreadable.append):
            yield from (None for _ in unreadable)
            unreadable.clear()
            yield row.fields
        yield from (None for _ in unreadable)


def _strings(fields: Mapping[str, Any]) -> Iterator[str]:
    stack = list(fields.values())
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, list):
            stack += value


# --- rewards, sampling, evaluation -----------------------------------------------------------------------------------


def rewards_of(
    config: Config, specs: Sequence[Any], tokenizer: PreTrainedTokenizerBase, run: Run | None = None
) -> Rewards:
    """Rewards in their processes; failures go to files of the run, and what is odd about a reward to its events."""

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
        inside={"reward_model": partial(_reward_model, config, tokenizer)},
    )


def _reward_model(config: Config, tokenizer: PreTrainedTokenizerBase, params: Mapping[str, Any]) -> Trained:
    """The reward `reward_model`: a GroError where it does not read the policy's tokens."""
    path = model_folder(str(params["path"]))
    theirs = load_tokenizer(find(path))
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise GroError(
            f"reward_model: {path} has another tokenizer than the policy ({len(theirs)} and {len(tokenizer)} tokens), "
            "and reads the policy's token ids. Served over HTTP it can have its own"
        )
    model = RewardModel.read(path, device=config.model.device, allow_pickle=config.model.allow_pickle)
    return Trained(model, **{key: value for key, value in params.items() if key != "path"})


def evaluation_rewards(config: Config) -> Sequence[Any]:
    """By what held-out answers are judged: the eval section's rewards, or the recipe's."""
    if config.eval is None:
        return ()
    return config.rewards if config.eval.rewards is None else config.eval.rewards


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """Token ids to text, special tokens left out."""
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


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
