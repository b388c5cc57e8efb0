"""The critic's loss: V ← return.  In the equation: unit value, base zero, w = return − u, v = 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gro.objective.shares import Share, token_mean
from gro.objective.units import token
from gro.types import Batch


@dataclass(frozen=True)
class Critic:
    """½(V − return)², or with `clip` ½max((V − ret)², (clip(V, V_old ± clip) − ret)²), over the samples' tokens.

    Schulman et al. 2017, eq. 9; the clipped form is that of their code (baselines).
    """

    coefficient: float = 1.0
    """Factor on the loss: it matters where policy and critic share a trunk, or gradients are clipped."""
    clip: float | None = None
    share: Share = token_mean
    frozen: bool = False
    """Only fitted before the policy moves; from then on it stays as it is (A-LoL)."""

    def count(self, batch: Batch) -> float:
        """What this batch adds to the global denominator."""
        return self.share.count(self._keep_B(batch), batch)

    def coefficients(self, values_BT: Tensor, batch: Batch, count: float | None = None) -> Tensor:
        """c_BT = −∂loss/∂V, [B, T]: what each value is multiplied by in the update's gradient.

        values_BT: the values now; the batch holds those before the update (`values_BT`) and the returns.
        """
        values_BT = values_BT.detach()
        error_BT = _returns(batch).to(values_BT) - values_BT
        if self.clip is not None:
            clipped_BT, moved_BT = self._clipped(values_BT, batch)
            worse_BT = clipped_BT.square() > error_BT.square()
            error_BT = torch.where(worse_BT, clipped_BT.masked_fill(moved_BT, 0.0), error_BT)
        return self._shared(error_BT, batch, count)

    def loss_value(self, values_BT: Tensor, batch: Batch, count: float | None = None) -> Tensor:
        """The value of the loss, without gradient."""
        values_BT = values_BT.detach()
        square_BT = (_returns(batch).to(values_BT) - values_BT).square()
        if self.clip is not None:
            square_BT = torch.maximum(square_BT, self._clipped(values_BT, batch)[0].square())
        return self._shared(square_BT / 2, batch, count).sum()

    def inside_BT(self, batch: Batch) -> Tensor:
        """bool [B, T]: the tokens whose values are learnt."""
        return batch.mask_BT & self._keep_B(batch)[:, None]

    def _clipped(self, values_BT: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(return − clip(V), where V has left the interval)."""
        assert self.clip is not None
        assert batch.values_BT is not None
        move_BT = values_BT - batch.values_BT.to(values_BT)
        near_BT = batch.values_BT.to(values_BT) + move_BT.clamp(-self.clip, self.clip)
        return _returns(batch).to(values_BT) - near_BT, move_BT.abs() > self.clip

    def _keep_B(self, batch: Batch) -> Tensor:
        keep_B = batch.samples_B & batch.mask_BT.any(1)
        return keep_B if batch.reward_B is None else keep_B & ~batch.reward_B.isnan()

    def _shared(self, quantity_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        keep_B = self._keep_B(batch)
        count = self.share.count(keep_B, batch) if count is None else count
        share_B1 = self.coefficient * self.share(keep_B, batch, token, count).to(quantity_BT)
        return (share_B1 * quantity_BT).masked_fill(~self.inside_BT(batch), 0.0)


def _returns(batch: Batch) -> Tensor:
    if batch.returns_BT is None:
        raise ValueError("the critic learns returns; the batch has no returns_BT")
    return batch.returns_BT
