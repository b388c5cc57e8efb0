"""pass@k: the chance that at least one of k answers is correct."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gro.evaluation.estimates import Estimate, ratio


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the share of all subsets of k of the n samples with a correct one among them.

    Unbiased, unlike 1 − (1 − c/n)^k (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1).
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} samples cannot be correct")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} takes at least {max(k, 1)} samples, found {n}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def estimate(correct: Sequence[Sequence[bool]], k: int) -> Estimate:
    """The mean over prompts, with an interval over prompts.  A prompt with fewer than k samples has no part in it."""
    values = [pass_at_k(len(samples), sum(samples), k) for samples in correct if len(samples) >= k]
    return ratio(values, [1.0] * len(values))
