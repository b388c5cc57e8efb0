"""Losses of the policy gradients, as their papers write them."""

from __future__ import annotations

from torch import Tensor

from algorithms import updates
from algorithms.table import clipped, leave_one_out, rewards, row, sum_of, v, z_score
from algorithms.updates import Update


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
