"""An engine and rewards that say what they are told to, and rows for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gro.engines.base import Progress, Sampling
from gro.training.rollouts import Online, Scorer
from gro.types import Completion, Group, Prompt


def rows(n: int, name: str = "") -> list[Group]:
    return [Group(Prompt((1, i), key=i, row={"from": name}), (Completion((2,), role="target"),)) for i in range(n)]


def keys(groups: Sequence[Group]) -> list[int]:
    return [g.prompt.key for g in groups]


class ScriptedEngine:
    """Answers with (sample index, step) as tokens and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, Sampling, int, int]] = []
        self.versions: list[int] = []

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
        self.calls.append(([p.key for p in prompts], n, sampling, seed, step))
        return [tuple(Completion((i, step), finish="stop") for i in range(n)) for _ in prompts]

    def update(self, version: int) -> None:
        self.versions.append(version)

    def close(self) -> None: ...


class Scores:
    """A completion's reward is its first token, a greedy one's 10."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        self.calls += 1
        single = {id(g) for g in groups if len(g.completions) == 1}

        def reward(group: Group, completion: Completion) -> float:
            return 10.0 if id(group) in single else float(completion.ids[0])

        return [replace(g, completions=tuple(replace(c, reward=reward(g, c)) for c in g.completions)) for g in groups]


def online(n: int, engine: ScriptedEngine, scores: Scorer | None = None, **kwargs: Any) -> Online:
    settings: dict[str, Any] = {"prompts_per_step": 2, "group_size": 3, "seed": 5} | kwargs
    return Online(rows(n, "online"), engine, scores or Scores(), Sampling(), **settings)
