"""The soft punishment of overlong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gro.rewards.functions import Params, reward
from gro.rewards.lengths import check_numbers


def _check(params: Params) -> None:
    check_numbers(params, "limit", "cache", above=0)
    limit, cache = params.get("limit"), params.get("cache")
    if limit is None or cache is None:
        raise ValueError("give limit and cache, in tokens; limit is usually sampling.max_new_tokens")
    if cache > limit:
        raise ValueError(f"cache ({cache}) is more than limit ({limit})")


@reward(samplewise=True, time_limit=2.0, options=("limit", "cache"), check=_check)
def overlong(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    limit: int,
    cache: int,
    **columns: Sequence[Any],
) -> list[float]:
    """0 up to limit − cache tokens; over the last `cache` tokens it falls to −1, where it stays.

    DAPO's soft overlong punishment (Yu et al. 2025, eq. 13), to be added to a reward for the right answer.  limit: most
    tokens that an answer may have, usually sampling.max_new_tokens.  cache: the tokens before it that are punished.

    >>> overlong(["", ""], [[0] * 18, [0] * 21], limit=20, cache=4)
    [-0.5, -1.0]
    """
    return [min(0.0, max(-1.0, (limit - cache - len(ids)) / cache)) for ids in completion_ids]
