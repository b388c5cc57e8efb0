"""Sums over the rows of a prompt's group."""

from __future__ import annotations

import torch
from torch import Tensor

from gro.types import Batch


def same_group(batch: Batch) -> Tensor:
    """bool [B, B]: j belongs to i's prompt."""
    return batch.group_B[:, None] == batch.group_B[None, :]


def sum_over(members_BB: Tensor, values_B: Tensor) -> Tensor:
    """[B] Σ_j values_j over the members j of i.

    No matrix product: autocast and TF32 would round it, and a row that is no member could spoil it (0 · NaN = NaN).
    """
    return torch.where(members_BB, values_B[None, :], values_B.new_zeros(())).sum(1)
