"""People that are made up: answers of any kind, from a true score and noise.

After the ways in which people's ratings differ from a metric in Nguyen, Daumé III and Boyd-Graber 2017
(https://arxiv.org/abs/1707.07402, sec. 4): they are coarse, which the kind of question sees to; they vary; they are
skewed.  With a true score s in [0, 1], rater a sees of completion i of an item

    x_ai = s_i^skew + b_a + e_ai        b_a ~ N(0, bias_spread²), e_ai ~ N(0, spread²)

and gives, of the scores 1 … top, the one nearest to 1 + (top − 1)·x with x cut to [0, 1] (a half goes up); or compares
the x as they are, where b_a makes no difference and equal ones tie.  Of those that are equally the best, one is drawn.
Answers that are given blindly are drawn from all scores, sides, places or orders alike, never a tie.

All noise is a hash of the seed, the item, the rater and the completion's text: an answer is the same whenever and in
whatever order it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from gro.labels.answers import SKIP, Kind
from gro.raters.spec import Simulated


def name(rater: int) -> str:
    """Under which labels of this rater (from 1) are kept."""
    return f"simulated {rater}"


def raters_of(item: str, per_item: int, raters: Simulated, seed: int) -> list[int]:
    """Who answers an item."""
    order = sorted(range(1, raters.raters + 1), key=lambda rater: uniform(seed, "who", item, rater))
    return order[:per_item]


def answer(
    kind: Kind, scores: Sequence[float], texts: Sequence[str], raters: Simulated, *, seed: int, item: str, rater: int
) -> Mapping[str, Any]:
    """What the rater says of these completions.  scores: in [0, 1]; texts: what tells them apart."""
    keys = [(item, rater, text) for text in texts]
    if uniform(seed, "skip", item, rater) < raters.skip:
        return SKIP
    if uniform(seed, "flip", item, rater) < raters.flip:
        return _said(kind, [uniform(seed, "blind", *key) for key in keys], [0.0] * len(keys))
    bias = raters.bias_spread * normal(seed, "bias", rater)
    seen = [
        score**raters.skew + bias + raters.spread * normal(seed, "error", *key)
        for score, key in zip(scores, keys, strict=True)
    ]
    if kind.top:
        return {"scores": [1 + math.floor((kind.top - 1) * min(max(x, 0.0), 1.0) + 0.5) for x in seen]}
    return _said(kind, seen, [uniform(seed, "tie", *key) for key in keys])


def _said(kind: Kind, seen: Sequence[float], among_equals: Sequence[float]) -> Mapping[str, Any]:
    """What compares them, or blind scores of numbers that are uniform in [0, 1)."""
    if kind.top:
        return {"scores": [1 + math.floor(kind.top * x) for x in seen]}
    if kind.name == "ranking":
        return {"ranks": [1 + sum(other > x for other in seen) for x in seen]}
    if kind.name == "pairs" and seen[0] == seen[1]:
        return {"choice": "tie"}
    return {"choice": max(range(len(seen)), key=lambda place: (seen[place], among_equals[place]))}


def uniform(*key: Any) -> float:
    """In [0, 1), by a hash of the key."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def normal(*key: Any) -> float:
    """Of the standard normal distribution, by a hash of the key."""
    return NormalDist().inv_cdf(min(max(uniform(*key), 1e-15), 1 - 1e-15))
