"""Losses of the likelihood family, as their papers write them."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.table import row
from algorithms.updates import Update


@row("sft", updates.groups)
def sft(update: Update) -> Tensor:
    tokens = torch.cat([y.logp for y in update.targets])
    return -tokens.mean()
