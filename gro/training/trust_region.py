"""TRPO's step in place of an optimizer's (Schulman et al. 2015, appendix C).

    x ≈ (F + damping·I)⁻¹ g,   step = x·√(2δ / xᵀFx)·0.8ʲ,   j the first of 0, 1, … at which
    the loss has improved and the mean KL(old‖θ) ≤ δ

F is the exact Fisher matrix of the policy's distributions at the samples' tokens, Jᵀ(diag(p) − ppᵀ)J averaged over
them, J the Jacobian of the logits; it is multiplied with, never formed.  Its products need forward-mode derivatives,
which packed attention and the fused head do not have: here the model runs on plain rows with its own attention, in
the precision of its weights.

P  all trained weights as one vector     M  scored tokens of a pack     V  vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gro.errors import GroError
from gro.objective import Algorithm, loss_value
from gro.objective.estimator import TrustRegion
from gro.policy import packing
from gro.policy.limits import longest_together
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.policy.probe import attention_of
from gro.training.batching import Minibatch
from gro.training.learner import Seen, Update, accumulate
from gro.types import Group

LOGIT_BYTES = 256 << 20
"""Logits of a plain forward pass are at most about this many bytes; a few tensors of that size exist together."""
TOLERANCE = 1e-10
"""Conjugate gradient stops once the residual is this small beside the gradient: what is left is rounding."""

Product = Callable[[Tensor], Tensor]
"""v_P ↦ (matrix · v)_P."""


# --- the mathematics -------------------------------------------------------------------------------------------------


def conjugate_gradient(product: Product, g_P: Tensor, steps: int) -> tuple[Tensor, float]:
    """(x with H·x ≈ g after at most so many steps, ‖g − H·x‖/‖g‖) for a symmetric positive H (Hestenes & Stiefel)."""
    assert g_P.ndim == 1
    x_P = torch.zeros_like(g_P)
    residual_P, direction_P = g_P.clone(), g_P.clone()
    start = square = residual_P.dot(residual_P)
    for _ in range(steps):
        if square <= TOLERANCE**2 * start:
            break
        bent_P = product(direction_P)
        length = square / direction_P.dot(bent_P)
        x_P += length * direction_P
        residual_P -= length * bent_P
        before, square = square, residual_P.dot(residual_P)
        direction_P = residual_P + (square / before) * direction_P
    return x_P, math.sqrt(square / start) if start > 0 else 0.0


def fisher_product(logits: Callable[[Tensor], Tensor], at_P: Tensor, v_P: Tensor, weight_M: Tensor) -> Tensor:
    """Σ_m weight_m · J_mᵀ(diag(p_m) − p_m p_mᵀ)J_m · v, J the Jacobian of `logits`: [P] ↦ [M, V] at this point."""
    assert at_P.shape == v_P.shape
    z_MV, change_MV = torch.func.jvp(logits, (at_P,), (v_P,))  # type: ignore[misc]
    p_MV = z_MV.softmax(-1)
    bent_MV = p_MV * (change_MV - (p_MV * change_MV).sum(-1, keepdim=True)) * weight_M[:, None].to(z_MV)
    _, pull_back = torch.func.vjp(logits, at_P)  # type: ignore[misc]
    return pull_back(bent_MV)[0]


def longest_step(x_P: Tensor, curved: float, delta: float) -> Tensor:
    """x scaled to where the second-order KL, ½·stepᵀF·step, is δ; `curved` is xᵀFx."""
    return x_P * math.sqrt(2 * delta / curved)


def kl(old_MV: Tensor, new_MV: Tensor) -> Tensor:
    """[M] KL(old‖new) of the whole distributions, from their log-probs."""
    assert old_MV.shape == new_MV.shape
    return (old_MV.exp() * (old_MV - new_MV)).sum(-1)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a step would do, or has done."""

    scale: float
    """Of the longest step; 0 where none was good."""
    kl: float
    """Exact mean KL(old‖θ) per token of the samples."""
    improvement: float
    """By how much the loss is lower."""
    backtracks: int
    """How often the step was shortened."""


def backtrack(measure: Callable[[float], tuple[float, float]], region: TrustRegion) -> Trial:
    """The first of the scales 1, b, b², … at which the loss improves and the KL is at most δ; scale 0 if none is.

    measure: scale ↦ (mean KL(old‖θ), improvement of the loss).  NaN is not good.
    """
    for j in range(region.backtracks):
        scale = region.backtrack**j
        distance, improvement = measure(scale)
        if improvement > 0 and distance <= region.delta:
            return Trial(scale, distance, improvement, j)
    return Trial(0.0, 0.0, 0.0, region.backtracks)


