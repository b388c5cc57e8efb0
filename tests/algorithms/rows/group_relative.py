"""Losses of the policy gradients with a group's baseline, as their papers and libraries write them."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.table import clipped, rewards, row, sum_of, v, z_score
from algorithms.updates import Completion, Update


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


def scored(update: Update, ddof: int, eps: float) -> list[list[tuple[Completion, Tensor]]]:
    """(completion, z-score) by group."""
    return [list(zip(g, z_score(rewards(g), ddof, eps), strict=True)) for g in update.groups]


def mean_of_tokens(losses: list[list[Tensor]], tokens: str) -> Tensor:
    """Of each group and then of the groups (DAPO, eq. 8), or of all tokens of the batch."""
    if tokens == "batch":
        return torch.cat([loss for group in losses for loss in group]).mean()
    return torch.stack([torch.cat(group).mean() for group in losses]).mean()


@row(
    "dapo",
    updates.groups,
    v(),
    v(tokens="batch", ddof=1, eps=1e-4),
    v(clip=0.1, clip_high=0.4),
)
def dapo(
    update: Update,
    clip: float = 0.2,
    clip_high: float = 0.28,
    tokens: str = "group",
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """Yu et al. 2025, eq. 8."""
    losses = [
        [-clipped((y.logp - y.old).exp(), a, clip, clip_high) for y, a in group] for group in scored(update, ddof, eps)
    ]
    return mean_of_tokens(losses, tokens)


@row("dr_grpo", updates.groups, v(), v(clip=0.1, clip_high=0.4), v(length=5))
def dr_grpo(update: Update, clip: float = 0.2, clip_high: float | None = None, length: int | None = None) -> Tensor:
    """Liu et al. 2025, sec. 3.2: −(1/B) Σ_i (1/L) Σ_t min(r A, clip(r) A), A = R − mean."""
    losses = []
    for group in update.groups:
        reward_G = rewards(group)
        for y, advantage in zip(group, reward_G - reward_G.mean(), strict=True):
            gain = clipped((y.logp - y.old).exp(), advantage, clip, clip if clip_high is None else clip_high)
            losses.append(-gain.sum() / (length or update.limit))
    return sum_of(losses) / len(update.samples)


@row(
    "bnpo",
    updates.groups,
    v(),
    v(beta=0.2),
    v(beta=0.2, kl="k2", clip=0.3, ddof=1, eps=1e-4),
    v(beta=0.2, kl="rk3", clip=0.1, clip_high=0.4),
)
def bnpo(
    update: Update,
    clip: float = 0.2,
    clip_high: float | None = None,
    beta: float = 0.0,
    kl: str = "k3",
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """TRL: the sum of GRPO's token losses over the number of the batch's tokens."""
    losses = []
    for group in scored(update, ddof, eps):
        for y, advantage in group:
            ratio = (y.logp - y.old).exp()
            k3 = (y.ref - y.logp).exp() - (y.ref - y.logp) - 1
            penalty = {"k3": k3, "k2": (y.logp - y.ref).square() / 2, "rk3": ratio * k3}[kl]
            losses.append(beta * penalty - clipped(ratio, advantage, clip, clip if clip_high is None else clip_high))
    return torch.cat(losses).mean()


@row(
    "gspo",
    updates.groups,
    v(),
    v(clip=0.1, clip_high=0.2),
    v(clip=0.3, clip_high=0.4, ddof=1, eps=1e-4),
    v(clip=0.1, clip_high=0.2, per_token=True),
)
def gspo(
    update: Update,
    clip: float = 3e-4,
    clip_high: float = 4e-4,
    per_token: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """Zheng et al. 2025, eq. 5 and 7: −(1/B) Σ_i min(s_i A_i, clip(s_i) A_i), s_i = (π(y_i)/π_old(y_i))^(1/|y_i|).

    Per token (eq. 13) s_i,t = sg[s_i]·π/sg[π]: its gradient is sg[s_i]·∇log π where it is not clipped, written here
    with the value that a loss of a detached ratio has.
    """
    losses = []
    for group in scored(update, ddof, eps):
        for y, advantage in group:
            s = ((y.logp.sum() - y.old.sum()) / len(y.logp)).exp()
            loss = -clipped(s, advantage, clip, clip_high)
            if per_token:
                out = s > 1 + clip_high if advantage > 0 else s < 1 - clip
                loss = 0 * y.logp.sum() if out else -(s.detach() * advantage * y.logp).mean()
            losses.append(loss)
    return sum_of(losses) / len(update.samples)


@row("cispo", updates.groups, v(), v(cap=1.1), v(cap=1.28, tokens="batch", ddof=1, eps=1e-4))
def cispo(update: Update, cap: float = 5.0, tokens: str = "group", ddof: int = 0, eps: float = 1e-6) -> Tensor:
    """MiniMax 2025, eq. 4 and 5: −mean of sg[min(r, cap)] A log π."""
    losses = [
        [-(y.logp - y.old).exp().clamp(max=cap).detach() * a * y.logp for y, a in group]
        for group in scored(update, ddof, eps)
    ]
    return mean_of_tokens(losses, tokens)


@row("sapo", updates.groups, v(), v(positive=3.0), v(negative=2.0, ddof=1, eps=1e-4))
def sapo(update: Update, positive: float = 1.0, negative: float = 1.05, ddof: int = 0, eps: float = 1e-6) -> Tensor:
    """Gao et al. 2025, eq. 5 to 7: −(1/B) Σ_i (1/|y_i|) Σ_t f(r) A, f(r) = σ(τ(r − 1))·4/τ."""
    losses = []
    for group in scored(update, ddof, eps):
        for y, advantage in group:
            tau = positive if advantage > 0 else negative
            gate = (tau * ((y.logp - y.old).exp() - 1)).sigmoid() * 4 / tau
            losses.append(-(gate * advantage).mean())
    return sum_of(losses) / len(update.samples)
