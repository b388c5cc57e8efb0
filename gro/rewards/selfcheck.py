"""Does a reward give each completion its own score?  Found out once, at first use, where it is cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gro.errors import GroError
from gro.rewards.batch import Batch
from gro.rewards.functions import TrainerState
from gro.rewards.pool import Pool

CHECKED = 8
"""Completions that are scored again."""
CHEAP = 1.0
"""Seconds.  A reward whose first batch took longer is not called again for this."""


def check_order(
    pool: Pool, name: str, batch: Batch, columns: Mapping[str, Sequence[Any]], state: TrainerState
) -> str | None:
    """Scores a few completions in two orders.

    Raises GroError where the score depends on the place in the list.  Returns a notice where the function gives
    different scores when asked twice, None where all is well or nothing can be said.
    """
    rows = [row for row, score in sorted(batch.scores.items()) if isinstance(score, float)]
    rows = rows[:: max(1, len(rows) // CHECKED)][:CHECKED]
    if len(rows) < 2 or batch.seconds > CHEAP:
        return None
    turned = rows[::-1]
    straight = _scores(pool, columns, rows, state)
    backward = _scores(pool, columns, turned, state)
    if straight is None or backward is None:
        return None  # it failed where it had not failed before; the steps to come will tell
    if _same(straight, backward[::-1]):
        return None
    again = _scores(pool, columns, rows, state)
    if again is None or not _same(straight, again):
        return (
            f"reward {name!r} gives the same completions different scores when asked twice "
            f"({_pair(straight, again or [])}): a run with it cannot be repeated exactly"
        )
    if pool.samplewise:
        return None
    raise GroError(
        f"reward {name!r} mixes up its completions: given the same {len(rows)} in reverse order, it returned scores "
        f"that are not the same in reverse order ({_pair(straight, backward[::-1])}). The i-th value must belong to "
        "the i-th completion"
    )


def _scores(
    pool: Pool, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], state: TrainerState
) -> list[float] | None:
    batch = pool.score({name: [values[row] for row in rows] for name, values in columns.items()}, state)
    scores = [score for _, score in sorted(batch.scores.items()) if isinstance(score, float)]
    return scores if len(scores) == len(rows) else None


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    # A model that scores a batch may differ in the last bits with the order of the batch.
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _pair(a: Sequence[float], b: Sequence[float]) -> str:
    return next((f"{x:g} and {y:g}" for x, y in zip(a, b, strict=False) if not _same([x], [y])), "of different number")
