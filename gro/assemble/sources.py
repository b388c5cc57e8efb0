"""Where a step's groups come from."""

from __future__ import annotations

from gro.assemble.data import Data
from gro.config import Config
from gro.engines.base import Engine, Sampling
from gro.engines.base import Progress as OnProgress
from gro.errors import GroError, nearest
from gro.objective import Algorithm
from gro.raters.human import Asking
from gro.raters.spec import asking
from gro.rewards import Normalised, Rewards
from gro.training.loop import Source
from gro.training.processes import ALONE, Processes
from gro.training.replay import Replay
from gro.training.rollouts import Judged, Online, Scorer
from gro.training.shaping import Shape, Shaped, best_against_worst, with_mismatches
from gro.training.shared import shared
from gro.training.sources import Mixture, Offline, Part


def source_of(
    config: Config,
    data: Data,
    engine: Engine,
    rewards: Rewards | None,
    sampling: Sampling,
    algorithm: Algorithm,
    on_progress: OnProgress | None,
    processes: Processes = ALONE,
    people: Asking | None = None,
) -> Source:
    """Offline rows, rollouts, or both in their shares; in the form that the algorithm learns from.

    people: how they are asked, where a reward does.
    """
    if rewards is not None and data.online is not None:
        check_names(config, rewards)
    people = people if asking(config.rewards) else None
    scorer = None if rewards is None else shared(rewards, processes, people)
    normalised = rewards
    if rewards is not None and config.reward_normalise != "none":
        normalised = Normalised(rewards, config.reward_normalise)
    learnt = None if normalised is None else shared(normalised, processes, people)
    source = _unshaped(config, data, engine, scorer, learnt, sampling, algorithm, on_progress)
    logged = any(dataset.kind == "rewarded" for dataset, _ in data.offline)
    shapes: list[Shape] = [best_against_worst] if algorithm.pairs and (data.online is not None or logged) else []
    shapes += [with_mismatches] if algorithm.mismatches else []
    return Shaped(source, shapes) if shapes else source


def _unshaped(
    config: Config,
    data: Data,
    engine: Engine,
    rewards: Scorer | None,
    normalised: Scorer | None,
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
    online: Online | Replay = Online(
        data.online,
        engine,
        normalised if algorithm.rewarded else None,
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
