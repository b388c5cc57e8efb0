"""How good a reward model is, from the scores that it gives to preference pairs.

But for `judge`, which makes them, everything here is arithmetic on scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gro.evaluation.estimates import Estimate, mean, proportion
from gro.policy.reward_model import RewardModel
from gro.types import Group


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A preference pair with a reward model's scores.

    >>> JudgedPair(chosen=1.3, rejected=-0.2, chosen_length=40, rejected_length=55, slice="harmless")
    """

    chosen: float
    rejected: float
    chosen_length: int
    """Tokens of the completion."""
    rejected_length: int
    slice: str = ""
    """To which part of the data it belongs; '' where the data say nothing."""

    @property
    def gap(self) -> float:
        """By how much the chosen one's score is higher."""
        return self.chosen - self.rejected


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs about which the model is about equally sure."""

    low: float
    high: float
    predicted: float
    """Mean probability that the completion with the higher score is the chosen one."""
    observed: Estimate
    """How often it is."""
    pairs: int


def judge(
    model: RewardModel, groups: Sequence[Group], tokens_per_micro: int, slice: str | None = None
) -> list[JudgedPair]:
    """Scores every completion; a pair for any two of a prompt of which the data say which is better.

    slice: the column of the data by which pairs are told apart.
    """
    scores = iter(model.scores(groups, tokens_per_micro).tolist())
    pairs = []
    for group in groups:
        judged = [(next(scores), c) for c in group.completions]
        part = "" if slice is None else str(group.prompt.row.get(slice, ""))
        for good, chosen in judged:
            for bad, rejected in judged:
                if chosen.reward is not None and rejected.reward is not None and chosen.reward > rejected.reward:
                    pairs.append(JudgedPair(good, bad, len(chosen.ids), len(rejected.ids), part))
    return pairs


def measure(pairs: Sequence[JudgedPair]) -> dict[str, Estimate]:
    """accuracy with its interval (ties count one half), log loss, calibration error, scores and length's part in them.

    length_correlation is Spearman's, between score and length within pairs (of the differences), so that prompts that
    ask for long answers do not count.  accuracy_longer is that of preferring the longer completion: what length alone
    explains.  accuracy/chosen_longer and …_shorter are the model's on the two parts.
    """
    if not pairs:
        return {}
    gaps = [p.gap for p in pairs]
    lengths = [float(p.chosen_length - p.rejected_length) for p in pairs]
    scores = [s for p in pairs for s in (p.chosen, p.rejected)]
    found = {
        "accuracy": wins(gaps),
        "loss": mean([math.log1p(math.exp(-abs(g))) + max(-g, 0.0) for g in gaps]),
        "calibration_error": Estimate(calibration_error(calibration(pairs))),
        "margin": mean(gaps),
        "score_mean": mean(scores),
        "score_std": Estimate(float(np.std(scores))),
        "length_correlation": Estimate(spearman(gaps, lengths)),
        "accuracy_longer": wins(lengths),
    }
    parts: dict[str, Callable[[JudgedPair], bool]] = {
        "accuracy/chosen_longer": lambda p: p.chosen_length > p.rejected_length,
        "accuracy/chosen_shorter": lambda p: p.chosen_length < p.rejected_length,
    }
    for name in sorted({p.slice for p in pairs} - {""}):
        parts[f"accuracy/{name}"] = lambda p, name=name: p.slice == name
    for name, belongs in parts.items():
        if chosen := [p.gap for p in pairs if belongs(p)]:
            found[name] = wins(chosen)
    return found


def wins(gaps: Sequence[float]) -> Estimate:
    """The share of positive gaps; ties count one half."""
    return proportion(sum(1.0 if g > 0 else 0.5 if g == 0 else 0.0 for g in gaps), len(gaps))


def calibration(pairs: Sequence[JudgedPair], bins: int = 10) -> list[Bin]:
    """Pairs by how sure the model is, σ|gap| from ½ to 1, in bins of equal width; empty bins are left out."""
    sure = [1 / (1 + math.exp(-min(abs(p.gap), 700.0))) for p in pairs]
    right = [1.0 if p.gap > 0 else 0.5 if p.gap == 0 else 0.0 for p in pairs]
    found = []
    for k in range(bins):
        low, high = 0.5 + 0.5 * k / bins, 0.5 + 0.5 * (k + 1) / bins
        members = [i for i, s in enumerate(sure) if low <= s < high or (k == bins - 1 and s >= high)]
        if members:
            predicted = float(np.mean([sure[i] for i in members]))
            observed = proportion(sum(right[i] for i in members), len(members))
            found.append(Bin(low, high, predicted, observed, len(members)))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |predicted − observed| over the pairs (Guo et al. 2017, eq. 3)."""
    total = sum(b.pairs for b in bins)
    return sum(b.pairs * abs(b.predicted - b.observed.value) for b in bins) / total if total else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one of them does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale else math.nan


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
