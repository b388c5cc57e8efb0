"""Losses of REINFORCE and its baselines, as their papers write them."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.table import all_equal, clipped, leave_one_out, rewards, row, sum_of, v
from algorithms.updates import Completion, Update


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
    "ppo_sequence",
    updates.groups,
    v(rests=False),
    v(kl=0.0, clip=0.1, clip_high=0.4),
    v(kl=0.3, clip=0.3, rests=False),
)
def ppo_sequence(update: Update, clip: float = 0.2, clip_high: float | None = None, kl: float = 0.05) -> Tensor:
    """Protocol 4 of the survey, corrected: −(1/B) Σ_i min(δ_i A_i, clip(δ_i) A_i), δ_i = π(y_i)/π_old(y_i)."""
    losses = []
    for group in update.groups:
        for y, advantage in zip(group, leave_one_out(rewards(group, kl)), strict=True):
            ratio = y.logp.sum().exp() / y.old.sum().exp()
            losses.append(-clipped(ratio, advantage, clip, clip if clip_high is None else clip_high))
    return sum_of(losses) / len(update.samples)


def to_go(y: Completion, kl: float) -> list[float]:
    """Reward-to-go of every token, with −β(ℓ_old − ℓ_ref) at each and the reward at the last."""
    return [y.reward - kl * float((y.old[t:] - y.ref[t:]).sum()) for t in range(len(y.logp))]


def token_z_scores(update: Update, to_go_B: list[list[float]]) -> list[Tensor]:
    """Hu et al. 2025: minus the mean, over the standard deviation of all tokens of the batch."""
    tokens = torch.tensor([g for row in to_go_B for g in row], dtype=torch.float64)
    mean, variance = tokens.mean(), ((tokens - tokens.mean()) ** 2).mean()
    scores = (tokens - mean) / max(float(variance), 1e-8) ** 0.5
    return list(scores.split([len(y.logp) for y in update.samples]))


def clipped_tokens(update: Update, advantages: list[Tensor], clip: float, clip_high: float | None) -> Tensor:
    """−(1/N) Σ_i Σ_t min(r A, clip(r) A)."""
    high = clip if clip_high is None else clip_high
    pairs = zip(update.samples, advantages, strict=True)
    gains = torch.cat([clipped((y.logp - y.old).exp(), a, clip, high) for y, a in pairs])
    return -gains.mean()


@row(
    "reinforce_pp", updates.groups, v(rests=False), v(kl=0.2, clip=0.3, rests=False), v(kl=0.0, clip=0.1, clip_high=0.4)
)
def reinforce_pp(update: Update, clip: float = 0.2, clip_high: float | None = None, kl: float = 0.01) -> Tensor:
    """Hu et al. 2025, eq. 4 to 7."""
    advantages = token_z_scores(update, [to_go(y, kl) for y in update.samples])
    return clipped_tokens(update, advantages, clip, clip_high)


@row(
    "reinforce_pp_baseline",
    updates.groups,
    v(),
    v(beta=0.0, clip=0.3),
    v(beta=0.2, clip=0.1, clip_high=0.4),
)
def reinforce_pp_baseline(
    update: Update, clip: float = 0.2, clip_high: float | None = None, beta: float = 0.01
) -> Tensor:
    """The same of R − the group's mean, and + β (1/N) Σ_i Σ_t ½ (log π/π_ref)²."""
    centred = []
    for group in update.groups:
        reward_G = rewards(group)
        mean = reward_G if all_equal(reward_G) else reward_G.mean()
        centred += [[float(r)] * len(y.logp) for y, r in zip(group, reward_G - mean, strict=True)]
    squares = torch.cat([(y.logp - y.ref) ** 2 / 2 for y in update.samples])
    return clipped_tokens(update, token_z_scores(update, centred), clip, clip_high) + beta * squares.mean()


@row("remax", updates.groups, v(rests=False), v(kl=0.3, rests=False), v(kl=0.3, immediate=True, rests=False))
def remax(update: Update, kl: float = 0.0, immediate: bool = False) -> Tensor:
    """Li et al. 2023, eq. 6: −(1/B) Σ_i Σ_t (R_i − R(greedy) − β k1) log π."""
    losses = []
    for y in update.samples:
        for t in range(len(y.logp)):
            k1 = float((y.old[t : t + 1] - y.ref[t : t + 1]).sum() if immediate else (y.old[t:] - y.ref[t:]).sum())
            losses.append(-(y.reward - y.greedy - kl * k1) * y.logp[t])
    return sum_of(losses) / len(update.samples)
