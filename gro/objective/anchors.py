"""Anchors ε: what a completion's log-likelihood is compared with.

An anchor is a base (nothing, the old policy, the reference) plus shifts.  A shift may compare a row with *several*
others at once, so a comparison is u_BXJ with proportions p_BXJ that sum to 1 over J, or to 0 for a row that has
nobody to be compared with (its weight is then 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from gro.objective.groups import same_group, sum_over
from gro.types import ROLES, Batch

Base = Literal["zero", "old", "ref"]
Scope = Literal["row", "group", "batch"]
"""How far a slot looks: a row stands alone, groups must not be split, or the whole update is needed (two passes)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a shift may look at: the batch, this term's rows and their advantages."""

    batch: Batch
    keep_B: Tensor
    """bool [B]: rows the term learns from."""
    a_BX: Tensor
    v_BX: Tensor

    def a_B(self) -> Tensor:
        """[B] one advantage per completion, where comparisons between completions need it."""
        return _per_sequence(self.a_BX)

    def v_B(self) -> Tensor:
        return _per_sequence(self.v_BX)

    def rivals_BB(self) -> Tensor:
        """bool [B, B]: j is in i's group, kept, and on the other side (A_j < 0 < A_i or the reverse)."""
        side_B = self.a_B().sign()
        opposite_BB = side_B[:, None] * side_B[None, :] < 0
        return same_group(self.batch) & opposite_BB & self.keep_B[:, None] & self.keep_B[None, :]


def _per_sequence(a_BX: Tensor) -> Tensor:
    if a_BX.shape[1] != 1:
        raise ValueError("this shift compares whole completions; it needs one advantage each, not one per token")
    return a_BX[:, 0]


class Shift(Protocol):
    """(d_BX = measure − base, rows) → (shift_BXJ, p_BXJ)."""

    @property
    def symbol(self) -> str: ...

    scope: ClassVar[Scope]
    mutual: ClassVar[bool]
    """Both sides of a comparison state the same loss, so its value is half the sum of their potentials."""

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]: ...


def _alone(shift_BX: Tensor) -> tuple[Tensor, Tensor]:
    return shift_BX[..., None], torch.ones_like(shift_BX[..., None])


@dataclass(frozen=True)
class Margin:
    """ε += s·m, an antisymmetric shift: the chosen must win by m.  m is `size`, plus `data` × the data's margins."""

    size: float = 0.0
    data: float = 0.0
    symbol = "s·m"
    scope: ClassVar[Scope] = "row"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        margin_B = torch.full_like(d_BX[:, 0], self.size)
        if self.data:
            if rows.batch.margin_B is None:
                raise ValueError("a margin from the data needs margin_B; the rows carry none")
            margin_B = margin_B + self.data * rows.batch.margin_B.to(d_BX)
        return _alone((rows.a_B().sign() * margin_B)[:, None])


@dataclass(frozen=True)
class Partner:
    """ε += what the pair's other member measures above the base.

    With d = measure − base, u₊ = d₊ − b·d₋ and u₋ = d₋ − d₊/b; b = 1 but for CPL.
    """

    bias: float = 1.0
    symbol = "partner"
    scope: ClassVar[Scope] = "group"
    mutual: ClassVar[bool] = True

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        if d_BX.shape[1] != 1:
            raise ValueError("a partner's log-ratio is that of a whole completion; measure total or average, not token")
        other_B = sum_over(rows.rivals_BB(), d_BX[:, 0])
        shift_B = torch.where(rows.a_B() > 0, self.bias * other_B, other_B / self.bias)
        return _alone(shift_B[:, None])


@dataclass(frozen=True)
class Opponents:
    """ε += the mean log-likelihood of the rows of the group that lie on the other side of the baseline.

    Not an ascent direction in general; `SoftOpponents` is the form that has a loss.
    """

    symbol = "mean opponent"
    scope: ClassVar[Scope] = "group"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        rivals_BB = rows.rivals_BB()
        count_B = rivals_BB.sum(1)
        shift_B = sum_over(rivals_BB, _per_sequence(d_BX)) / count_B.clamp(min=1)
        return shift_B[:, None, None], (count_B > 0).to(d_BX)[:, None, None]


