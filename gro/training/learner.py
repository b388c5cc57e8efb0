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
from gro.training.finite import fault_in_loss, fault_in_rows, whole_story
from gro.training.memory import naming_the_batch
from gro.training.metrics import APPROXKL, describe_clipping, length_correlation, observe
from gro.training.prepare import blank, score
from gro.training.processes import ALONE, Processes
from gro.training.settings import Optimization
from gro.types import Batch, Group


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

    def observed(self, algorithm: Algorithm) -> dict[str, float]:
        """The loss and what else shows."""
        batch, logp_BT, c_BT = self.batch, self.logp_BT, self.c_BT
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

    critic: one that shares the policy's trunk learns in the same passes.  processes: what is seen is that of all of
    them; the gradient is this process's part of the sum.
    """
    groups, batch = minibatch.groups, minibatch.batch
    batch = replace(batch, counts_K=counts(batch, algorithm))
    shape = batch.mask_BT.shape  # of the whole batch: this minibatch may hold none of its longest rows
    passes = processes.passes(policy, groups, tokens_per_micro, width=shape[1])
    logp_BT, c_BT = blank(policy, shape), blank(policy, shape)
    e_BT = entropy_coefficients(batch, algorithm)
    entropy_BT = blank(policy, shape) if entropy or e_BT is not None else None
    fit = None
    if critic is not None:
        assert algorithm.critic is not None
        fit = Fit(critic, algorithm.critic, batch, groups)
    two_passes = processes.any(_two_passes(algorithm, [pack for pack, _ in passes]))
    if two_passes:
        known_BT = score(policy, groups, tokens_per_micro, width=shape[1], processes=processes)
        c_BT = coefficients(known_BT, _with_old(batch, known_BT), algorithm)
    fault: str | None = None
    asked = False
    for number, (pack, counted) in enumerate(passes, 1):
        policy.last_backward(number == len(passes))
        with naming_the_batch(pack):
            scored = policy.logp(pack, entropy=entropy_BT is not None)
            if not counted:
                _backward([(scored.logp_RT, torch.zeros_like(scored.logp_RT))], always=True)
                continue
            index_R = pack.rows_R
            logp_RT = scored.logp_RT.detach()
            logp_BT[index_R] = logp_RT
            if not two_passes:
                c_BT[index_R] = coefficients(logp_RT, _with_old(batch.rows(index_R), logp_RT), algorithm).to(c_BT)
            fault = fault or _not_finite(policy, pack, minibatch, logp_RT, c_BT[index_R])
            pushes = [(scored.logp_RT, c_BT[index_R])]
            if entropy_BT is not None:
                assert scored.entropy_RT is not None
                entropy_BT[index_R] = scored.entropy_RT.detach()
                pushes += [(scored.entropy_RT, e_BT[index_R])] if e_BT is not None else []
            if fit is not None:
                values_RT = fit.critic.read(scored.hidden_MH, pack)
                pushes.append((values_RT, fit.push(values_RT, pack)))
            asked = _backward(pushes, always=processes.lockstep) or asked
    processes.whole(logp_BT, *(tensor for tensor in (entropy_BT, fit and fit.values_BT) if tensor is not None))
    if not two_passes:
        processes.whole(c_BT)
    try:
        processes.raise_together(fault or (fit.fault if fit is not None else None))
    except GroError:
        policy.model.zero_grad(set_to_none=True)
        raise
    if processes.lockstep and not processes.any(asked):  # alone, there would be no gradient: no weight moves
        policy.model.zero_grad(set_to_none=True)
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
        metrics = seen.observed(self.algorithm)
        if fault := fault_in_loss(metrics):
            self.descent.abandon()
            raise GroError(fault)
        limit = self.algorithm.max_kl
        declined = limit is not None and metrics.get(APPROXKL, 0.0) > limit
        if declined:
            self.descent.abandon()
        else:
            metrics |= self.descent.step()
        return Update(metrics, seen.groups, seen.batch, seen.logp_BT, seen.entropy_BT, seen.c_BT, declined)


def _backward(pushes: list[tuple[Tensor, Tensor]], *, always: bool = False) -> bool:
    """One pass for all outputs, each with −∂loss/∂output; none where nothing is asked for (groups of equal rewards).

    always: where other processes wait for this one's pass.  Returns whether anything was asked for.
    """
    asked = [bool(push_RT.any()) for _, push_RT in pushes]
    made = [pair for pair, yes in zip(pushes, asked, strict=True) if always or yes]
    if made:
        grads = [-push_RT.to(output_RT) for output_RT, push_RT in made]
        torch.autograd.backward([output_RT for output_RT, _ in made], grads)
    return any(asked)


def _two_passes(algorithm: Algorithm, packs: list[Pack]) -> bool:
    return algorithm.scope == "batch" or (algorithm.scope == "group" and any(p.partial for p in packs))


def _not_finite(policy: Policy, pack: Pack, minibatch: Minibatch, logp_RT: Tensor, c_RT: Tensor) -> str | None:
    """What of the pack's rows is not finite, in words; None where all is."""
    for name, value_RT in (("log-probs", logp_RT), ("coefficients", c_RT)):
        fault = fault_in_rows(name, value_RT, torch.ones_like(value_RT, dtype=torch.bool), pack.rows, minibatch.groups)
        if fault:
            return whole_story(fault, policy)
    return None


def _with_old(batch: Batch, logp_BT: Tensor) -> Batch:
    """With one update per batch the old policy is the current one: its log-probs are those just computed."""
    return batch if batch.old_BT is not None else replace(batch, old_BT=logp_BT)
