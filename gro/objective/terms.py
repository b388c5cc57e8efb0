"""The terms of the equation: what a completion or token is pushed by (see `gro.objective.estimator`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gro.objective.anchors import Anchor, Base, Rows, Scope, nothing
from gro.objective.credit import scored_rows
from gro.objective.gates import Gate
from gro.objective.groups import same_group
from gro.objective.shares import Share, per_sequence, token_mean
from gro.objective.units import Unit, token, total
from gro.objective.values import Value, identity
from gro.objective.weights import Weight, plain
from gro.types import ROLES, Batch

Selection = Literal["scored", "targets", "paired", "chosen", "versus"]
"""scored: samples with a reward.  targets: demonstrations.  paired: both members of a preference pair, ties left out.
chosen: the better member only.  versus: a demonstration and the policy's own sample of the same prompt."""

SCOPES: dict[Selection, Scope] = {
    "scored": "row",
    "targets": "row",
    "paired": "group",
    "chosen": "group",
    "versus": "group",
}
"""How far a selection looks: who has a partner is known to the whole group only."""


def select(rows: Selection, batch: Batch) -> Tensor:
    """bool [B]: the rows of this selection that have trained tokens."""
    role_B = batch.role_B if batch.role_B is not None else torch.zeros_like(batch.group_B)
    target_B = (role_B == ROLES.index("target")) & batch.mask_BT.any(1)
    if rows == "targets":
        return target_B
    if rows == "versus":
        sample_B = batch.samples_B & batch.mask_BT.any(1)
        same_BB = same_group(batch)
        one_of_each_B = ((same_BB & target_B[None, :]).sum(1) == 1) & ((same_BB & sample_B[None, :]).sum(1) == 1)
        return (target_B | sample_B) & one_of_each_B
    scored_B = scored_rows(batch)
    if rows == "scored":
        return scored_B
    a_BX = _advantage(batch)
    side_B = a_BX[:, 0].sign() * scored_B
    same_BB = same_group(batch)
    opposite_B = (same_BB & (side_B[:, None] * side_B[None, :] < 0)).sum(1)
    members_B = (same_BB & scored_B[None, :]).sum(1)
    paired_B = scored_B & (members_B == 2) & (opposite_B == 1)
    return paired_B & (side_B > 0) if rows == "chosen" else paired_B


@dataclass(frozen=True)
class Adapt:
    """A term's factor × 2 where the step's KL(old‖θ) came out above 1.5 `target`, ÷ 2 where it is below target/1.5.

    PPO's adaptive penalty (Schulman et al. 2017, sec. 4); the KL is the mean over the samples' tokens.
    """

    target: float = 0.01
    band: float = 1.5
    factor: float = 2.0

    def __call__(self, scale: float, kl: float) -> float:
        """The factor after a step that came out at `kl`."""
        if kl > self.target * self.band:
            return scale * self.factor
        return scale / self.factor if kl < self.target / self.band else scale


