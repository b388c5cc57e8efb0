"""Shares: who counts how much.  A share is one over a *global* count, known before the backward pass.

`count` gives this batch's contribution to the denominator (sums over micro-batches and processes are exact), and
calling the share gives each kept row its [B, 1] factor.  Rows that a value sets to zero still count: a filter must
not silently rescale the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gro.objective.anchors import Scope
from gro.objective.groups import same_group, sum_over
from gro.objective.units import Unit
from gro.types import Batch


class Share(Protocol):
    @property
    def symbol(self) -> str: ...

    scope: ClassVar[Scope]
    """group: it counts a row's whole group, which must then not be split."""

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        """What this batch adds to the global denominator."""
        ...

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        """[B, 1] factors, 0 for rows that are not kept."""
        ...


def _rows(factor_B: Tensor, keep_B: Tensor) -> Tensor:
    return factor_B.masked_fill(~keep_B, 0.0)[:, None]


def _lengths(batch: Batch) -> Tensor:
    return batch.mask_BT.sum(1).clamp(min=1).double()  # integers divide to single precision otherwise


def _tokens(batch: Batch, unit: Unit) -> Tensor:
    """By what a per-token share is multiplied: an average stands for |y| tokens."""
    return _lengths(batch) if unit.normalised else torch.ones_like(_lengths(batch))


@dataclass(frozen=True)
class TokenMean:
    """1/N per token, N the tokens of the term's rows in the whole update."""

    symbol = "1/N"
    scope: ClassVar[Scope] = "row"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return batch.mask_BT[keep_B].sum().item()

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        return _rows(_tokens(batch, unit) / max(count, 1), keep_B)


@dataclass(frozen=True)
class GroupTokenMean:
    """1/(P·N_g) per token: the mean over prompts of the mean over a prompt's tokens (DAPO, eq. 8)."""

    symbol = "1/(P·N_group)"
    scope: ClassVar[Scope] = "group"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return len(batch.group_B[keep_B].unique())

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        tokens_B = sum_over(same_group(batch) & keep_B[None, :], batch.mask_BT.sum(1)).clamp(min=1)
        return _rows(_tokens(batch, unit) / (max(count, 1) * tokens_B), keep_B)


@dataclass(frozen=True)
class SequenceMean:
    """1/(B·|y|) per token: the mean over completions of the mean over their tokens (GRPO, eq. 3)."""

    symbol = "1/(B·|y|)"
    scope: ClassVar[Scope] = "row"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return keep_B.sum().item()

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        return _rows(_tokens(batch, unit) / (max(count, 1) * _lengths(batch)), keep_B)


@dataclass(frozen=True)
class PerSequence:
    """1/B per completion, whatever its length or unit; every token of it has the same."""

    symbol = "1/B"
    scope: ClassVar[Scope] = "row"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return keep_B.sum().item()

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        return _rows(torch.full(keep_B.shape, 1 / max(count, 1), device=keep_B.device, dtype=torch.float64), keep_B)


@dataclass(frozen=True)
class PerGroup:
    """1/P for each completion of a prompt, P the prompts: the mean over prompts of what is summed over completions."""

    symbol = "1/P"
    scope: ClassVar[Scope] = "group"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return len(batch.group_B[keep_B].unique())

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        return per_sequence(keep_B, batch, unit, count)


@dataclass(frozen=True)
class PerPair:
    """1/pairs for each member of a pair."""

    symbol = "1/pairs"
    scope: ClassVar[Scope] = "row"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return keep_B.sum().item() / 2

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        return per_sequence(keep_B, batch, unit, count)


@dataclass(frozen=True)
class FixedLength:
    """1/(B·L) per token, L fixed: `length`, or the batch's limit on completion length (Dr. GRPO, Liu et al. 2025)."""

    length: int | None = None
    symbol = "1/(B·L_max)"
    scope: ClassVar[Scope] = "row"

    def count(self, keep_B: Tensor, batch: Batch) -> float:
        return keep_B.sum().item()

    def __call__(self, keep_B: Tensor, batch: Batch, unit: Unit, count: float) -> Tensor:
        length = self.length or batch.length_limit
        if length is None:
            raise ValueError("a share of fixed length needs FixedLength(length) or a batch with length_limit")
        return _rows(_tokens(batch, unit) / (max(count, 1) * length), keep_B)


token_mean = TokenMean()
group_token_mean = GroupTokenMean()
sequence_mean = SequenceMean()
per_sequence = PerSequence()
per_group = PerGroup()
per_pair = PerPair()
fixed_length = FixedLength()
