"""The equation taken apart: of every token, by which factors each term comes to its part of the coefficient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gro.objective.anchors import Anchor
from gro.objective.estimator import Algorithm, counted
from gro.objective.terms import EntropyBonus, FromLoss, Term, select
from gro.objective.units import Unit
from gro.objective.weights import ClippedRatio, TruncatedRatio
from gro.types import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One term of the equation, token by token: c = share · w · v · ∂φ/∂ℓ, exactly 0 where nothing is kept.

    All are [B, T]; a factor of a whole completion is repeated over its tokens, and is 0 where no loss is carried.
    """

    share_BT: Tensor
    w_BT: Tensor
    v_BT: Tensor
    u_BT: Tensor
    epsilon_BT: Tensor
    """What the measured log-likelihood is compared with: measure(ℓ) − u."""
    slope_BT: Tensor
    """∂φ/∂ℓ: 1 for tokens and totals, 1/|y| for averages."""
    clip_BT: Tensor | None = None
    """−1: the ratio has left its region below, 0: it is inside, 1: above, 2: past the dual bound, where that side is
    clipped.  None: the weight clips nothing."""

    @property
    def c_BT(self) -> Tensor:
        """The term's part of the coefficients."""
        return self.share_BT * self.w_BT * self.v_BT * self.slope_BT


def decompose(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> tuple[Factors, ...]:
    """The factors of every term that pushes log-probs; their products add up to `gro.objective.coefficients`.

    A loss written as code has no w, v and share of its own: its w is −∂loss/∂φ, and the other two are 1.  An entropy
    bonus pushes no log-prob and is left out: what remains is in the order of `pushing`.
    """
    found: list[Factors] = []
    for term, count in counted(batch, algorithm):
        if isinstance(term, Term):
            found.append(_of_term(term, logp_BT, batch, count))
        elif isinstance(term, FromLoss):
            found.append(_of_loss(term, logp_BT, batch, count))
    return tuple(found)


def pushing(algorithm: Algorithm) -> tuple[Term | FromLoss, ...]:
    """The terms that push log-probs."""
    return tuple(term for term in algorithm.terms if not isinstance(term, EntropyBonus))


def label_of(term: Term | FromLoss) -> str:
    """A term as people tell them apart.

    >>> label_of(Term(weight=ClippedRatio(), anchor=Anchor("old")))
    'clip(r) · ℓ_t, scored'
    """
    weight = "loss" if isinstance(term, FromLoss) else term.weight.symbol
    return f"{weight} · {term.unit.symbol}, {term.rows}"


def _of_term(term: Term, logp_BT: Tensor, batch: Batch, count: float | None) -> Factors:
    part = term.parts(logp_BT, batch, count)
    inside_BT = batch.mask_BT & part.keep_B[:, None]

    def over_tokens(factor_BX: Tensor) -> Tensor:
        return factor_BX.expand_as(inside_BT).masked_fill(~inside_BT, 0.0)

    share_BT, w_BT, v_BT, u_BT = map(over_tokens, (part.share_BX, part.w_BX, part.v_BX, part.u_BX))
    measured_BX = (term.measure or term.unit)(logp_BT.detach(), batch.mask_BT)
    return Factors(
        share_BT,
        w_BT,
        v_BT,
        u_BT,
        epsilon_BT=over_tokens(measured_BX - part.u_BX),
        slope_BT=over_tokens(_slope(term.unit, logp_BT, batch.mask_BT)),
        clip_BT=_clip_state(term, u_BT, v_BT),
    )


def _of_loss(term: FromLoss, logp_BT: Tensor, batch: Batch, count: float | None) -> Factors:
    inside_BT = batch.mask_BT & select(term.rows, batch)[:, None]
    slope_BT = _slope(term.unit, logp_BT, batch.mask_BT).masked_fill(~inside_BT, 0.0)
    with torch.enable_grad():
        leaf_BT = logp_BT.detach().requires_grad_()
        (gradient_BT,) = torch.autograd.grad(term.surrogate(leaf_BT, batch, count), leaf_BT)
    w_BT = torch.where(slope_BT != 0, -gradient_BT / slope_BT, 0.0)
    u_BX = measured_BX = term.unit(logp_BT.detach(), batch.mask_BT)
    base_BT = Anchor(term.base).logp_BT(batch)
    if base_BT is not None:
        u_BX = u_BX - term.unit(base_BT.to(logp_BT), batch.mask_BT)
    one_BT = inside_BT.to(logp_BT)
    u_BT, epsilon_BT = (x.expand_as(inside_BT).masked_fill(~inside_BT, 0.0) for x in (u_BX, measured_BX - u_BX))
    return Factors(one_BT, w_BT, one_BT, u_BT, epsilon_BT, slope_BT)


def _slope(unit: Unit, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] ∂φ/∂ℓ of each token; rows do not see each other."""
    with torch.enable_grad():
        leaf_BT = logp_BT.detach().requires_grad_()
        (slope_BT,) = torch.autograd.grad(unit(leaf_BT, mask_BT).sum(), leaf_BT)
    return slope_BT


def _clip_state(term: Term, u_BT: Tensor, v_BT: Tensor) -> Tensor | None:
    weight, r_BT = term.weight, u_BT.clamp(-20, 20).exp()
    state_BT = torch.zeros_like(r_BT)  # (which is what it is where nothing is kept: there u and v are 0)
    if isinstance(weight, TruncatedRatio):
        state_BT[r_BT > weight.high] = 1
        state_BT[r_BT < weight.low] = -1
        return state_BT
    if not isinstance(weight, ClippedRatio):
        return None
    state_BT[(v_BT > 0) & (r_BT > 1 + weight.high)] = 1
    state_BT[(v_BT < 0) & (r_BT < 1 - weight.low)] = -1
    if weight.dual is not None:
        state_BT[(v_BT < 0) & (r_BT > weight.dual)] = 2
    return state_BT
