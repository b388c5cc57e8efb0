"""Losses of reward models; a completion's score stands where its log-likelihood stands elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.table import row, sum_of, v
from algorithms.updates import Update


@row(
    "bradley_terry",
    updates.pairs,
    v(),
    v(margin=0.3),
    v(data_margin=0.5, centring=0.01),
    v(label_smoothing=0.2, margin=0.1, centring=0.3),
)
def bradley_terry(
    update: Update,
    margin: float = 0.0,
    data_margin: float = 0.0,
    centring: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Ouyang et al. 2022, eq. 1, with Llama 2's margin and Eisenstein et al. 2023's centring."""
    losses = []
    for better, worse in update.pairs:
        won, lost = better.logp.sum(), worse.logp.sum()
        gap = won - lost - margin - data_margin * better.margin
        preference = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
        losses.append(preference + centring * (won + lost).square())
    return torch.stack(losses).mean()


@row("plackett_luce", updates.groups, v())
def plackett_luce(update: Update) -> Tensor:
    """Stage by stage: the best of what is left is chosen among itself and those ranked below."""
    losses = []
    for group in update.groups:
        for y in group:
            left = [y.logp.sum(), *(z.logp.sum() for z in group if z.reward < y.reward)]
            losses.append(-torch.stack(left).log_softmax(0)[0] / len(update.groups))
    return sum_of(losses)


@row("all_pairs", updates.groups, v())
def all_pairs(update: Update) -> Tensor:
    losses = []
    for group in update.groups:
        pairs = [(y, z) for y in group for z in group if y.reward > z.reward]
        losses += [-F.logsigmoid(y.logp.sum() - z.logp.sum()) / len(pairs) / len(update.groups) for y, z in pairs]
    return sum_of(losses)