# --- the policy as a function of one vector --------------------------------------------------------------------------


class _Vector:
    """A model's trained weights as one vector, float32 or wider."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.sizes = [p.numel() for p in self.named.values()]
        self.dtype = torch.promote_types(model.dtype, torch.float32)

    def weights(self) -> Tensor:
        return self._flat(list(self.named.values()))

    def gradient(self) -> Tensor:
        """Of the accumulated loss; takes it away from the weights."""
        gradient_P = self._flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.named.values()])
        self.model.zero_grad(set_to_none=True)
        return gradient_P

    def broken(self, vector_P: Tensor) -> str | None:
        """The first weight at which the vector is not finite."""
        return next((n for n, t in self.tensors(vector_P).items() if not bool(torch.isfinite(t).all())), None)

    def tensors(self, at_P: Tensor) -> dict[str, Tensor]:
        """The weights by name, views of the vector.  Differentiable."""
        pieces = at_P.split(self.sizes)
        return {n: t.view(p.shape).to(p.dtype) for t, (n, p) in zip(pieces, self.named.items(), strict=True)}

    @torch.no_grad()
    def adopt(self, at_P: Tensor) -> None:
        """Makes these the model's weights."""
        for name, tensor in self.tensors(at_P).items():
            self.named[name].copy_(tensor)

    def _flat(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1).to(self.dtype) for t in tensors])


