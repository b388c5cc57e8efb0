"""The equation.  Every algorithm is one weighted log-likelihood gradient:

    loss = − Σ_k Σ_i share_ki · stop_gradient[ w_k(u_ki, A_i) · v_k(A_i) ] · φ_k(log π_θ)_i
    u_ki = stop_gradient[ measure_k(log π_θ)_i − ε_ki ]

(GRO: "One Framework to Rule Them All: Unifying RL-Based and RL-Free Methods in RLHF", eq. 35–37, with the unit φ, the
measure and the share made explicit.)  An algorithm is a credit and a tuple of terms; `coefficients`, `surrogate` and
`loss_value` are all that training needs of it, and they work on plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gro.objective.anchors import Anchor, Base, Rows, Scope, nothing
from gro.objective.credit import Credit, scored_rows
from gro.objective.groups import same_group
from gro.objective.shares import Share, per_sequence, token_mean
from gro.objective.units import Unit, token, total
from gro.objective.values import Value, identity
from gro.objective.weights import Weight, plain
from gro.types import ROLES, Batch

Selection = Literal["scored", "targets", "paired", "chosen"]
"""scored: samples with a reward.  targets: demonstrations.  paired: both members of a preference pair, ties left out.
chosen: the better member only."""

SCOPES: dict[Selection, Scope] = {"scored": "row", "targets": "row", "paired": "group", "chosen": "group"}
"""How far a selection looks: who has a partner is known to the whole group only."""


def select(rows: Selection, batch: Batch) -> Tensor:
    """bool [B]: the rows of this selection that have trained tokens."""
    if rows == "targets":
        role_B = batch.role_B if batch.role_B is not None else torch.zeros_like(batch.group_B)
        return (role_B == ROLES.index("target")) & batch.mask_BT.any(1)
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
    scale: float = 1.0
    """A constant factor on the whole term."""

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
        return _widest([self.share.scope, SCOPES[self.rows], *(s.scope for s in self.anchor.shifts)])

    def parts(self, logp_BT: Tensor, batch: Batch, count: float | None = None) -> Parts:
        """Every factor of this term, without gradient.  `count` is the share's global denominator."""
        logp_BT = logp_BT.detach()
        keep_B = select(self.rows, batch)
        a_BX = _advantage(batch).to(logp_BT)
        if a_BX.shape[1] > 1 and not self.unit.per_token:
            raise ValueError("the credit gives one advantage per token, but this term's unit is a whole completion")
        v_BX = self.value(a_BX)
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
class Algorithm:
    """A value: a credit and the terms of the equation.  Training derives everything else from what they read."""

    name: str
    credit: Credit
    terms: tuple[Term | FromLoss, ...]
    paper: str = ""
    """URL of the source."""
    equation: str = ""
    """Where in it the loss stands."""

    @property
    def reads(self) -> frozenset[str]:
        """Which of 'old', 'ref', 'values', 'greedy' must be prepared."""
        return self.credit.reads.union(*(t.reads for t in self.terms))

    @property
    def scope(self) -> Scope:
        """How far the terms look across rows: what a micro-batch may not split."""
        return _widest(t.scope for t in self.terms)

    @property
    def roles(self) -> frozenset[Selection]:
        return frozenset(t.rows for t in self.terms)

    @property
    def single_update(self) -> bool:
        """Whether it is right for one update per batch only: plain policy gradient with nothing that knows old."""
        return any(
            isinstance(t, Term) and t.rows == "scored" and t.weight == plain and t.anchor == nothing for t in self.terms
        )


def counts(batch: Batch, algorithm: Algorithm) -> tuple[float, ...]:
    """This batch's contribution to each term's global denominator; sums over batches and processes are exact."""
    return tuple(t.share.count(select(t.rows, batch), batch) for t in algorithm.terms)


def surrogate(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """Loss whose gradient is that of the objective; its value means nothing (see `loss_value`).

    logp_BT: [B, T] log-probs at the current parameters, any floating dtype.  The batch holds the advantage (see
    `credit`), the base log-probs the algorithm reads, and optionally the global counts.
    """
    _check(logp_BT, batch)
    return _total(t.surrogate(logp_BT, batch, n) for t, n in _with_counts(batch, algorithm))


def coefficients(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """c_BT [B, T] = −∂loss/∂logp: what each token's log-prob is multiplied by in the update's gradient."""
    with torch.enable_grad():
        logp_BT = logp_BT.detach().requires_grad_()
        loss = surrogate(logp_BT, batch, algorithm)
        (gradient_BT,) = torch.autograd.grad(loss, logp_BT, allow_unused=True, materialize_grads=True)
    return -gradient_BT


def loss_value(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """The value of the paper's loss, without gradient; −Σ share·w·v·φ for terms whose paper detaches its ratio."""
    _check(logp_BT, batch)
    return _total(t.loss_value(logp_BT, batch, n) for t, n in _with_counts(batch, algorithm))


def _with_counts(batch: Batch, algorithm: Algorithm) -> list[tuple[Term | FromLoss, float | None]]:
    numbers = batch.counts_K or (None,) * len(algorithm.terms)
    return list(zip(algorithm.terms, numbers, strict=True))


def _total(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(tuple(losses)).sum()


def _check(logp_BT: Tensor, batch: Batch) -> None:
    if logp_BT.shape != batch.mask_BT.shape:
        raise ValueError(f"logp_BT is {list(logp_BT.shape)}, the batch's mask {list(batch.mask_BT.shape)}")


def _advantage(batch: Batch) -> Tensor:
    if batch.advantage_BX is not None:
        return batch.advantage_BX
    return torch.zeros(len(batch.group_B), 1, device=batch.group_B.device)


def _share(term: Term | FromLoss, keep_B: Tensor, batch: Batch, count: float | None) -> Tensor:
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


def _widest(scopes: Iterable[Scope]) -> Scope:
    order: tuple[Scope, ...] = ("row", "group", "batch")
    return order[max((order.index(scope) for scope in scopes), default=0)]
