"""The policy's learner: one optimizer step per minibatch, whatever the micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gro.errors import GroError
from gro.objective import Algorithm, coefficients, counts, entropy_coefficients, loss_value
from gro.policy.critic import Critic
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.training.batching import Minibatch
from gro.training.critic import CriticUpdate, Fit
from gro.training.descent import Descent
from gro.training.metrics import APPROXKL, describe_clipping, length_correlation, observe
from gro.training.prepare import blank, score
from gro.training.processes import ALONE, Processes
from gro.training.settings import Optimization
from gro.types import Batch, Group, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What an update of the policy saw and did."""

    metrics: dict[str, float]
    groups: tuple[Group, ...]
    batch: Batch
    """With the old log-probs, whether prepared or just computed."""
    logp_BT: Tensor
    """Log-probs before the update."""
    entropy_BT: Tensor | None
    c_BT: Tensor
    """Coefficient of each token's log-prob in the gradient."""
    declined: bool = False
    """No weight was changed: the policy is further from the old one than the algorithm's `max_kl`."""


class Learner(Protocol):
    """Something that is improved on a minibatch: the policy, a critic."""

    def update(self, minibatch: Minibatch) -> Update | CriticUpdate:
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
    fit: Fit | None = None
    """What a critic on the policy's own trunk was pushed by in the same passes."""

    def observed(self, algorithm: Algorithm, processes: Processes = ALONE) -> dict[str, float]:
        """The loss and what else shows, of the rows of all processes."""
        together = processes.gather(self.batch, self.logp_BT, self.c_BT)
        batch, (logp_BT, c_BT) = together.batch, together.more
        metrics = {"loss": loss_value(logp_BT, batch, algorithm).item()}
        # Of the old policy nothing is known in later passes where the algorithm does not look back.
        known = batch if algorithm.looks_back else replace(batch, old_BT=None)
        metrics |= observe(logp_BT, batch.entropy_BT, c_BT, known) | describe_clipping(logp_BT, batch, algorithm)
        metrics |= length_correlation(logp_BT, batch, algorithm)
        return metrics | (self.fit.metrics() if self.fit is not None else {})


def accumulate(
    policy: Policy,
    algorithm: Algorithm,
    minibatch: Minibatch,
    tokens_per_micro: int,
    *,
    entropy: bool = False,
    critic: Critic | None = None,
    processes: Processes = ALONE,
) -> Seen:
    """Adds the gradient of the minibatch's loss to the weights' `.grad`; GroError where something is not finite.

    A micro-batch is a pack of whole groups under a token budget.  Coefficients come from its own detached log-probs,
    and shares from the counts of the whole minibatch, so the budget cannot change the result.  Where the algorithm
    looks further than a pack holds (a group larger than the budget, a mean over the update), the coefficients of the
    minibatch come from a first pass without gradient.

    critic: one that shares the policy's trunk learns in the same passes.  processes: counts, and what looks across
    groups, are those of all of them; the gradient is this process's part of the sum.
    """
    groups, batch = minibatch.groups, minibatch.batch
    batch = replace(batch, counts_K=processes.total(counts(batch, algorithm)))
    shape = batch.mask_BT.shape  # of the whole batch: this minibatch may hold none of its longest rows
    packs = policy.packs(groups, tokens_per_micro, width=shape[1])
    logp_BT, c_BT = blank(policy, shape), blank(policy, shape)
    e_BT = entropy_coefficients(batch, algorithm)
    entropy_BT = blank(policy, shape) if entropy or e_BT is not None else None
    fit = None
    if critic is not None:
        assert algorithm.critic is not None
        fit = Fit(critic, algorithm.critic, batch, processes)
    two_passes = _two_passes(algorithm, packs)
    if two_passes:
        logp_BT = score(policy, groups, tokens_per_micro, width=shape[1])
        c_BT = _coefficients(logp_BT, _with_old(batch, logp_BT), algorithm, processes)
    for pack in packs:
        scored = policy.logp(pack, entropy=entropy_BT is not None)
        index_R = pack.rows_R
        logp_RT = scored.logp_RT.detach()
        logp_BT[index_R] = logp_RT
        if not two_passes:
            c_BT[index_R] = coefficients(logp_RT, _with_old(batch.rows(index_R), logp_RT), algorithm).to(c_BT)
        _refuse_non_finite(policy, pack, minibatch, logp_RT, c_BT[index_R])
        pushes = [(scored.logp_RT, c_BT[index_R])]
        if entropy_BT is not None:
            assert scored.entropy_RT is not None
            entropy_BT[index_R] = scored.entropy_RT.detach()
            pushes += [(scored.entropy_RT, e_BT[index_R])] if e_BT is not None else []
        if fit is not None:
            values_RT = fit.critic.read(scored.hidden_MH, pack)
            pushes.append((values_RT, fit.push(values_RT, pack)))
        _backward(pushes)
    return Seen(groups, replace(_with_old(batch, logp_BT), entropy_BT=entropy_BT), logp_BT, entropy_BT, c_BT, fit)


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
        critic: Critic | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """`critic`: one on the policy's own trunk, which learns with it; any other has a learner of its own."""
        assert critic is None or critic.shared
        self.policy, self.algorithm, self.critic = policy, algorithm, critic
        self.tokens_per_micro, self.entropy, self.processes = tokens_per_micro, entropy, processes
        parameters = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
        parameters |= {f"critic.{n}": p for n, p in critic.parameters.items()} if critic is not None else {}
        self.descent = Descent(parameters, optimization, total_updates=total_updates, processes=processes)

    def update(self, minibatch: Minibatch) -> Update:
        """One step, or none where the policy has come too far; GroError before any weight changes where something is
        not finite."""
        seen = accumulate(
            self.policy,
            self.algorithm,
            minibatch,
            self.tokens_per_micro,
            entropy=self.entropy,
            critic=self.critic,
            processes=self.processes,
        )
        metrics = seen.observed(self.algorithm, self.processes)
        limit = self.algorithm.max_kl
        declined = limit is not None and metrics.get(APPROXKL, 0.0) > limit
        if declined:
            self.descent.abandon()
        else:
            metrics |= self.descent.step()
        return Update(metrics, seen.groups, seen.batch, seen.logp_BT, seen.entropy_BT, seen.c_BT, declined)


def _coefficients(logp_BT: Tensor, batch: Batch, algorithm: Algorithm, processes: Processes) -> Tensor:
    """The whole minibatch's; with the rows of all processes where the algorithm looks over the update."""
    if algorithm.scope != "batch":
        return coefficients(logp_BT, batch, algorithm)
    together = processes.gather(batch, logp_BT)
    return together.own(coefficients(together.more[0], together.batch, algorithm))


def _backward(pushes: list[tuple[Tensor, Tensor]]) -> None:
    """One pass for all outputs, each with −∂loss/∂output; none where nothing is asked for (groups of equal rewards)."""
    asked = [(output_RT, -push_RT.to(output_RT)) for output_RT, push_RT in pushes if push_RT.any()]
    if asked:
        torch.autograd.backward([output_RT for output_RT, _ in asked], [grad_RT for _, grad_RT in asked])


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
