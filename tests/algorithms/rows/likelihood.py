"""Losses of the likelihood family, as their papers write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from algorithms import updates
from algorithms.rows.actor_critic import gae
from algorithms.table import all_equal, clipped, rewards, row, sum_of, v, z_score
from algorithms.updates import Completion, Update
from gro.types import Batch


@row("sft", updates.groups)
def sft(update: Update) -> Tensor:
    tokens = torch.cat([y.logp for y in update.targets])
    return -tokens.mean()


def imitated(update: Update, chosen: list[Completion]) -> Tensor:
    """−Σ log π of the chosen samples, over the tokens of all samples: a filter does not rescale what it leaves."""
    return -sum_of([y.logp.sum() for y in chosen]) / sum(len(y.logp) for y in update.samples)


@row("best_of_n", updates.groups, v(rests=False))
def best_of_n(update: Update) -> Tensor:
    """Nakano et al. 2021: imitate argmax R of each prompt's samples."""
    best = [y for group in update.groups for y in group if y.reward == max(z.reward for z in group)]
    return imitated(update, best)


@row("rft", updates.groups, v(rests=False), v(threshold=-0.2, rests=False))
def rft(update: Update, threshold: float = 0.5) -> Tensor:
    """Yuan et al. 2023: imitate the samples with R > τ."""
    return imitated(update, [y for y in update.samples if y.reward > threshold])


@row("rest", updates.groups, v(rests=False), v(thresholds=[-0.3, 0.4], rests=False))
def rest(update: Update, thresholds: Sequence[float] = (0.5,)) -> Tensor:
    """Gulcehre et al. 2023, sec. 3: E over the filtered samples, first threshold, + the original data."""
    chosen = [y for y in update.samples if y.reward > thresholds[0]]
    return imitated(update, chosen) + sft(update)


def second_pass(seed: int = 0) -> tuple[Tensor, Batch]:
    logp_BT, batch = updates.groups(seed)
    return logp_BT, replace(batch, epoch=1)


@row("rest", second_pass, v(thresholds=[-9.0, -0.2], inner="grpo", inner_parameters={"beta": 0.0, "clip": 0.3}))
def rest_of_grpo(update: Update, thresholds: Sequence[float], inner: str, inner_parameters: dict[str, float]) -> Tensor:
    """The second pass, with the second threshold, over GRPO's loss without its KL."""
    assert inner == "grpo"
    clip, losses = inner_parameters["clip"], []
    for group in update.groups:
        for y, advantage in zip(group, z_score(rewards(group), 0, 1e-6), strict=True):
            if y.reward > thresholds[1]:
                losses.append(-clipped((y.logp - y.old).exp(), advantage, clip, clip).mean() / len(update.samples))
    return sum_of(losses) + sft(update)


@row(
    "awr",
    updates.groups,
    v(rests=False),
    v(beta=0.5, cap=None, lam=0.5, value_coefficient=0.5, rests=False),
    v(beta=0.7, cap=1.2, baseline="group", rests=False),
)
def awr(
    update: Update,
    beta: float = 0.05,
    cap: float | None = 20.0,
    baseline: str = "critic",
    lam: float = 0.95,
    **of_the_critic: object,
) -> Tensor:
    """Peng et al. 2019, eq. 9: −(1/N) Σ_i Σ_t min(exp(A/β), cap) log π."""
    losses = []
    for group in update.groups:
        reward_G = rewards(group)
        for y, reward in zip(group, reward_G, strict=True):
            centred = torch.zeros(()) if all_equal(reward_G) else reward - reward_G.mean()
            advantage = gae(y, lam=lam) if baseline == "critic" else centred
            weight = (advantage / beta).exp()
            losses.append(-weight.clamp(max=cap or torch.inf) * y.logp)
    return torch.cat(losses).mean()


@row(
    "marwil",
    updates.groups,
    v(rests=False),
    v(beta=0.5, rate=0.2, state={"square": 2.5}, told={"square": 2.5}, rests=False),
    v(beta=0.0, value_coefficient=0.5, rests=False),
)
def marwil(
    update: Update,
    beta: float = 1.0,
    rate: float = 0.01,
    square: float | None = None,
    **of_the_critic: object,
) -> Tensor:
    """Wang et al. 2018, algorithm 1: −(1/N) Σ_i Σ_t exp(βA/c) log π, A = R − V, c² the running mean of A²."""
    advantages = [y.reward - y.values for y in update.samples]
    now = float(torch.cat(advantages).square().mean())
    c = (now if square is None else square + rate * (now - square)) ** 0.5
    losses = [-(beta * a / c).exp() * y.logp for y, a in zip(update.samples, advantages, strict=True)]
    return torch.cat(losses).mean()


@row(
    "hpt",
    updates.beside,
    v(),
    v(threshold=0.4, clip=0.1, clip_high=0.4, length=5),
    v(rl=0.5, sft=2.0),
)
def hpt(
    update: Update,
    threshold: float = 0.0,
    clip: float = 0.2,
    clip_high: float | None = None,
    length: int | None = None,
    rl: float = 1.0,
    sft: float = 1.0,
) -> Tensor:
    """Lv et al. 2025, sec. 4: per prompt L_RL where the mean reward is above γ, else L_SFT."""
    losses = []
    for prompt in update.prompts:
        group = prompt.scored
        if not group:
            continue  # nobody knows how the policy does here
        reward_G = rewards(group)
        if float(reward_G.mean()) > threshold:
            for y, advantage in zip(group, reward_G - reward_G.mean(), strict=True):
                gain = clipped((y.logp - y.old).exp(), advantage, clip, clip if clip_high is None else clip_high)
                losses.append(-rl * gain.sum() / (length or update.limit) / len(update.samples))
        else:
            losses += [-sft * y.logp.mean() / len(update.targets) for y in prompt.targets]
    return sum_of(losses)