class _Plain:
    """The distributions of a minibatch's tokens as a function of the weights: plain rows, in packs of bounded size."""

    def __init__(self, policy: Policy, vector: _Vector, groups: tuple[Group, ...], width: int, budget: int) -> None:
        self.vector, self.model = vector, policy.model
        head = policy.model.get_output_embeddings()
        assert head is not None
        assert isinstance(head.weight, Tensor)
        token_bytes = len(head.weight) * vector.dtype.itemsize
        budget = min(budget, max(LOGIT_BYTES // token_bytes, 1))
        alone = longest_together(policy.model.config)
        self.packs = packing.pack(groups, budget, shared=False, width=width, alone_above=alone)

    def logits(self, pack: Pack, at_P: Tensor) -> Tensor:
        """[M, V] at each scored token, over its row's temperature."""
        device = at_P.device
        inputs = {**pack.inputs(device), "use_cache": False}
        everything = torch.func.functional_call(self.model, self.vector.tensors(at_P), kwargs=inputs).logits
        logits_MV = everything.flatten(0, 1).index_select(0, pack.source_M.to(device)).to(at_P.dtype)
        return logits_MV / pack.temperature_M.to(logits_MV)[:, None]


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """The model with derivatives of every kind: its own attention, and no activations that are computed again."""
    training = [module for module in model.modules() if module.training]
    # The embedding of a padding token has a forward derivative but no gradient: F would not be symmetric.
    padding = [(m, m.padding_idx) for m in model.modules() if isinstance(m, nn.Embedding)]
    model.eval()
    for module, _ in padding:
        module.padding_idx = None
    try:
        with attention_of(model, "eager"):
            yield
    finally:
        for module in training:
            module.training = True
        for module, index in padding:
            module.padding_idx = index


# --- the learner -----------------------------------------------------------------------------------------------------


class TrustRegionLearner:
    """Moves the policy by TRPO's step, or not at all.

    The gradient is that of every learner.  Candidates are functions of a vector: the model's weights are written once
    a step is accepted, so that a rejected one leaves them as they were, to the bit.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, *, tokens_per_micro: int, entropy: bool = True) -> None:
        assert algorithm.step is not None, f"{algorithm.name} has no trust region"
        self.policy, self.algorithm, self.region = policy, algorithm, algorithm.step
        self.tokens_per_micro, self.entropy = tokens_per_micro, entropy
        self.vector = _Vector(policy.model)

    def update(self, minibatch: Minibatch) -> Update:
        """One step; GroError before any weight changes where something is not finite.

        Logged are `trust_region/kl` and `trust_region/improvement` of the step taken, both 0 where none was, and
        whether one was: `trust_region/accepted`.  A gradient of 0, as from equal rewards, asks for none.
        """
        seen = accumulate(self.policy, self.algorithm, minibatch, self.tokens_per_micro, entropy=self.entropy)
        ascent_P = -self.vector.gradient()
        norm = ascent_P.norm().item()
        if not math.isfinite(norm):
            worst = self.vector.broken(ascent_P)
            raise GroError(f"the gradient is not finite (first in {worst!r}); no weight was changed")
        trial, residual = Trial(0.0, 0.0, 0.0, 0), 0.0
        if norm > 0:
            with _differentiable(self.policy.model):
                trial, residual = self._step(seen, ascent_P)
        return seen.update(
            self.algorithm,
            {
                "grad_norm": norm,
                "trust_region/kl": trial.kl,
                "trust_region/improvement": trial.improvement,
                "trust_region/backtracks": float(trial.backtracks),
                "trust_region/accepted": float(trial.scale > 0),
                "trust_region/cg_residual": residual,
            },
        )

    def _step(self, seen: Seen, ascent_P: Tensor) -> tuple[Trial, float]:
        """(what was done, the residual of conjugate gradient)."""
        at_P = self.vector.weights()
        width = seen.batch.mask_BT.shape[1]
        plain = _Plain(self.policy, self.vector, seen.groups, width, self.tokens_per_micro)
        fisher = self._fisher(plain, seen, at_P)
        damping = self.region.damping
        x_P, residual = conjugate_gradient(lambda v_P: fisher(v_P) + damping * v_P, ascent_P, self.region.cg_steps)
        curved = x_P.dot(fisher(x_P)).item()
        if not 0 < curved < math.inf:
            raise GroError(
                f"{self.algorithm.name}: the trust region sets no length: xᵀFx is {curved:.3g} along the direction of "
                "conjugate gradient, expected a finite number above 0 (0: the gradient moves no distribution at the "
                "samples' tokens); no weight was changed"
            )
        step_P = longest_step(x_P, curved, self.region.delta)
        trial = backtrack(lambda scale: self._measure(plain, seen, at_P, at_P + scale * step_P), self.region)
        if trial.scale:
            self.vector.adopt(at_P + trial.scale * step_P)
        return trial, residual

    def _fisher(self, plain: _Plain, seen: Seen, at_P: Tensor) -> Product:
        def product(v_P: Tensor) -> Tensor:
            total_P = torch.zeros_like(v_P)
            for pack in plain.packs:
                weight_M = _weights(pack, seen)
                total_P += fisher_product(lambda w_P, pack=pack: plain.logits(pack, w_P), at_P, v_P, weight_M)
            return total_P

        return product

    @torch.no_grad()
    def _measure(self, plain: _Plain, seen: Seen, old_P: Tensor, new_P: Tensor) -> tuple[float, float]:
        """(mean KL(old‖new) over the samples' tokens, by how much the loss is lower at the new weights)."""
        distance = 0.0
        shape = seen.batch.mask_BT.shape
        logp_2BT = torch.zeros(2, *shape, dtype=torch.float64, device=old_P.device)
        entropy_2BT = torch.zeros_like(logp_2BT)
        for pack in plain.packs:
            old_MV, new_MV = (plain.logits(pack, w_P).log_softmax(-1) for w_P in (old_P, new_P))
            distance += float((kl(old_MV, new_MV) * _weights(pack, seen)).sum())
            target_M1 = pack.target_M.to(old_P.device)[:, None]
            for side, at_MV in enumerate((old_MV, new_MV)):
                logp_2BT[side, pack.rows_R] = pack.scatter(at_MV.gather(-1, target_M1)[:, 0].double())
                entropy_2BT[side, pack.rows_R] = pack.scatter(-(at_MV.exp() * at_MV).sum(-1).double())
        before, after = (
            float(loss_value(logp_BT, replace(seen.batch, entropy_BT=entropy_BT), self.algorithm))
            for logp_BT, entropy_BT in zip(logp_2BT, entropy_2BT, strict=True)
        )
        return distance, before - after


def _weights(pack: Pack, seen: Seen) -> Tensor:
    """[M] 1/N for each token of a sample, N all of them in the minibatch; 0 for others."""
    samples_B = seen.batch.samples_B
    number = int((seen.batch.mask_BT & samples_B[:, None]).sum())
    return samples_B[pack.rows_R][pack.row_M.to(samples_B.device)].double() / max(number, 1)
