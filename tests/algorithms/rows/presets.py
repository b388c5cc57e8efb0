"""GRPO's losses as the libraries' code writes them."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.table import rewards, row, sum_of, v, z_score
from algorithms.updates import Update


@row(
    "grpo_trl",
    updates.groups,
    v(),
    v(beta=0.3),
    v(beta=0.3, bias_correction=False, delta=1.5),
    v(loss_type="grpo", epsilon=0.1, epsilon_high=0.4, scale_rewards="none"),
    v(loss_type="grpo", epsilon=0.1, sequence_level=True),
    v(loss_type="dr_grpo", beta=0.2),
    v(loss_type="cispo", epsilon_high=1.28),
    v(loss_type="sapo"),
)
def grpo_trl(
    update: Update,
    loss_type: str = "dapo",
    beta: float = 0.0,
    bias_correction: bool = True,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sequence_level: bool = False,
    scale_rewards: str = "group",
) -> Tensor:
    """`test_trl.py` compares with TRL's own trainer."""
    high = epsilon if epsilon_high is None else epsilon_high
    B, N = len(update.samples), sum(len(y.logp) for y in update.samples)
    losses = []
    for group in update.groups:
        reward_G = rewards(group)
        plain = reward_G - reward_G.mean()
        advantages = z_score(reward_G, 1, 1e-4) if scale_rewards == "group" else plain
        for y, a in zip(group, advantages, strict=True):
            ratio = (y.logp - y.old).exp()
            if sequence_level:
                ratio = ((y.logp - y.old).sum() / len(y.logp)).exp().expand(len(y.logp))
            if loss_type == "cispo":
                token = -ratio.clamp(max=high).detach() * a * y.logp
            elif loss_type == "sapo":
                tau = 1.0 if a > 0 else 1.05
                token = -(tau * (ratio - 1)).sigmoid() * 4 / tau * a
            else:
                limited = ratio.clamp(max=delta) if delta is not None else ratio
                token = -torch.minimum(limited * a, ratio.clamp(1 - epsilon, 1 + high) * a)
            k3 = (y.ref - y.logp).exp() - (y.ref - y.logp) - 1
            token = token + beta * (ratio * k3 if bias_correction else k3)
            share = {"grpo": B * len(y.logp), "sapo": B * len(y.logp), "dr_grpo": B * update.limit}.get(loss_type, N)
            losses.append(token.sum() / share)
    return sum_of(losses)


@row("grpo_verl", updates.groups, v(), v(clip=0.1, clip_high=0.3, dual=1.5, kl=0.2))
def grpo_verl(update: Update, clip: float = 0.2, clip_high: float = 0.2, dual: float = 3.0, kl: float = 0.0) -> Tensor:
    losses = []
    for group in update.groups:
        for y, a in zip(group, z_score(rewards(group), 1, 1e-6), strict=True):
            ratio = (y.logp - y.old).exp()
            token = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip_high))
            if a < 0:
                token = torch.minimum(token, -a * dual)
            k3 = (y.ref - y.logp).exp() - (y.ref - y.logp) - 1
            losses.append(token + kl * k3.clamp(-10, 10))
    return torch.cat(losses).mean()


@row("grpo_openrlhf", updates.groups, v(rests=False), v(clip=0.1, kl=0.3, rests=False), v(kl=0.0))
def grpo_openrlhf(update: Update, clip: float = 0.2, kl: float = 0.01) -> Tensor:
    losses = []
    for group in update.groups:
        for y, z in zip(group, z_score(rewards(group), 1, 1e-9), strict=True):
            k1 = (y.old - y.ref).clamp(-10, 10)
            a = torch.stack([z - kl * k1[t:].sum() for t in range(len(k1))])
            ratio = (y.logp - y.old).exp()
            losses.append(-torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a))
    return torch.cat(losses).mean()


@row(
    "grpo_open_instruct",
    updates.groups,
    v(),
    v(normalization="standard", clip=0.1, clip_high=0.4, beta=0.3),
    v(beta=0.0),
)
def grpo_open_instruct(
    update: Update,
    clip: float = 0.2,
    clip_high: float = 0.272,
    beta: float = 0.05,
    normalization: str = "centered",
) -> Tensor:
    losses = []
    for group in update.groups:
        reward_G = rewards(group)
        advantages = z_score(reward_G, 0, 1e-8) if normalization == "standard" else reward_G - reward_G.mean()
        for y, a in zip(group, advantages, strict=True):
            ratio, away = (y.logp - y.old).exp(), y.logp - y.ref
            policy = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip_high))
            losses.append(policy + beta * (torch.expm1(-away) + away))
    return torch.cat(losses).mean()


@row("grpo_nemo_rl", updates.groups, v(), v(clip=0.1, clip_high=0.4, kl=0.3), v(kl=0.0))
def grpo_nemo_rl(update: Update, clip: float = 0.2, clip_high: float = 0.2, kl: float = 0.01) -> Tensor:
    """The KL with the gradient of exp(log π − sg[log π])·k3, which is log π/π_ref, and k2's value."""
    losses = []
    for group in update.groups:
        for i, y in enumerate(group):
            others = torch.tensor([z.reward for j, z in enumerate(group) if j != i], dtype=torch.float64)
            if len(group) == 1:
                continue
            deviation = float(others.std(correction=1)) if len(others) > 1 else 0.0
            a = (y.reward - others.mean()) / (deviation + 1e-6 if deviation > 1e-9 else 1.0)
            ratio = (y.logp - y.old).exp()
            losses.append(-torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip_high) * a))
    penalty = sum_of([(y.logp - y.ref).square().sum() / 2 for y in update.samples])
    return (sum_of([loss.sum() for loss in losses]) + kl * penalty) / sum(len(y.logp) for y in update.samples)
