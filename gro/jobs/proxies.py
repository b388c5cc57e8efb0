"""Proxies of a gold reward: pairs that it labels, reward models trained on them, and their scores in one unit."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gro.algorithms import build
from gro.assemble import MODEL, START, Start, load_policy
from gro.config import Config
from gro.evaluation.overopt_settings import OveroptSettings, ProxySize
from gro.jobs.fitting import as_read
from gro.policy.create import create_model
from gro.policy.reward_model import RewardModel
from gro.policy.spec import ARCHITECTURES, CreateSpec
from gro.rewards.batch import Batch
from gro.rewards.functions import TrainerState
from gro.rewards.trained import Trained
from gro.runs import files
from gro.runs.progress import progress
from gro.runs.store import Run
from gro.training.learner import PolicyLearner
from gro.training.loop import train
from gro.training.recording import Recorder
from gro.training.settings import Portions
from gro.training.shaping import Shaped
from gro.training.sources import Offline
from gro.types import Group


@dataclass(frozen=True, slots=True)
class Unit:
    """A reward's zero and unit: its mean and standard deviation over samples of the start."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Unit:
        """Of these scores; the unit is 1 where they never vary."""
        return cls(fmean(values), (stdev(values) if len(values) > 1 else 0.0) or 1.0)

    def __call__(self, value: float) -> float:
        return (value - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Proxy:
    """Reward models of one size on one number of pairs."""

    size: ProxySize
    pairs: int
    parameters: int
    members: tuple[RewardModel, ...]

    @property
    def name(self) -> str:
        return f"{self.size}-{self.pairs}".replace("×", "x")


def labelled(groups: Sequence[Group], unit: Unit, temperature: float, seed: int) -> list[Group]:
    """Pairs with the rewards ±1 as a noisy judge sees them, who knows the gold reward (Bradley and Terry 1952).

    The noise of a label is keyed by (seed, its number).  Pairs of which one has no gold reward are left out.
    """
    pairs = []
    for number, group in enumerate(groups):
        first, second = group.completions
        if first.reward is None or second.reward is None:
            continue
        probability = first_wins((first.reward - second.reward) / unit.std, temperature)
        sign = 1.0 if random.Random(f"label/{seed}/{number}").random() < probability else -1.0
        both = (replace(first, reward=sign), replace(second, reward=-sign))
        pairs.append(replace(group, completions=both))
    return pairs


def first_wins(gap: float, temperature: float) -> float:
    """σ(gap / temperature); at temperature 0 the better one always wins, and of equals either."""
    if temperature == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 1 / (1 + math.exp(-max(min(gap / temperature, 700.0), -700.0)))


def fit_proxy(
    config: Config, settings: OveroptSettings, start: Start, size: ProxySize, pairs: Sequence[Group], folder: Path
) -> Proxy:
    """Trains the members on these pairs, each in a run directory of its own under `folder`."""
    members = []
    for member in range(settings.members):
        path = folder / str(member)
        with Run.open(path, config.resolved()) as run:
            model = _untrained(config, start, size, member, path)
            _fit(config, settings, model, pairs, member, run)
            with files.new_directory(path / MODEL) as target:
                model.save(target)
            run.finish(algorithm="bradley_terry")
        members.append(model)
    parameters = sum(p.numel() for p in members[0].model.parameters())
    return Proxy(size, len(pairs), parameters, tuple(members))


def _untrained(config: Config, start: Start, size: ProxySize, member: int, path: Path) -> RewardModel:
    """The policy with a score head, or a model from nothing with the policy's tokenizer."""
    assert start.path is not None
    if size.hidden_size is None:
        return RewardModel.beside(load_policy(config, start.path))
    theirs = start.architecture.get_text_config()
    spec = CreateSpec(
        architecture=theirs.model_type if theirs.model_type in ARCHITECTURES else CreateSpec.architecture,
        hidden_size=size.hidden_size,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.kv_heads,
        vocab_size=theirs.vocab_size,
        max_positions=theirs.max_position_embeddings,
        seed=config.training.seed + member,
    )
    with files.new_directory(path / START) as folder:
        create_model(spec, start.tokenizer, folder)
    return RewardModel.beside(load_policy(config, str(path / START), trains=False))


def _fit(
    config: Config, settings: OveroptSettings, model: RewardModel, pairs: Sequence[Group], member: int, run: Run
) -> None:
    algorithm, seed = build("bradley_terry"), config.training.seed + member
    per_step = min(settings.pairs_per_step, len(pairs))
    tokens = config.training.micro_tokens
    steps = settings.epochs * math.ceil(len(pairs) / per_step)
    portions = Portions(steps, tokens_per_micro=tokens, seed=seed, record_groups=0, kl_every=0)
    learner = PolicyLearner(
        model, algorithm, settings.optimizer, total_updates=steps, tokens_per_micro=tokens, entropy=False
    )
    with progress(steps, stream=io.StringIO()) as unseen:
        recorder = Recorder(run, unseen, model, algorithm, portions)
        train(model, Shaped(Offline(pairs, per_step, seed), [as_read]), algorithm, [learner], portions, recorder)


class Standardised:
    """A proxy as the reward of a run: its score in its own unit at the start."""

    name = "proxy"

    def __init__(self, model: RewardModel, unit: Unit, tokens_per_micro: int) -> None:
        self._inner, self._unit = Trained(model, tokens_per_micro), unit

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Batch:
        """See `Trained.score`."""
        batch = self._inner.score(columns, state)
        scores = {row: self._unit(s) if isinstance(s, float) else s for row, s in batch.scores.items()}
        return replace(batch, scores=scores)

    def close(self) -> None:
        """Nothing to end."""
