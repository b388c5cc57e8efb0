"""Best-of-n: what the best of n samples by one reward is worth, by that reward or by another.

A proxy picks, a gold reward judges.  From N samples of a prompt the expectation for every n ≤ N is known without
drawing any more: it is the mean over all subsets of size n, which is unbiased and uses all N samples for each n
(Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I; Gao et al. 2022, https://arxiv.org/abs/2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gro.evaluation.estimates import Estimate, mean

Rewards = Sequence[float | None]
"""Of the samples of one prompt; None: the reward failed, and the sample is left out.  It is never a 0."""


@dataclass(frozen=True, slots=True)
class Point:
    """Best-of-n at one n, averaged over prompts.

    >>> curve([[1.0, 4.0, 2.0, 3.0]])[1]
    Point(n=2, kl=0.193..., reward=Estimate(value=3.333..., low=None, high=None, method=''), prompts=1)
    """

    n: int
    kl: float
    """`kl_bon(n)`, in nats."""
    reward: Estimate
    """Of the sample that the proxy picks, by the gold reward, with an interval over prompts."""
    prompts: int
    """How many had n samples with a reward."""


def kl_bon(n: int) -> float:
    """log n − (n−1)/n: the KL divergence of best-of-n from the policy that was sampled from, in nats.

    Exact where no two samples have the same reward.  Where rewards tie, picking among them is no choice, and it is an
    upper bound (Beirami et al. 2024, https://arxiv.org/abs/2401.01879, theorem 1).
    """
    if n < 1:
        raise ValueError(f"best of n takes n of at least 1, found {n}")
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Rewards, n: int, gold: Rewards | None = None) -> float:
    """Expected gold reward of the sample with the highest proxy among n, over all subsets of n samples.

    Ties are exact: those that share the highest proxy are picked with equal chances.  With a samples below a block of m
    that tie, the pick falls into the block with probability [C(a+m, n) − C(a, n)] / C(N, n).  gold: None is the proxy
    itself.  A sample without one of the two rewards is left out; nan where fewer than n are left.
    """
    if n < 1:
        raise ValueError(f"best of n takes n of at least 1, found {n}")
    pairs = _scored(proxy, proxy if gold is None else gold)
    if len(pairs) < n:
        return math.nan
    below, expected, all_subsets = 0, 0.0, math.comb(len(pairs), n)
    for _, block in groupby(sorted(pairs), key=lambda pair: pair[0]):
        golds = [g for _, g in block]
        upto = below + len(golds)
        # Whole numbers until the division: C(N, n) is far beyond what a float can hold.
        picked = (math.comb(upto, n) - math.comb(below, n)) / all_subsets
        expected += picked * math.fsum(golds) / len(golds)
        below = upto
    return expected


def curve(proxy: Sequence[Rewards], gold: Sequence[Rewards] | None = None) -> list[Point]:
    """Best-of-n for n = 1, 2, 4, … and the most samples that any prompt has, a mean over prompts.

    A prompt with fewer than n samples with rewards has no part in the point at n.
    """
    golds = proxy if gold is None else gold
    sizes = [len(_scored(p, g)) for p, g in zip(proxy, golds, strict=True)]
    points = []
    for n in _sizes(max(sizes, default=0)):
        values = [best_of_n(p, n, g) for p, g, size in zip(proxy, golds, sizes, strict=True) if size >= n]
        points.append(Point(n, kl_bon(n), mean(values), len(values)))
    return points


def best(rewards: Rewards) -> int | None:
    """Which sample has the highest reward, of equals the first; None where none has a reward."""
    scored = [(reward, -i) for i, reward in enumerate(rewards) if reward is not None]
    return -max(scored)[1] if scored else None


def worst(rewards: Rewards) -> int | None:
    """Which sample has the lowest reward, of equals the first; None where none has a reward."""
    return best([None if reward is None else -reward for reward in rewards])


def _scored(proxy: Rewards, gold: Rewards) -> list[tuple[float, float]]:
    pairs = [(p, g) for p, g in zip(proxy, gold, strict=True) if p is not None and g is not None]
    if any(math.isnan(value) for pair in pairs for value in pair):
        raise ValueError("a reward is nan; a reward that failed is None")
    return pairs


def _sizes(most: int) -> list[int]:
    """Powers of two, and the largest."""
    return sorted({*(2**i for i in range(most.bit_length())), most} - {0}) if most else []