@dataclass(frozen=True)
class Term:
    """One sum of the equation.  Defaults are plain likelihood of the samples, weighted by their advantage."""

    unit: Unit = token
    anchor: Anchor = nothing
    weight: Weight = plain
    value: Value = identity
    share: Share = token_mean
    rows: Selection = "scored"
    measure: Unit | None = None
    """What u is made of, where it is not the unit that is differentiated."""
    second: Anchor | None = None
    """A second comparison, in the term's unit: u2, for weights of two anchors."""
    gate: Gate | None = None
    """Who takes part: v is 0 for the others, who still count in the share."""
    scale: float = 1.0
    """A constant factor on the whole term."""
    adapt: Adapt | None = None
    """Moves the factor from step to step."""

    def __post_init__(self) -> None:
        if (self.measure or self.unit).per_token:
            for shift in self.anchor.shifts:
                if shift.scope != "row":
                    raise ValueError(f"{shift.symbol} compares whole completions; measure total or average, not token")
            if not self.unit.per_token:
                raise ValueError("a completion as a whole cannot have one weight per token; measure total or average")
        if self.second is not None and self.second.shifts:
            raise ValueError("a second anchor is a base only; its shifts would not be seen")

    @property
    def reads(self) -> frozenset[str]:
        bases = {self.anchor.base, self.second.base if self.second else "zero"}
        return frozenset(bases - {"zero"})

    @property
    def scope(self) -> Scope:
        gates: list[Scope] = [self.gate.scope] if self.gate is not None else []
        return widest([self.share.scope, SCOPES[self.rows], *gates, *(s.scope for s in self.anchor.shifts)])

    def parts(self, logp_BT: Tensor, batch: Batch, count: float | None = None) -> Parts:
        """Every factor of this term, without gradient.  `count` is the share's global denominator."""
        logp_BT = logp_BT.detach()
        keep_B = select(self.rows, batch)
        a_BX = _advantage(batch).to(logp_BT)
        if a_BX.shape[1] > 1 and not self.unit.per_token:
            raise ValueError("the credit gives one advantage per token, but this term's unit is a whole completion")
        v_BX = self.value(a_BX)
        if self.gate is not None:
            v_BX = v_BX.masked_fill(~self.gate(batch)[:, None], 0.0)
        measured_BX = _difference(self.measure or self.unit, self.anchor, logp_BT, batch)
        u_BXJ, p_BXJ = self.anchor.compare(measured_BX, Rows(batch, keep_B, a_BX, v_BX))
        # Who has nobody to be compared with is compared with itself: u = 0, where a separating weight is 1.
        lonely_BX = p_BXJ.sum(-1) == 0
        u_BXJ = u_BXJ.masked_fill(lonely_BX[..., None], 0.0)
        p_BXJ = torch.where(lonely_BX[..., None], torch.ones_like(p_BXJ) / p_BXJ.shape[-1], p_BXJ)
        u2_BXJ = None
        if self.second is not None:
            u2_BXJ = _difference(self.unit, self.second, logp_BT, batch)[..., None]
        arguments = (u_BXJ, v_BX[..., None], a_BX[..., None], u2_BXJ)
        w_BX = (p_BXJ * self.weight(*arguments)).sum(-1)
        share_BX = _share(self, keep_B, batch, count).to(logp_BT)
        potential_BX = None
        if self.measure in (None, self.unit):
            potential_BXJ = self.weight.potential(*arguments)
            if potential_BXJ is not None:
                mutual = 2 if any(s.mutual for s in self.anchor.shifts) else 1
                potential_BX = (p_BXJ * potential_BXJ).sum(-1) / mutual
                alone_BX = -v_BX * self.unit(logp_BT, batch.mask_BT)
                potential_BX = torch.where(lonely_BX, alone_BX.expand_as(potential_BX), potential_BX)
        return Parts(keep_B, share_BX, w_BX, v_BX, (u_BXJ * p_BXJ).sum(-1), potential_BX)

    def surrogate(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        part = self.parts(logp_BT, batch, count)
        return -_sum(part.pull_BX * self.unit(logp_BT, batch.mask_BT), batch)

    def loss_value(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        part = self.parts(logp_BT, batch, count)
        if part.potential_BX is None:
            return -_sum(part.pull_BX * self.unit(logp_BT.detach(), batch.mask_BT), batch)
        return _sum((part.share_BX * part.potential_BX).masked_fill(~part.keep_B[:, None], 0.0), batch)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The factors of one term for every row: what pushes each completion or token, and why."""

    keep_B: Tensor
    share_BX: Tensor
    w_BX: Tensor
    v_BX: Tensor
    u_BX: Tensor
    potential_BX: Tensor | None

    @property
    def pull_BX(self) -> Tensor:
        """share · w · v, exactly 0 for rows that are not kept."""
        return (self.share_BX * self.w_BX * self.v_BX).masked_fill(~self.keep_B[:, None], 0.0)


@dataclass(frozen=True)
class FromLoss:
    """The escape hatch: a loss written as code.  Its coefficients are −∂loss/∂φ by autograd on the detached φ.

    `loss(u_BX, batch) → [B, X]` may look at other rows of the group; it is summed with the share.
    """

    loss: Callable[[Tensor, Batch], Tensor]
    unit: Unit = total
    base: Base = "zero"
    share: Share = per_sequence
    rows: Selection = "scored"
    scale: float = 1.0
    scope: Scope = "group"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.base} - {"zero"})

    def _losses(self, logp_BT: Tensor, batch: Batch, count: float | None) -> tuple[Tensor, Tensor]:
        """(φ_BX with gradient cut below it, the summed loss as a function of it)."""
        keep_B = select(self.rows, batch)
        with torch.enable_grad():
            u_BX = _difference(self.unit, Anchor(self.base), logp_BT.detach(), batch).requires_grad_()
            share_BX = _share(self, keep_B, batch, count).to(u_BX)
            loss_BX = (share_BX * self.loss(u_BX, batch)).masked_fill(~keep_B[:, None], 0.0)
            return u_BX, _sum(loss_BX, batch)

    def surrogate(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        u_BX, loss = self._losses(logp_BT, batch, count)
        (gradient_BX,) = torch.autograd.grad(loss, u_BX)
        return _sum(gradient_BX * self.unit(logp_BT, batch.mask_BT), batch)

    def loss_value(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        return self._losses(logp_BT, batch, count)[1].detach()


@dataclass(frozen=True)
class EntropyBonus:
    """+ c·H, H the entropy of the policy's whole distribution at each token: φ is the entropy itself, w = v = 1.

    Its gradient needs more than the log-probs of the tokens that were taken: `entropy_coefficients`.
    """

    coefficient: float
    share: Share = token_mean
    rows: Selection = "scored"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def scope(self) -> Scope:
        return widest([self.share.scope, SCOPES[self.rows]])

    @property
    def scale(self) -> float:
        return self.coefficient

    unit: ClassVar[Unit] = token

    def push_BT(self, batch: Batch, count: float | None) -> Tensor:
        """[B, T] −∂loss/∂H of each token."""
        keep_B = select(self.rows, batch)
        return _share(self, keep_B, batch, count).masked_fill(~(batch.mask_BT & keep_B[:, None]), 0.0)

    def surrogate(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        return logp_BT.new_zeros(())

    def loss_value(self, logp_BT: Tensor, batch: Batch, count: float | None) -> Tensor:
        if batch.entropy_BT is None:
            raise ValueError("the value of an entropy bonus needs the entropies; the batch has no entropy_BT")
        push_BT = self.push_BT(batch, count).to(logp_BT)
        return -(push_BT * batch.entropy_BT.to(logp_BT).masked_fill(~batch.mask_BT, 0.0)).sum()


AnyTerm = Term | FromLoss | EntropyBonus


def _advantage(batch: Batch) -> Tensor:
    if batch.advantage_BX is not None:
        return batch.advantage_BX
    return torch.zeros(len(batch.group_B), 1, device=batch.group_B.device)


def _share(term: AnyTerm, keep_B: Tensor, batch: Batch, count: float | None) -> Tensor:
    """scale · share · importance: [B, 1], or [B, T] where tokens are corrected separately."""
    count = term.share.count(keep_B, batch) if count is None else count
    share_B1 = term.scale * term.share(keep_B, batch, term.unit, count)
    if batch.importance_BT is None:
        return share_B1
    if not term.unit.per_token:
        raise ValueError("importance_BT corrects tokens; a term on whole completions cannot use it")
    return share_B1 * batch.importance_BT


def _difference(unit: Unit, anchor: Anchor, logp_BT: Tensor, batch: Batch) -> Tensor:
    """measure(ℓ) − measure(base): [B, X]."""
    base_BT = anchor.logp_BT(batch)
    here_BX = unit(logp_BT, batch.mask_BT)
    return here_BX if base_BT is None else here_BX - unit(base_BT.to(logp_BT), batch.mask_BT)


def _sum(quantity_BX: Tensor, batch: Batch) -> Tensor:
    """Sum over rows, and over trained tokens where there is one entry per token."""
    per_token = quantity_BX.shape == batch.mask_BT.shape
    mask_BX = batch.mask_BT if per_token else batch.mask_BT.any(1, keepdim=True)
    return quantity_BX.masked_fill(~mask_BX, 0.0).sum()


def widest(scopes: Iterable[Scope]) -> Scope:
    """How far all of them together look."""
    order: tuple[Scope, ...] = ("row", "group", "batch")
    return order[max((order.index(scope) for scope in scopes), default=0)]
