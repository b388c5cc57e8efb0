"""The critic's learner: values are regressed on the credit's returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gro.errors import GroError
from gro.objective import Algorithm
from gro.objective import Critic as Regression
from gro.policy.critic import Critic
from gro.policy.packing import Pack
from gro.training.batching import Minibatch
from gro.training.descent import Descent
from gro.training.finite import fault_in_rows, whole_story
from gro.training.memory import naming_the_batch
from gro.training.processes import ALONE, Processes
from gro.training.settings import Optimization
from gro.types import Batch, Group


@dataclass(frozen=True, slots=True, eq=False)
class CriticUpdate:
    """What an update of the critic did."""

    metrics: dict[str, float]


class Fit:
    """One minibatch's regression: its coefficients pack by pack, then what it shows."""

    def __init__(self, critic: Critic, regression: Regression, batch: Batch, groups: Sequence[Group]) -> None:
        self.critic, self.regression = critic, regression
        self.batch, self.groups = batch, groups
        self.count = regression.count(batch)
        self.values_BT = torch.zeros(batch.mask_BT.shape, dtype=critic.head.weight.dtype, device=batch.mask_BT.device)
        self.fault: str | None = None
        """What is wrong with this process's values."""

    def push(self, values_RT: Tensor, pack: Pack) -> Tensor:
        """−∂loss/∂V of the pack's values, which are remembered, and so is the first that is not finite."""
        index_R = pack.rows_R
        self.values_BT[index_R] = values_RT.detach()
        push_RT = self.regression.coefficients(values_RT, self.batch.rows(index_R), self.count)
        for name, found_RT in (("the critic's values", values_RT.detach()), ("the critic's coefficients", push_RT)):
            inside_RT = torch.ones_like(found_RT, dtype=torch.bool)
            fault = fault_in_rows(name, found_RT, inside_RT, pack.rows, self.groups)
            if fault and self.fault is None:
                self.fault = whole_story(fault, self.critic.trunk)
        return push_RT

    def metrics(self) -> dict[str, float]:
        """Of all processes' rows, before the update."""
        return observe_critic(self.values_BT, self.batch, self.regression)


class CriticLearner:
    """Moves the critic alone: its head, and a trunk that is not the policy's."""

    def __init__(
        self,
        critic: Critic,
        algorithm: Algorithm,
        optimization: Optimization,
        *,
        total_updates: int,
        tokens_per_micro: int,
        processes: Processes = ALONE,
    ) -> None:
        assert algorithm.critic is not None, f"{algorithm.name} has no critic"
        self.critic, self.regression = critic, algorithm.critic
        self.tokens_per_micro, self.processes = tokens_per_micro, processes
        self.descent = Descent(critic.parameters, optimization, total_updates=total_updates, processes=processes)

    def update(self, minibatch: Minibatch) -> CriticUpdate:
        """One step; GroError before any weight changes where something is not finite."""
        fit, processes = Fit(self.critic, self.regression, minibatch.batch, minibatch.groups), self.processes
        width = minibatch.batch.mask_BT.shape[1]
        passes = processes.passes(self.critic.trunk, minibatch.groups, self.tokens_per_micro, width=width)
        asked = False
        for number, (pack, counts) in enumerate(passes, 1):
            self.critic.trunk.last_backward(number == len(passes))
            with naming_the_batch(pack):
                values_RT = self.critic.values(pack)
                push_RT = fit.push(values_RT, pack) if counts else torch.zeros_like(values_RT)
                asked = asked or bool(push_RT.any())
                if processes.lockstep or bool(push_RT.any()):
                    values_RT.backward(-push_RT)
        processes.whole(fit.values_BT)
        try:
            processes.raise_together(fit.fault)
        except GroError:
            self.descent.abandon()
            raise
        if processes.lockstep and not processes.any(asked):  # alone, there would be no gradient: no weight moves
            self.descent.abandon()
        moved = self.descent.step()
        names = {"grad_norm": "critic/grad_norm", "learning_rate": "critic/learning_rate"}
        return CriticUpdate(fit.metrics() | {names[name]: value for name, value in moved.items()})


@torch.no_grad()
def value(
    critic: Critic,
    groups: Sequence[Group],
    tokens_per_micro: int,
    *,
    shape: torch.Size,
    processes: Processes = ALONE,
) -> Tensor:
    """[B, T] the critic's values before every trained token, without gradient; `shape` is that of the batch's mask."""
    weight = critic.head.weight
    values_BT = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    for pack, counts in processes.passes(critic.trunk, groups, tokens_per_micro, width=shape[1]):
        with naming_the_batch(pack):
            values_RT = critic.values(pack)
        if counts:
            values_BT[pack.rows_R] = values_RT
    processes.whole(values_BT)
    return values_BT


def observe_critic(values_BT: Tensor, batch: Batch, regression: Regression) -> dict[str, float]:
    """How well values fit the returns.  `batch` holds the returns, and the values from before its first update.

    Explained variance is 1 − Var(return − V)/Var(return): 1 is perfect, 0 no better than a constant.
    """
    metrics = {"critic/loss": regression.loss_value(values_BT, batch).item()}
    inside_BT = regression.inside_BT(batch)
    if not bool(inside_BT.any()):
        return metrics
    assert batch.returns_BT is not None
    values, returns = values_BT[inside_BT].double(), batch.returns_BT[inside_BT].double()
    metrics |= {"critic/values_mean": values.mean().item(), "critic/returns_mean": returns.mean().item()}
    spread = returns.var(correction=0).item()
    if spread > 0:
        metrics["critic/explained_variance"] = 1 - (returns - values).var(correction=0).item() / spread
    if regression.clip is not None and batch.values_BT is not None:
        moved = (values - batch.values_BT[inside_BT].double()).abs()
        metrics["critic/clip_fraction"] = (moved > regression.clip).double().mean().item()
    return metrics
