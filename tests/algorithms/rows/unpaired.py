"""Losses of completions that are judged one by one, as their papers write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.rows.preference import over_pairs
from algorithms.table import all_equal, log_ratio, rewards, row, sum_of, v
from algorithms.updates import Prompt, Update


def labels(prompt: Prompt) -> list[int]:
    """Of the completions that have a reward: its sign where there is one completion, else that of R − mean."""
    if not prompt.scored:
        return []
    reward_G = rewards(prompt.scored)
    if len(prompt.samples) == 1:
        return [int(reward_G.sign())]
    return [0] * len(reward_G) if all_equal(reward_G) else [int(r) for r in (reward_G - reward_G.mean()).sign()]


def labelled(update: Update) -> list[tuple[Tensor, int]]:
    """(log-ratio, label) of every completion that has a reward."""
    found = [zip(map(log_ratio, p.scored), labels(p), strict=True) for p in update.prompts]
    return [pair for prompt in found for pair in prompt]


@row("kto", updates.mismatched, v(rests=False), v(beta=0.7, desirable=1.3, undesirable=0.4, rests=False))
def kto(update: Update, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """Ethayarajh et al. 2024, eq. 8: E[λ_y − v], v = λ_D σ(β(r − z0)) of what is desirable, else λ_U σ(β(z0 − r))."""
    z0 = torch.stack([log_ratio(y) for y in update.mismatches]).mean().clamp(min=0).detach()
    losses = []
    for r, label in labelled(update):
        if label > 0:
            losses.append(desirable - desirable * torch.sigmoid(beta * (r - z0)))
        if label < 0:
            losses.append(undesirable - undesirable * torch.sigmoid(beta * (z0 - r)))
    return sum_of(losses) / len(update.samples)


@row("bco", updates.mismatched, v(rests=False), v(beta=0.6, rests=False))
def bco(update: Update, beta: float = 0.1) -> Tensor:
    """Jung et al. 2024: −log σ(βr − δ) of the good, −log σ(−(βr − δ)) of the bad, δ half-way between their means."""
    rows = [(beta * r, label) for r, label in labelled(update)]
    sides = [torch.stack([r for r, label in rows if label == side]).mean() for side in (1, -1)]
    delta = (torch.stack(sides).sum() / 2).detach()
    return sum_of([-F.logsigmoid(label * (r - delta)) for r, label in rows if label]) / len(rows)


@row("apo_zero", updates.pairs, v(), v(beta=0.5))
def apo_zero(update: Update, beta: float = 0.1) -> Tensor:
    """D'Oosterlinck et al. 2024: 1 − σ(βr₊) + σ(βr₋)."""
    return over_pairs(update, lambda y, z: 1 - torch.sigmoid(beta * log_ratio(y)) + torch.sigmoid(beta * log_ratio(z)))


@row("apo_down", updates.pairs, v(), v(beta=0.5))
def apo_down(update: Update, beta: float = 0.1) -> Tensor:
    """D'Oosterlinck et al. 2024: σ(βr₊) + 1 − σ(β(r₊ − r₋))."""
    return over_pairs(
        update,
        lambda y, z: torch.sigmoid(beta * log_ratio(y)) + 1 - torch.sigmoid(beta * (log_ratio(y) - log_ratio(z))),
    )


@row("nca", updates.pairs, v(rests=False), v(beta=0.5, rests=False))
def nca_of_pairs(update: Update, beta: float = 0.1) -> Tensor:
    """Chen et al. 2024, two completions, all of the reward on the better: K = 2."""

    def loss(better: updates.Completion, worse: updates.Completion) -> Tensor:
        won, lost = beta * log_ratio(better), beta * log_ratio(worse)
        return -F.logsigmoid(won) - (F.logsigmoid(-won) + F.logsigmoid(-lost)) / 2

    return over_pairs(update, loss)


@row("nca", updates.groups, v(temperature=0.7, beta=0.4, rests=False))
def nca_of_rewards(update: Update, temperature: float, beta: float = 0.1) -> Tensor:
    """Chen et al. 2024: −Σ_i [p_i log σ(βr_i) + (1/K) log σ(−βr_i)], p = softmax(R/α); a group counts by its size K."""
    losses = []
    for group in update.groups:
        p_K = (rewards(group) / temperature).softmax(0)
        for y, p in zip(group, p_K, strict=True):
            r = beta * log_ratio(y)
            losses.append(-(len(group) * p * F.logsigmoid(r) + F.logsigmoid(-r)) / len(update.samples))
    return sum_of(losses)
