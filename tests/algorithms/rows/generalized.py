"""GRO's loss, written out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.table import all_equal, leave_one_out, rewards, row, sum_of, v, z_score
from algorithms.updates import Completion, Update


def gro_advantages(group: list[Completion], credit: str, beta: float, kl: float) -> list[float]:
    reward_G = rewards(group, kl)
    if all_equal(reward_G):
        return [0.0] * len(group)
    return {
        "softmax": len(group) * (reward_G / beta).softmax(0) - 1,
        "mean": reward_G - reward_G.mean(),
        "zscore": z_score(reward_G, 0, 1e-6),
        "leave_one_out": leave_one_out(reward_G),
    }[credit].tolist()


def gro_measure(y: Completion, measure: str, base: str) -> Tensor:
    ratio = y.logp - {"zero": torch.zeros_like(y.logp), "old": y.old, "ref": y.ref}[base]
    return ratio.mean() if measure == "average" else ratio.sum()


@row(
    "gro",
    updates.groups,
    v(unit="average", share="per_sequence", credit="mean", kappa=5.0),
    v(unit="average", share="sequence_mean", credit="zscore", base="ref", kappa=1.0),
    v(unit="total", measure="total", share="per_sequence", credit="leave_one_out", kappa=0.3, base="ref"),
    v(unit="total", measure="total", share="per_sequence", kappa=0.5, margin=0.4, beta=0.7, kl=0.2, rests=False),
)
def gro_separation_loss(
    update: Update,
    credit: str = "softmax",
    beta: float = 1.0,
    unit: str = "token",
    measure: str = "average",
    base: str = "zero",
    kappa: float = 10.0,
    margin: float = 0.0,
    share: str = "fixed_length",
    kl: float = 0.0,
) -> Tensor:
    """What is measured is also differentiated: −(2/κ) (1/B) Σ_ij (A_i|A_j|/S) log σ(κ(φ_i − φ_j)), A_i > 0 > A_j.

    With a margin m, log σ(κ(φ_i − φ_j − m)) and 1/σ(κm) in the place of 2.
    """
    assert unit == measure
    assert share in ("per_sequence", "sequence_mean")
    losses = []
    for group in update.groups:
        advantages = gro_advantages(group, credit, beta, kl)
        strength = sum(a for a in advantages if a > 0)
        for a, winner in zip(advantages, group, strict=True):
            for b, loser in zip(advantages, group, strict=True):
                if b < 0 < a:
                    gap = gro_measure(winner, measure, base) - gro_measure(loser, measure, base)
                    factor = (1 + math.exp(-kappa * margin)) / kappa  # 1/(κσ(κm))
                    losses.append(-factor * a * -b / strength * F.logsigmoid(kappa * (gap - margin)))
    imitation = [-(y.logp.mean() if unit == "average" else y.logp.sum()) / len(update.targets) for y in update.targets]
    return sum_of(losses) / len(update.samples) + sum_of(imitation)


@row(
    "gro",
    updates.groups,
    v(),
    v(credit="mean", kappa=1.0, target_weight=0.0),
    v(credit="zscore", value="expm1", beta=2.0, measure="total", base="ref", target_weight=0.3),
    v(credit="leave_one_out", value="prospect", shift="opponents", share="token_mean", margin=0.2),
    v(credit="leave_one_out", kl=0.2, rests=False),
    v(credit="zscore", kl=0.2, rests=False),
    v(credit="mean", base="old", share="sequence_mean", kl=0.1, rests=False),
    v(shift="group", share="per_sequence"),
    v(shift="none", base="ref", kappa=3.0),
    v(kappa=0.0, value="exp", credit="zscore", beta=0.5, rests=False),
)
def gro(
    update: Update,
    credit: str = "softmax",
    beta: float = 1.0,
    value: str = "identity",
    measure: str = "average",
    base: str = "zero",
    shift: str = "opponents_soft",
    kappa: float = 10.0,
    margin: float = 0.0,
    share: str = "fixed_length",
    kl: float = 0.0,
    target_weight: float = 1.0,
) -> Tensor:
    """Eq. 37: tokens are differentiated, −Σ_i share_i sg[w_i v(A_i)] Σ_t ℓ_it, whole completions are compared."""

    def shared(y: Completion, rows: list[Completion]) -> float:
        tokens = sum(len(other.logp) for other in rows)
        by = {"fixed_length": update.limit, "sequence_mean": len(y.logp), "per_sequence": 1.0}
        return 1 / tokens if share == "token_mean" else 1 / len(rows) / by[share]

    def valued(a: float) -> float:
        number = torch.tensor(a / beta, dtype=torch.float64)
        prospect = a**0.88 if a >= 0 else -2.25 * (-a) ** 0.88
        return {"identity": a, "exp": float(number.exp()), "expm1": float(number.exp()) - 1, "prospect": prospect}[
            value
        ]

    def pull(x: Tensor) -> Tensor:
        return torch.sigmoid(-kappa * (x - margin)) * (1 + math.exp(-kappa * margin))

    losses = []
    for group in update.groups:
        advantages = gro_advantages(group, credit, beta, kl)
        measures = [gro_measure(y, measure, base).detach() for y in group]
        for a, d, y in zip(advantages, measures, group, strict=True):
            s = (a > 0) - (a < 0)
            rivals = [(abs(valued(b)), e) for b, e in zip(advantages, measures, strict=True) if a * b < 0]
            w = torch.ones(1, dtype=torch.float64)
            if kappa and shift == "opponents_soft" and rivals:
                strength = sum(b for b, _ in rivals)
                w = sum_of([b / strength * pull(s * (d - e)) for b, e in rivals])
            elif kappa and shift == "opponents" and rivals:
                w = pull(s * (d - torch.stack([e for _, e in rivals]).mean()))
            elif kappa and shift == "group":
                w = pull(s * (d - torch.stack(measures).mean()))
            elif kappa and shift == "none":
                w = pull(s * d)
            ratio = (y.logp - y.old).exp().detach() if base == "old" else 1.0
            losses.append(-shared(y, update.samples) * (w * valued(a) * ratio * y.logp).sum())
    imitation = [-target_weight * shared(y, update.targets) * y.logp.sum() for y in update.targets]
    return sum_of(losses) + sum_of(imitation)
