"""TRPO's step in place of an optimizer's (Schulman et al. 2015, appendix C).

    x ≈ (F + damping·I)⁻¹ g,   step = x·√(2δ / xᵀFx)·0.8ʲ,   j the first of 0, 1, … at which
    the loss has improved and the mean KL(old‖θ) ≤ δ

F is the exact Fisher matrix of the policy's distributions at the samples' tokens, Jᵀ(diag(p) − ppᵀ)J averaged over
them, J the Jacobian of the logits; it is multiplied with, never formed.  Its products need forward-mode derivatives,
which packed attention and the fused head do not have: here the model runs on plain rows with its own attention, in
the precision of its weights.

P  all trained weights as one vector     M  scored tokens of a pack     V  vocabulary     B, T  rows and their tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gro.errors import GroError
from gro.objective import Algorithm, loss_value
from gro.policy import packing
from gro.policy.limits import longest_together
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.policy.probe import attention_of
from gro.training.batching import Minibatch
from gro.training.finite import ADVICE, KEPT, fault_in_loss, fault_in_weights
from gro.training.learner import Seen, Update, accumulate
from gro.training.natural_gradient import (
    Product,
    Trial,
    backtrack,
    conjugate_gradient,
    fisher_product,
    kl,
    longest_step,
)
from gro.training.processes import ALONE, Processes

LOGIT_BYTES = 256 << 20
"""Logits of a plain forward pass are at most about this many bytes; a few tensors of that size exist together."""


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


class _Distributions:
    """The policy's distributions at the tokens of a minibatch, as a function of its weights.

    Plain rows, in packs of bounded size, which processes share out; means are over the trained tokens of samples.
    """

    def __init__(
        self,
        policy: Policy,
        vector: _Vector,
        algorithm: Algorithm,
        seen: Seen,
        tokens_per_micro: int,
        processes: Processes,
    ) -> None:
        self.model, self.vector, self.algorithm = policy.model, vector, algorithm
        self.seen, self.processes = seen, processes
        samples_B, mask_BT = seen.batch.samples_B, seen.batch.mask_BT
        number = int((mask_BT & samples_B[:, None]).sum())
        share_B = samples_B.double() / max(number, 1)
        head = policy.model.get_output_embeddings()
        assert head is not None
        assert isinstance(head.weight, Tensor)
        token_bytes = len(head.weight) * vector.dtype.itemsize
        packs = packing.pack(
            seen.groups,
            min(tokens_per_micro, max(LOGIT_BYTES // token_bytes, 1)),
            shared=False,
            width=mask_BT.shape[1],
            alone_above=longest_together(policy.model.config),
        )
        mine = packs[processes.rank :: processes.size]
        self.packs = [(p, share_B[p.rows_R][p.row_M.to(share_B.device)]) for p in mine]
        """With each token's share of the mean: 0 for those of demonstrations."""

    def logits(self, pack: Pack, at_P: Tensor) -> Tensor:
        """[M, V] at each scored token, over its row's temperature."""
        device = at_P.device
        inputs = {**pack.inputs(device), "use_cache": False}
        everything = torch.func.functional_call(self.model, self.vector.tensors(at_P), kwargs=inputs).logits
        logits_MV = everything.flatten(0, 1).index_select(0, pack.source_M.to(device)).to(at_P.dtype)
        return logits_MV / pack.temperature_M.to(logits_MV)[:, None]

    def fisher(self, at_P: Tensor) -> Product:
        """Products with F at these weights."""

        def product(v_P: Tensor) -> Tensor:
            total_P = torch.zeros_like(v_P)
            for pack, share_M in self.packs:
                total_P += fisher_product(lambda w_P, pack=pack: self.logits(pack, w_P), at_P, v_P, share_M)
            return self.processes.sum(total_P)

        return product

    @torch.no_grad()
    def compare(self, old_P: Tensor, new_P: Tensor) -> tuple[float, float]:
        """(mean KL(old‖new), by how much the loss is lower at the new weights)."""
        distance, batch = 0.0, self.seen.batch
        old, new = (torch.zeros(2, *batch.mask_BT.shape, dtype=torch.float64, device=old_P.device) for _ in range(2))
        for pack, share_M in self.packs:
            old_MV, new_MV = (self.logits(pack, w_P).log_softmax(-1) for w_P in (old_P, new_P))
            distance += float((kl(old_MV, new_MV) * share_M).sum())
            for found_2BT, logp_MV in ((old, old_MV), (new, new_MV)):
                logp_M = logp_MV.gather(-1, pack.target_M.to(old_P.device)[:, None])[:, 0]
                entropy_M = -(logp_MV.exp() * logp_MV).sum(-1)
                found_2BT[:, pack.rows_R] = torch.stack([pack.scatter(logp_M), pack.scatter(entropy_M)]).double()
        self.processes.whole(old, new)
        distance = float(self.processes.sum(torch.tensor(distance, dtype=torch.float64)))
        return distance, self._loss(*old) - self._loss(*new)

    def _loss(self, logp_BT: Tensor, entropy_BT: Tensor) -> float:
        return loss_value(logp_BT, replace(self.seen.batch, entropy_BT=entropy_BT), self.algorithm).item()


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

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        *,
        tokens_per_micro: int,
        entropy: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        assert algorithm.step is not None, f"{algorithm.name} has no trust region"
        self.policy, self.algorithm, self.region = policy, algorithm, algorithm.step
        self.tokens_per_micro, self.entropy, self.processes = tokens_per_micro, entropy, processes
        self.vector = _Vector(policy.model)

    def update(self, minibatch: Minibatch) -> Update:
        """One step; GroError before any weight changes where something is not finite.

        Logged are `trust_region/kl` and `trust_region/improvement` of the step taken, both 0 where none was, and
        whether one was: `trust_region/accepted`.  A gradient of 0, as from equal rewards, asks for none.
        """
        seen = accumulate(
            self.policy,
            self.algorithm,
            minibatch,
            self.tokens_per_micro,
            entropy=self.entropy,
            processes=self.processes,
        )
        ascent_P = -self.processes.sum(self.vector.gradient())
        observed = seen.observed(self.algorithm)
        weights = fault_in_weights(self.vector.named)
        self.processes.raise_together(fault_in_loss(observed) or (f"{weights}; {KEPT}" if weights else None))
        norm = ascent_P.norm().item()
        if not math.isfinite(norm):
            worst = self.vector.broken(ascent_P)
            raise GroError(f"the gradient is not finite (first in {worst!r}); {KEPT}. {ADVICE}")
        trial, residual = Trial(0.0, 0.0, 0.0, 0), 0.0
        if norm > 0:
            with _differentiable(self.policy.model):
                trial, residual = self._step(seen, ascent_P)
        metrics = observed | {
            "grad_norm": norm,
            "trust_region/kl": trial.kl,
            "trust_region/improvement": trial.improvement,
            "trust_region/backtracks": float(trial.backtracks),
            "trust_region/accepted": float(trial.scale > 0),
            "trust_region/cg_residual": residual,
        }
        return Update(metrics, seen.groups, seen.batch, seen.logp_BT, seen.entropy_BT, seen.c_BT)

    def _step(self, seen: Seen, ascent_P: Tensor) -> tuple[Trial, float]:
        """(what was done, the residual of conjugate gradient)."""
        at_P = self.vector.weights()
        here = _Distributions(self.policy, self.vector, self.algorithm, seen, self.tokens_per_micro, self.processes)
        fisher, damping = here.fisher(at_P), self.region.damping
        x_P, residual = conjugate_gradient(lambda v_P: fisher(v_P) + damping * v_P, ascent_P, self.region.cg_steps)
        curved = x_P.dot(fisher(x_P)).item()
        if not 0 < curved < math.inf:
            raise GroError(
                f"{self.algorithm.name}: the trust region sets no length: xᵀFx is {curved:.3g} along the direction of "
                "conjugate gradient, expected a finite number above 0 (0: the gradient moves no distribution at the "
                "samples' tokens); no weight was changed"
            )
        step_P = longest_step(x_P, curved, self.region.delta)
        trial = backtrack(lambda scale: here.compare(at_P, at_P + scale * step_P), self.region)
        if trial.scale:
            self.vector.adopt(at_P + trial.scale * step_P)
        return trial, residual
