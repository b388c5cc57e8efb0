"""The table: one row per registered algorithm, with its loss as the paper writes it.

A row is a plain function of the completions (`Update`) and the algorithm's parameters, with the same defaults, that
returns the paper's loss for autograd to differentiate.  It knows nothing of units, anchors, weights and shares.  To
add an algorithm, add its function under `@row`; every test in `test_algorithms.py` then runs on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.updates import Completion, Update
from gro.types import Batch

Maker = Callable[[int], tuple[Tensor, Batch]]


@dataclass(frozen=True)
class Variant:
    """One setting of an algorithm under test."""

    params: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the credit remembers of earlier steps."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """The same, as the paper's loss is told it."""
    rests: bool = True
    """Whether samples get no gradient at all where all rewards of a prompt are equal."""


@dataclass(frozen=True)
class Row:
    name: str
    loss: Callable[..., Tensor]
    make: Maker
    variants: tuple[Variant, ...]


ROWS: list[Row] = []


def v(*, state: Mapping | None = None, told: Mapping | None = None, rests: bool = True, **params: Any) -> Variant:
    return Variant(params, state or {}, told or {}, rests)


def row(name: str, make: Maker, *variants: Variant) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Adds the decorated loss to the table; a name may have several rows."""

    def add(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        ROWS.append(Row(name, loss, make, variants or (Variant(),)))
        return loss

    return add


# --- what several papers share ---------------------------------------------------------------------------------------


def sum_of(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()


def rewards(group: list[Completion], kl: float = 0.0) -> Tensor:
    return torch.tensor([y.reward - kl * float((y.old - y.ref).sum()) for y in group], dtype=torch.float64)


def all_equal(reward_G: Tensor) -> bool:
    return bool(reward_G.max() - reward_G.min() < 1e-9)


def z_score(reward_G: Tensor, ddof: int, eps: float) -> Tensor:
    if all_equal(reward_G):
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / (reward_G.std(correction=ddof) + eps)


def leave_one_out(reward_G: Tensor) -> Tensor:
    if len(reward_G) == 1:
        return torch.zeros_like(reward_G)
    mean_of_others = [torch.cat([reward_G[:i], reward_G[i + 1 :]]).mean() for i in range(len(reward_G))]
    return reward_G - torch.stack(mean_of_others)


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Schulman et al. 2017, eq. 7."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def log_ratio(y: Completion) -> Tensor:
    return y.logp.sum() - y.ref.sum()


# --- likelihood ------------------------------------------------------------------------------------------------------


@row("sft", updates.groups)
def sft(update: Update) -> Tensor:
    tokens = torch.cat([y.logp for y in update.targets])
    return -tokens.mean()


# --- policy gradients ------------------------------------------------------------------------------------------------


@row(
    "reinforce",
    updates.groups,
    v(rests=False),
    v(kl=0.3, rests=False),
    v(off_policy=True, rests=False),
    v(kl=0.3, off_policy=True, state={"steps": 3, "mean": 0.4}, told={"earlier": 0.4}, rests=False),
)
def reinforce(update: Update, kl: float = 0.0, off_policy: bool = False, earlier: float | None = None) -> Tensor:
    """Williams 1992 with reward-to-go: −(1/B) Σ_i Σ_t (G_it − b) log π, b the mean of earlier steps' mean rewards."""
    reward_B = rewards(update.samples)
    others_B = reward_B - leave_one_out(reward_B)  # the first step leaves the completion itself out
    baselines = others_B.tolist() if earlier is None else [earlier] * len(reward_B)
    losses = []
    for y, baseline in zip(update.samples, baselines, strict=True):
        for t in range(len(y.logp)):
            to_go = y.reward - kl * float((y.old[t:] - y.ref[t:]).sum())
            likelihood = (y.logp[t] - y.old[t]).exp() if off_policy else y.logp[t]
            losses.append(-(to_go - baseline) * likelihood / len(update.samples))
    return sum_of(losses)


@row("rloo", updates.groups, v(rests=False), v(kl=0.0), v(kl=0.0, clip=0.2), v(kl=0.2, clip=0.3, rests=False))
def rloo(update: Update, kl: float = 0.05, clip: float = 0.0) -> Tensor:
    """Ahmadian et al. 2024, eq. 7: −(1/B) Σ_i (R̃_i − mean of the others) log π(y_i), R̃ = R − β log π_old/π_ref."""
    losses = []
    for group in update.groups:
        for y, advantage in zip(group, leave_one_out(rewards(group, kl)), strict=True):
            likelihood = advantage * y.logp.sum()
            if clip:
                likelihood = clipped((y.logp.sum() - y.old.sum()).exp(), advantage, clip, clip)
            losses.append(-likelihood / len(update.samples))
    return sum_of(losses)


@row(
    "grpo",
    updates.groups,
    v(rests=False),
    v(beta=0.0),
    v(beta=0.0, clip=0.1, clip_high=0.28, ddof=1, eps=1e-4),
    v(kl="k2", beta=0.3, rests=False),
    v(kl="rk3", rests=False),
)
def grpo(
    update: Update,
    clip: float = 0.2,
    clip_high: float | None = None,
    beta: float = 0.04,
    kl: str = "k3",
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """Shao et al. 2024, eq. 3 and 4: −(1/B) Σ_i (1/|y_i|) Σ_t [min(r A, clip(r) A) − β KL]."""
    losses = []
    for group in update.groups:
        for y, advantage in zip(group, z_score(rewards(group), ddof, eps), strict=True):
            ratio = (y.logp - y.old).exp()
            k3 = (y.ref - y.logp).exp() - (y.ref - y.logp) - 1
            penalty = {"k3": k3, "k2": (y.logp - y.ref).square() / 2, "rk3": ratio * k3}[kl]
            objective = clipped(ratio, advantage, clip, clip if clip_high is None else clip_high) - beta * penalty
            losses.append(-objective.sum() / len(y.logp) / len(update.samples))
    return sum_of(losses)


# --- preferences -----------------------------------------------------------------------------------------------------


@row("dpo", updates.pairs, v(), v(beta=0.5), v(beta=0.3, label_smoothing=0.1), v(margin=0.7, label_smoothing=0.2))
def dpo(update: Update, beta: float = 0.1, label_smoothing: float = 0.0, margin: float = 0.0) -> Tensor:
    """Rafailov et al. 2023, eq. 7; with label smoothing, Mitchell 2023, eq. 3."""
    losses = []
    for better, worse in update.pairs:
        h = log_ratio(better) - log_ratio(worse)
        losses.append(
            -(1 - label_smoothing) * F.logsigmoid(beta * h - margin) - label_smoothing * F.logsigmoid(margin - beta * h)
        )
    return torch.stack(losses).mean()


# --- GRO -------------------------------------------------------------------------------------------------------------


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
