"""Losses of the preference family, as their papers write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.table import log_ratio, row, v
from algorithms.updates import Update


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
