"""What can be asked of a person, what a good answer is, and what it says about each completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gro.errors import GroError, nearest

SKIP: Mapping[str, Any] = {"skip": True}
"""The answer of who would rather not answer.  It is kept like a label, and counts for nothing."""
MOST_RATIONALE = 20_000
"""Characters."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of asking.

    >>> Kind("score5", fewest=1, most=9, top=5)
    """

    name: str
    fewest: int
    """Completions that are shown together."""
    most: int
    top: int = 0
    """The highest score; 0: no scores are asked for."""


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("pairs", 2, 2),
        Kind("best", 2, 9),
        Kind("ranking", 2, 9),
        Kind("score5", 1, 9, top=5),
        Kind("score10", 1, 9, top=10),
    )
}


def kind_named(name: str) -> Kind:
    """The kind, or a `GroError` with those that there are."""
    if name not in KINDS:
        raise GroError(f"--kind {name!r} is not one of {', '.join(KINDS)}{nearest(name, KINDS)}")
    return KINDS[name]


def is_skip(answer: Mapping[str, Any]) -> bool:
    """Whether nothing was said."""
    return dict(answer) == SKIP


def checked(kind: Kind, answer: Any, shown: int) -> dict[str, Any]:
    """The answer to so many completions, in the order in which they were shown; a `GroError` for any other.

    pairs: {"choice": 0, 1 or "tie"}; best: {"choice": place}; ranking: {"ranks": [1 is best, equals allowed]};
    scores: {"scores": [...]}; all of them: {"skip": true}.
    """
    if not isinstance(answer, dict) or len(answer) != 1:
        raise GroError("an answer has one key")
    if is_skip(answer):
        return dict(answer)
    (key, value), n = next(iter(answer.items())), kind.top or shown
    if kind.name in ("pairs", "best"):
        good = key == "choice" and (_whole(value, 0, shown - 1) or (kind.name == "pairs" and value == "tie"))
    else:
        good = key == ("scores" if kind.top else "ranks") and isinstance(value, list) and len(value) == shown
        good = good and all(_whole(v, 1, n) for v in value)
    if not good:
        raise GroError(f"{str(answer)[:80]} is no answer for {shown} completions in {kind.name}")
    if kind.name == "ranking" and any(r != 1 + sum(other < r for other in value) for r in value):
        raise GroError(f"the ranks {value} are none: each is one more than the number of better ones")
    return dict(answer)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def worths(kind: Kind, answer: Mapping[str, Any], shown: int) -> list[float]:
    """What each completion is worth by this answer, in the order shown: only the order and, for scores, the size.

    >>> worths(KINDS["pairs"], {"choice": "tie"}, 2)
    [0.5, 0.5]
    >>> worths(KINDS["ranking"], {"ranks": [2, 1, 2]}, 3)
    [1.0, 2.0, 1.0]
    """
    assert not is_skip(answer)
    if kind.top:
        return [float(score) for score in answer["scores"]]
    if kind.name == "ranking":
        return [float(shown - rank) for rank in answer["ranks"]]
    if answer["choice"] == "tie":
        return [0.5] * shown
    return [float(place == answer["choice"]) for place in range(shown)]


def rewards(kind: Kind, worth: Sequence[float]) -> list[float]:
    """The same from 0 to 1, to learn from: scores from the lowest to the highest; pairs and best as they are; of a
    ranking the share of the others that each is above, ties counting one half.

    >>> rewards(KINDS["score5"], [1.0, 4.0])
    [0.0, 0.75]
    >>> rewards(KINDS["ranking"], worths(KINDS["ranking"], {"ranks": [2, 1, 2]}, 3))
    [0.25, 1.0, 0.25]
    """
    if kind.top:
        return [(value - 1) / (kind.top - 1) for value in worth]
    if kind.name != "ranking":
        return list(worth)
    equal = [sum(other == value for other in worth) - 1 for value in worth]
    below = [sum(other < value for other in worth) for value in worth]
    return [(b + e / 2) / (len(worth) - 1) for b, e in zip(below, equal, strict=True)]


def categories(kind: Kind, worth: Sequence[float]) -> dict[tuple[int, ...], float]:
    """What people can agree on: the score of each completion, or of each two which is better (1, 0, −1).

    `worth` is in an order that does not depend on the person.  Of best-of-k the choice is one category.
    """
    if kind.top:
        return {(i,): value for i, value in enumerate(worth)}
    if kind.name == "best":
        return {(): float(max(range(len(worth)), key=worth.__getitem__))}
    n = range(len(worth))
    return {(i, j): float((worth[i] > worth[j]) - (worth[i] < worth[j])) for i in n for j in n if i < j}
