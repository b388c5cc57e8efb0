"""Losses of the policy gradients with a critic, as their papers write them.  `test_critic.py` has the critic's own."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.rows.policy_gradient import clipped_tokens
from algorithms.table import all_equal, rewards, row, sum_of, v
from algorithms.updates import Completion, Update


def gae(y: Completion, gamma: float = 1.0, lam: float = 0.95, kl: float = 0.0) -> Tensor:
    """Schulman et al. 2016, eq. 16, as the double sum: Σ_k (γλ)^k (r_t+k + γV_t+k+1 − V_t+k), V = 0 beyond the end."""
    n, r = len(y.logp), [-kl * float(k1) for k1 in y.old - y.ref]
    r[-1] += y.reward
    value = [*y.values.tolist(), 0.0]
    delta = [r[t] + gamma * value[t + 1] - value[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
    return torch.tensor(advantages, dtype=torch.float64)


@row(
    "ppo",
    updates.groups,
    v(rests=False),
    v(clip=0.1, clip_high=0.4, gamma=0.9, lam=0.5, kl=0.3, rests=False),
    v(kl=0.0, whiten=True, value_coefficient=0.5, value_clip=None, rests=False),
    v(entropy=0.3, max_kl=0.02, rests=False),
    v(entropy=0.3, entropy_estimate="sampled", rests=False),
    v(kl_target=6.0, state={"kl_coefficient": 0.4}, told={"kl_now": 0.4}, rests=False),
    v(kl_target=6.0, kl_horizon=100.0, value_clip=0.5, rests=False),
)
def ppo(
    update: Update,
    clip: float = 0.2,
    clip_high: float | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    kl: float = 0.05,
    entropy: float = 0.0,
    entropy_estimate: str = "exact",
    whiten: bool = False,
    kl_now: float | None = None,
    **of_the_critic_and_the_loop: object,
) -> Tensor:
    """Schulman et al. 2017, eq. 7 and 9: −(1/N) Σ_i Σ_t [min(r A, clip(r) A) + c H], A of r_t = −β log π_old/π_ref + R.

    Of samples, −c H has the gradient of c·r·(log π − 1): that of c·r·log π, of whose own ∇r the mean is 0.
    """
    advantages = [gae(y, gamma, lam, kl if kl_now is None else kl_now) for y in update.samples]
    if whiten:
        tokens = torch.cat(advantages)
        advantages = [(a - tokens.mean()) / (tokens.std(correction=0) + 1e-8) for a in advantages]
    loss = clipped_tokens(update, advantages, clip, clip_high)
    if entropy_estimate == "exact":
        return loss - entropy * torch.cat([y.entropy for y in update.samples]).mean()
    sampled = torch.cat([(y.logp - y.old).exp() * (y.logp - 1) for y in update.samples])
    return loss + entropy * sampled.mean()


@row(
    "ppo_penalty",
    updates.groups,
    v(rests=False),
    v(beta=0.3, target=0.05, gamma=0.9, lam=0.5, rests=False),
    v(adaptive=False, value_coefficient=0.5, value_clip=None, rests=False),
)
def ppo_penalty(
    update: Update, beta: float = 1.0, gamma: float = 1.0, lam: float = 0.95, **of_the_critic_and_the_loop: object
) -> Tensor:
    """Schulman et al. 2017, eq. 8: −(1/N) Σ_i Σ_t [r A − β KL(old‖θ)], the KL estimated by r − 1 − log r."""
    losses = []
    for y in update.samples:
        ratio = (y.logp - y.old).exp()
        losses.append(beta * (ratio - 1 - (y.logp - y.old)) - ratio * gae(y, gamma, lam))
    return torch.cat(losses).mean()


@row("ppo_ptx", updates.groups, v(rests=False), v(ptx=0.5, clip=0.3, kl=0.2, lam=0.5, rests=False))
def ppo_ptx(update: Update, ptx: float = 27.8, clip: float = 0.2, kl: float = 0.02, lam: float = 0.95) -> Tensor:
    """Ouyang et al. 2022, eq. 2: PPO's loss − γ · the demonstrations' mean log-likelihood."""
    advantages = [gae(y, lam=lam, kl=kl) for y in update.samples]
    return clipped_tokens(update, advantages, clip, None) - ptx * torch.cat([y.logp for y in update.targets]).mean()


@row(
    "trpo",
    updates.groups,
    v(rests=False),
    v(gamma=0.9, lam=0.5, value_coefficient=0.5, value_clip=None, rests=False),
    v(baseline="group", delta=0.02, damping=0.2, cg_steps=5, backtrack=0.5, backtracks=3),
)
def trpo(
    update: Update, baseline: str = "critic", gamma: float = 1.0, lam: float = 0.95, **of_the_step: object
) -> Tensor:
    """Schulman et al. 2015, eq. 14: −(1/N) Σ_i Σ_t r A.  `test_trust_region.py` has the step."""
    losses = []
    for group in update.groups:
        reward_G = rewards(group)
        for y, reward in zip(group, reward_G, strict=True):
            centred = 0.0 if all_equal(reward_G) else reward - reward_G.mean()
            advantage = gae(y, gamma, lam) if baseline == "critic" else centred
            losses.append(-(y.logp - y.old).exp() * advantage)
    return torch.cat(losses).mean()


@row(
    "a_lol",
    updates.groups,
    v(rests=False),
    v(clip=0.2, value_coefficient=0.5, rests=False),
    v(variant="token", rests=False),
    v(variant="ref_free", rests=False),
    v(variant="kl", beta=0.3, rests=False),
)
def a_lol(
    update: Update, variant: str = "sequence", clip: float = 0.9, beta: float = 0.1, **of_the_critic: object
) -> Tensor:
    """Baheti et al. 2023, eq. 4 to 6: −(1/B) Σ_i 1[A > 0] A · sg[clamp(π/π_ref)] · log π, A = R − V(x)."""
    losses = []
    for y in update.samples:
        advantage = y.reward - float(y.values[0])
        if advantage <= 0:
            continue
        tokens = (y.logp - y.ref).detach()
        weight: Tensor | float = {
            "sequence": tokens.sum().exp().clamp(1 - clip, 1 + clip),
            "token": tokens.exp().clamp(1 - clip, 1 + clip),
        }.get(variant, 1.0)
        losses.append(-(advantage * weight * y.logp).sum())
        if variant == "kl":
            losses.append(beta * (y.logp - y.ref).sum())
    return sum_of(losses) / len(update.samples)
