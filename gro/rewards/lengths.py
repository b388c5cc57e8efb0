"""Rewards for length and against repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gro.rewards.functions import Params, reward
from gro.rewards.rules import text_of

Unit = Literal["tokens", "characters", "words"]
UNITS = ("tokens", "characters", "words")


def measure_of(unit: Unit) -> Callable[[Any, Sequence[int]], int]:
    """(completion, its token ids) → how long it is."""
    measures: dict[str, Callable[[Any, Sequence[int]], int]] = {
        "tokens": lambda completion, ids: len(ids),
        "characters": lambda completion, ids: len(text_of(completion)),
        "words": lambda completion, ids: len(text_of(completion).split()),
    }
    return measures[unit]


def check_numbers(params: Params, *names: str, above: float | None = None) -> None:
    """Raises ValueError where one of these is there and no finite number, or not above the bound."""
    for name in names:
        value = params.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} is a finite number, not {value!r}")
        if above is not None and not value > above:
            raise ValueError(f"{name} must be above {above:g}, not {value!r}")


def check_unit(params: Params) -> None:
    """Raises ValueError where the unit is none."""
    if (unit := params.get("unit", "tokens")) not in UNITS:
        raise ValueError(f"unit is {', '.join(UNITS[:-1])} or {UNITS[-1]}, not {unit!r}")


def _check_length(params: Params) -> None:
    check_unit(params)
    check_numbers(params, "least", above=-1)
    check_numbers(params, "most", "scale", above=0)
    least, most = params.get("least"), params.get("most")
    if least is None and most is None:
        raise ValueError("give least, most or both; equal ones are a target")
    if least is not None and most is not None and least > most:
        raise ValueError(f"least ({least}) is more than most ({most})")


@reward(samplewise=True, time_limit=2.0, options=("least", "most", "scale", "unit"), check=_check_length)
def length(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    least: float | None = None,
    most: float | None = None,
    scale: float | None = None,
    unit: Unit = "tokens",
    **columns: Sequence[Any],
) -> list[float | None]:
    """0 where the length lies between two bounds; outside, minus the distance in units of `scale`, down to −1.

    least, most: the bounds, of which one may be missing; equal ones are a target.  scale: the distance at which the
    penalty is −1; by default the bound itself, so that twice the upper one, and nothing at all, cost 1.  unit: tokens,
    characters or words.

    >>> length(["a b c", "a b c d e f"], [[1], [1]], most=4, unit="words")
    [0.0, -0.5]
    """
    measure = measure_of(unit)
    low, high = 0.0 if least is None else least, math.inf if most is None else most
    scores: list[float | None] = []
    for completion, ids in zip(completions, completion_ids, strict=True):
        size = measure(completion, ids)
        distance, bound = (low - size, low) if size < low else (max(0.0, size - high), high)
        scores.append(-min(1.0, distance / (scale or bound or 1.0)) if distance > 0 else 0.0)
    return scores


def _check_repetition(params: Params) -> None:
    size, penalty = params.get("size", 3), params.get("penalty", -1.0)
    if type(size) is not int or size < 1:
        raise ValueError(f"size is a whole number above 0, not {size!r}")
    check_numbers(params, "penalty")
    if penalty > 0:
        raise ValueError(f"penalty must not be above 0, and is {penalty!r}")
    if (unit := params.get("unit", "tokens")) not in ("tokens", "words"):
        raise ValueError(f"unit is tokens or words, not {unit!r}")


@reward(samplewise=True, time_limit=2.0, options=("size", "penalty", "unit"), check=_check_repetition)
def repetition(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    size: int = 3,
    penalty: float = -1.0,
    unit: Literal["tokens", "words"] = "tokens",
    **columns: Sequence[Any],
) -> list[float | None]:
    """`penalty` times the share of n-grams that stood before: 0 without any repetition.

    Yeo et al. 2025, https://arxiv.org/abs/2502.03373, app. C.2: 1 − different n-grams / all n-grams.  size: n.
    penalty: at most 0, for a text that is one n-gram over and over.  unit: n-grams of tokens, or of words in small
    letters.

    >>> repetition(["", ""], [[1, 2, 3, 4], [5, 5, 5, 5, 5]], size=2)
    [0.0, -0.75]
    """
    scores: list[float | None] = []
    for completion, ids in zip(completions, completion_ids, strict=True):
        items = list(ids) if unit == "tokens" else text_of(completion).lower().split()
        grams = list(zip(*(items[at:] for at in range(size)), strict=False))
        repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
        scores.append(penalty * repeated if repeated else 0.0)
    return scores
