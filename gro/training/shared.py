"""Completions and rewards of a step, each process doing its part of them and all having the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Protocol, TypeVar

from gro.engines.base import Engine, Progress, Sampling
from gro.errors import GroError, Interrupted
from gro.raters.human import Asking
from gro.rewards import Tally, refuse_failures
from gro.training.processes import Processes
from gro.training.rollouts import Scorer
from gro.types import Completion, Group, Prompt

T = TypeVar("T")
Given = list[tuple[float | None, dict[str, float | None]]]
"""Of each completion of a group its reward, and the parts of that."""

_LOOK = 0.5
"""Seconds between two looks whether people have answered."""


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

        def judge() -> list[Given]:
            return _given(self._rewards.score(mine, step=step, tell=told.append)) if mine else []

        everything = _together(self._processes, judge)
        refuse_failures(*self._processes.join(told))
        return [_rewarded(group, given) for group, given in zip(groups, everything, strict=True)]


class FirstScorer:
    """Rewards that ask people: the first process gives them for all.

    The others look every now and then whether it has them.  A collective that waits for people would end at its time
    limit, and nobody could stop it.
    """

    def __init__(self, rewards: Scorer, processes: Processes, people: Asking) -> None:
        self._rewards, self._processes, self._people = rewards, processes, people

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        """See `Scorer.score`; Interrupted in all processes where one was asked to stop meanwhile."""
        first, people = self._processes.first, self._people
        with ThreadPoolExecutor(1) as thread:
            work = thread.submit(self._rewards.score, groups, step=step) if first else None
            try:
                while not self._over(work):
                    pass
            except BaseException:  # another process is gone: the thread need not wait for people either
                people.stop = "nobody waits any more"
                raise
        found = self._processes.join([] if work is None else [_outcome(work)])[0]
        if not isinstance(found, list):
            raise found
        return [_rewarded(group, given) for group, given in zip(groups, found, strict=True)]

    def _over(self, work: Future[list[Group]] | None) -> bool:
        if work is not None:
            wait([work], _LOOK)
        found = self._processes.join([(work is not None and work.done(), self._people.asked())])
        self._people.stop = next((why for _, why in found if why is not None), None)
        return any(done for done, _ in found)


def _outcome(work: Future[list[Group]]) -> list[Given] | GroError | Interrupted:
    """What the rewards have come to, for all."""
    try:
        return _given(work.result())
    except GroError as error:
        return GroError(str(error))
    except Interrupted as error:
        return Interrupted(str(error), together=True)


def shared(rewards: Telling, processes: Processes, people: Asking | None = None) -> Scorer:
    """The rewards as all processes give them together.  people: where they are asked, how."""
    if processes.size == 1:
        return rewards
    return SharedScorer(rewards, processes) if people is None else FirstScorer(rewards, processes, people)


def _given(scored: Sequence[Group]) -> list[Given]:
    return [[(c.reward, dict(c.rewards)) for c in group.completions] for group in scored]


def _rewarded(group: Group, given: Given) -> Group:
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
