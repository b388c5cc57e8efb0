"""Completions and rewards of a step, each process doing its part of them and all having the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from gro.engines.base import Engine, Progress, Sampling
from gro.errors import GroError
from gro.rewards import Tally, refuse_failures
from gro.training.processes import Processes
from gro.training.rollouts import Scorer
from gro.types import Completion, Group, Prompt

T = TypeVar("T")


class SharedEngine:
    """An engine in each process: each answers its part of the prompts.

    Sampling is keyed by prompt and sample, so it does not matter which process draws what.
    """

    def __init__(self, engine: Engine, processes: Processes) -> None:
        self._engine, self._processes = engine, processes

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        on_progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        mine = self._processes.share(prompts)

        def answer() -> list[tuple[Completion, ...]]:
            return self._engine.generate(mine, n, sampling, seed=seed, step=step, on_progress=on_progress)

        return _together(self._processes, answer)

    def update(self, version: int) -> None:
        """See `Engine.update`."""
        self._engine.update(version)

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()


class Telling(Protocol):
    """Rewards that can leave it to others to judge how many of them failed."""

    def score(
        self, groups: Sequence[Group], *, step: int = 0, tell: Callable[[Tally], object] = ...
    ) -> list[Group]: ...


class SharedScorer:
    """Rewards in each process: each judges its part of the groups.  Whether too many failed is asked of the whole."""

    def __init__(self, rewards: Telling, processes: Processes) -> None:
        self._rewards, self._processes = rewards, processes

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        """See `Scorer.score`."""
        mine = self._processes.share(groups)
        told: list[Tally] = []

        def judge() -> list[list[tuple[float | None, dict[str, float | None]]]]:
            scored = self._rewards.score(mine, step=step, tell=told.append) if mine else []
            return [[(c.reward, dict(c.rewards)) for c in group.completions] for group in scored]

        everything = _together(self._processes, judge)
        refuse_failures(*self._processes.join(told))
        return [_rewarded(group, given) for group, given in zip(groups, everything, strict=True)]


def shared(rewards: Telling, processes: Processes) -> Scorer:
    """The rewards as all processes give them together."""
    return rewards if processes.size == 1 else SharedScorer(rewards, processes)


def _rewarded(group: Group, given: Sequence[tuple[float | None, dict[str, float | None]]]) -> Group:
    pairs = zip(group.completions, given, strict=True)
    return replace(group, completions=tuple(replace(c, reward=r, rewards=parts) for c, (r, parts) in pairs))


def _together(processes: Processes, work: Callable[[], list[T]]) -> list[T]:
    """Everyone's part of the work, in order; GroError in all where it fails in one."""
    fault, done = None, []
    try:
        done = work()
    except GroError as error:
        fault = str(error)
    processes.raise_together(fault)
    return processes.join(done)
