"""The policy's learner: one optimizer step per minibatch, whatever the micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gro.errors import GroError
from gro.objective import Algorithm, coefficients, counts, loss_value
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.training.batching import Minibatch
from gro.training.metrics import observe
from gro.training.prepare import score
from gro.training.settings import Optimization
from gro.types import Batch, Group, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What an update saw and did."""

    metrics: dict[str, float]
    groups: tuple[Group, ...]
    batch: Batch
    """With the old log-probs, whether prepared or just computed."""
    logp_BT: Tensor
    """Log-probs before the update."""
    entropy_BT: Tensor | None
    c_BT: Tensor
    """Coefficient of each token's log-prob in the gradient."""


class Learner(Protocol):
    """Something that is improved on a minibatch: the policy, a critic."""

    def update(self, minibatch: Minibatch) -> Update:
        """One optimizer step."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the passes of `accumulate` saw; the fields are those of `Update`."""

    groups: tuple[Group, ...]
    batch: Batch
    logp_BT: Tensor
    entropy_BT: Tensor | None
    c_BT: Tensor

    def update(self, algorithm: Algorithm, metrics: dict[str, float]) -> Update:
        """The update, where the weights moved as these metrics tell."""
        loss = loss_value(self.logp_BT, self.batch, algorithm).item()
        observed = observe(self.logp_BT, self.entropy_BT, self.c_BT, self.batch)
        everything = {"loss": loss} | metrics | observed
        return Update(everything, self.groups, self.batch, self.logp_BT, self.entropy_BT, self.c_BT)


def accumulate(
    policy: Policy, algorithm: Algorithm, minibatch: Minibatch, tokens_per_micro: int, *, entropy: bool = False
) -> Seen:
    """Adds the gradient of the minibatch's loss to the weights' `.grad`; GroError where something is not finite.

    A micro-batch is a pack of whole groups under a token budget.  Coefficients come from its own detached log-probs,
    and shares from the counts of the whole minibatch, so the budget cannot change the result.  Where the algorithm
    looks further than a pack holds (a group larger than the budget, a mean over the update), the coefficients of the
    minibatch come from a first pass without gradient.
    """
    groups, batch = minibatch.groups, minibatch.batch
    batch = replace(batch, counts_K=counts(batch, algorithm))
    width = batch.mask_BT.shape[1]  # of the whole batch: this minibatch may hold none of its longest rows
    packs = policy.packs(groups, tokens_per_micro, width=width)
    logp_BT, c_BT = torch.zeros(2, *batch.mask_BT.shape, device=batch.mask_BT.device)
    entropy_BT = torch.zeros_like(logp_BT) if entropy else None
    two_passes = _two_passes(algorithm, packs)
    if two_passes:
        logp_BT = score(policy, groups, tokens_per_micro, width=width)
        c_BT = coefficients(logp_BT, _with_old(batch, logp_BT), algorithm)
    for pack in packs:
        scored = policy.logp(pack, entropy=entropy)
        index_R = pack.rows_R
        logp_RT = scored.logp_RT.detach().float()
        logp_BT[index_R] = logp_RT
        if entropy_BT is not None and scored.entropy_RT is not None:
            entropy_BT[index_R] = scored.entropy_RT.float()
        if not two_passes:
            c_BT[index_R] = coefficients(logp_RT, _with_old(batch.rows(index_R), logp_RT), algorithm)
        _refuse_non_finite(policy, pack, minibatch, logp_RT, c_BT[index_R])
        if c_BT[index_R].any():  # groups of equal rewards ask for nothing
            scored.logp_RT.backward(-c_BT[index_R].to(scored.logp_RT))
    return Seen(groups, _with_old(batch, logp_BT), logp_BT, entropy_BT, c_BT)


class PolicyLearner:
    """Moves the policy along the algorithm's weighted log-likelihood gradient by AdamW."""

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        optimization: Optimization,
        *,
        total_updates: int,
        tokens_per_micro: int,
        entropy: bool = True,
    ) -> None:
        self.policy, self.algorithm, self.optimization = policy, algorithm, optimization
        self.total_updates, self.tokens_per_micro, self.entropy = total_updates, tokens_per_micro, entropy
        self.updates = 0
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.eps,
            weight_decay=optimization.weight_decay,
            fused=True,
        )

    def update(self, minibatch: Minibatch) -> Update:
        """One step; GroError before any weight changes where something is not finite."""
        seen = accumulate(self.policy, self.algorithm, minibatch, self.tokens_per_micro, entropy=self.entropy)
        return seen.update(self.algorithm, self._step())

    def _step(self) -> dict[str, float]:
        rate = self.optimization.learning_rate * self.optimization.factor(self.updates, self.total_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optimization.max_grad_norm or math.inf).item()
        if not math.isfinite(norm):
            worst = next(n for n, p in self.policy.model.named_parameters() if _broken(p.grad))
            self.optimizer.zero_grad(set_to_none=True)
            raise GroError(f"the gradient is not finite (first in {worst!r}); no weight was changed")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return {"grad_norm": norm, "learning_rate": rate}


def _two_passes(algorithm: Algorithm, packs: list[Pack]) -> bool:
    return algorithm.scope == "batch" or (algorithm.scope == "group" and any(p.partial for p in packs))


def _refuse_non_finite(policy: Policy, pack: Pack, minibatch: Minibatch, logp_RT: Tensor, c_RT: Tensor) -> None:
    for name, value_RT in (("log-probs", logp_RT), ("coefficients", c_RT)):
        bad_R = ~torch.isfinite(value_RT).all(1)
        if bad_R.any():
            row = pack.rows[int(bad_R.nonzero()[0])]
            key = rows_of(minibatch.groups)[row][1].prompt.key
            policy.model.zero_grad(set_to_none=True)
            raise GroError(
                f"{name} of row {row} (prompt {key}) are not finite; {int(bad_R.sum())} rows of this micro-batch "
                "are affected and no weight was changed. A lower learning_rate or max_grad_norm usually helps"
            )


def _with_old(batch: Batch, logp_BT: Tensor) -> Batch:
    """With one update per batch the old policy is the current one: its log-probs are those just computed."""
    return batch if batch.old_BT is not None else replace(batch, old_BT=logp_BT)


def _broken(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(gradient).all())