@dataclass(frozen=True)
class SoftOpponents:
    """ε += what the group's rows with A of the other sign measure, each in turn; w is the mean over them, by |v|.

    Pairwise separation: w_i = Σ_j p_ij w(d_i − d_j), p_ij = |v_j|/Σ|v|.  For centred advantages
    this is the gradient of −(2/κ) Σ_ij (A_i|A_j|/S) log σ(κ(φ_i − φ_j)) under Separation.
    """

    symbol = "opponents"
    scope: ClassVar[Scope] = "group"
    mutual: ClassVar[bool] = True

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        # J is the size of the largest group, not B: where a ratio per token joins in, weights are B × T × J.
        same_BB = same_group(rows.batch)
        mates_BJ = same_BB.int().topk(int(same_BB.sum(1).max())).indices
        rivals_BJ = rows.rivals_BB().gather(1, mates_BJ)
        strength_BJ = torch.where(rivals_BJ, rows.v_B().abs()[mates_BJ], 0.0)
        total_B1 = strength_BJ.sum(1, keepdim=True)
        p_BJ = strength_BJ / total_B1.masked_fill(total_B1 == 0, 1.0)
        shift_BJ = torch.where(rivals_BJ, _per_sequence(d_BX)[mates_BJ], 0.0)
        return shift_BJ[:, None, :], p_BJ[:, None, :]


@dataclass(frozen=True)
class GroupMean:
    """ε += the mean log-likelihood of the group's kept rows: a different regulariser from opponents."""

    symbol = "group mean"
    scope: ClassVar[Scope] = "group"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        members_BB = same_group(rows.batch) & rows.keep_B[None, :]
        shift_B = sum_over(members_BB, _per_sequence(d_BX)) / members_BB.sum(1).clamp(min=1)
        return _alone(shift_B[:, None])


@dataclass(frozen=True)
class KlEstimate:
    """ε += max(0, mean log-ratio of the mismatched completions) over the whole update (KTO, sec. 4.1)."""

    symbol = "z0"
    scope: ClassVar[Scope] = "batch"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        d_B = _per_sequence(d_BX)
        if rows.batch.role_B is None:
            return _alone(torch.zeros_like(d_BX))
        mismatch_B = (rows.batch.role_B == ROLES.index("mismatch")) & rows.batch.mask_BT.any(1)
        estimate = d_B[mismatch_B].sum() / mismatch_B.sum().clamp(min=1)
        return _alone(estimate.clamp(min=0).expand(len(d_B))[:, None])


@dataclass(frozen=True)
class Midpoint:
    """ε += half-way between the mean log-ratios of the rows with A > 0 and with A < 0 of the whole update.

    The threshold of BCO (Jung et al. 2024).  Where one side is missing it is the other's mean.
    """

    symbol = "δ"
    scope: ClassVar[Scope] = "batch"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        d_B, side_B = _per_sequence(d_BX), rows.a_B().sign()
        sides = [d_B[rows.keep_B & (side_B == side)] for side in (1, -1)]
        means = [d.mean() for d in sides if len(d)]
        middle = torch.stack(means).mean() if means else d_B.new_zeros(())
        return _alone(middle.expand(len(d_B))[:, None])


@dataclass(frozen=True)
class Anchor:
    """ε = base + Σ shifts.  `Anchor("ref", (partner,))` is DPO's: the reference plus the partner's log-ratio."""

    base: Base = "zero"
    shifts: tuple[Shift, ...] = ()

    @property
    def symbol(self) -> str:
        parts = [*([] if self.base == "zero" else [self.base]), *(s.symbol for s in self.shifts)]
        return " + ".join(parts) or "0"

    def compare(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """(u_BXJ, p_BXJ) from d_BX = measure − base."""
        u_BXJ, p_BXJ = _alone(d_BX)
        for shift in self.shifts:
            shift_BXJ, proportion_BXJ = shift(d_BX, rows)
            u_BXJ, p_BXJ = u_BXJ - shift_BXJ, p_BXJ * proportion_BXJ
        return u_BXJ, p_BXJ

    def logp_BT(self, batch: Batch) -> Tensor | None:
        """The base's log-probs; None for base zero."""
        if self.base == "zero":
            return None
        logp_BT = batch.old_BT if self.base == "old" else batch.ref_BT
        if logp_BT is None:
            raise ValueError(f"an anchor reads the log-probs of '{self.base}'; the batch has no {self.base}_BT")
        return logp_BT


nothing = Anchor()
margin = Margin
partner = Partner()
opponents = Opponents()
opponents_soft = SoftOpponents()
group_mean = GroupMean()
kl_estimate = KlEstimate()
midpoint = Midpoint()
