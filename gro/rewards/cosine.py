"""A reward for right answers that are short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gro.rewards.functions import Params, reward
from gro.rewards.lengths import Unit, check_numbers, check_unit, measure_of
from gro.rewards.maths import maths, warm_up

_COSINE = {
    "shortest_correct": 1.0,
    "longest_correct": 0.5,
    "shortest_wrong": -1.0,
    "longest_wrong": -0.5,
}


def _check_cosine(params: Params) -> None:
    check_unit(params)
    if params.get("longest") is None:
        raise ValueError("give longest, the length at which the last value is reached")
    check_numbers(params, "longest", above=0)
    check_numbers(params, *_COSINE)


@reward(
    samplewise=True,
    time_limit=5.0,
    options=("longest", "column", "last_number", "unit", *_COSINE),
    check=_check_cosine,
    warm_up=warm_up,
)
def cosine_length(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    longest: float,
    shortest_correct: float = 1.0,
    longest_correct: float = 0.5,
    shortest_wrong: float = -1.0,
    longest_wrong: float = -0.5,
    column: str | None = None,
    last_number: bool = True,
    unit: Unit = "tokens",
    **columns: Sequence[Any],
) -> list[float | None]:
    """As `maths`, but right answers are worth more the shorter they are, and wrong ones cost more.

    Yeo et al. 2025, https://arxiv.org/abs/2502.03373, sec. 4.1: from the shortest to the longest along half a cosine.
    longest: the length at which the last value is reached, and kept beyond.  shortest_correct, longest_correct,
    shortest_wrong, longest_wrong: the values at the ends.  column, last_number: as in `maths`.  unit: tokens,
    characters or words.

    >>> cosine_length(["#### 4", "#### 4", "#### 5"], [[1], [1] * 10, [1] * 5], longest=10, answer=["4"] * 3)
    [0.9877641290737884, 0.5, -0.75]
    """
    right = maths(completions, column=column, last_number=last_number, **columns)
    measure = measure_of(unit)
    scores: list[float | None] = []
    for completion, ids, correct in zip(completions, completion_ids, right, strict=True):
        if correct is None:
            scores.append(None)
            continue
        first, last = (shortest_correct, longest_correct) if correct else (shortest_wrong, longest_wrong)
        way = min(1.0, measure(completion, ids) / longest)
        scores.append(last + 0.5 * (first - last) * (1 + math.cos(math.pi * way)))
    return scores
