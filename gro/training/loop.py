"""The one loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gro.errors import GroError
from gro.objective import Algorithm
from gro.objective.credit import State
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.training.adapting import adapt
from gro.training.batching import Minibatch, collate
from gro.training.critic import CriticUpdate
from gro.training.finite import fault_in_weights, in_step
from gro.training.learner import Learner, Update
from gro.training.prepare import Reference, prepare
from gro.training.processes import ALONE, Processes
from gro.training.recording import Recorder, StepResult
from gro.training.settings import Portions
from gro.types import Group


class Source(Protocol):
    """Where groups come from: files, rollouts, or a mixture."""

    @property
    def observed(self) -> Mapping[str, float]:
        """Metrics of all that the latest `take` saw, also of what it gave no one to learn from."""
        ...

    def take(self, step: int) -> list[Group]:
        """The groups to learn from at this step."""
        ...

    def receive(self, policy: Policy, step: int) -> None:
        """The policy was updated; rollouts from now on are its."""
        ...

    def state(self) -> dict[str, Any]:
        """What is no function of the step, in plain values, as a resumed run needs it."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        ...


@dataclass(frozen=True, slots=True)
class Warmup:
    """The first steps of a run, in which others learn: a critic before the policy moves."""

    steps: int = 0
    learners: Sequence[Learner] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """What an earlier attempt at the run has done."""

    steps: int = 0
    state: Mapping[str, float] = field(default_factory=dict)
    """The loop's numbers after them: moving baselines, factors of terms, coefficients."""


def train(
    policy: Policy,
    source: Source,
    algorithm: Algorithm,
    learners: Sequence[Learner],
    portions: Portions,
    recorder: Recorder,
    *,
    reference: Reference | None = None,
    critic: Critic | None = None,
    warmup: Warmup = Warmup(),
    length_limit: int | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    stops: Callable[[int], bool] = lambda step: False,
    resumed: Resumed = Resumed(),
    keep: Callable[[int, State], None] = lambda step, state: None,
    waited: Callable[[], float] = lambda: 0.0,
    processes: Processes = ALONE,
) -> None:
    """Trains the policy in place: take groups, prepare what the algorithm reads, update, record.

    critic: whose values the credit reads.  length_limit: most tokens a completion may have.  evaluate: held-out
    metrics of the policy as it is, measured every `portions.eval_every` steps and at the end.  stops: asked after every
    step whether it is the last.  resumed: what an earlier attempt has done.  keep: told after every step but the last,
    with the loop's own state, so that a later attempt can go on.  waited: seconds so far in which the source
    waited for people, which are not the step's own.  processes: with whom it learns; all have the same groups and come
    to the same numbers.
    """
    state = dict(resumed.state)
    if resumed.steps:
        source.receive(policy, resumed.steps - 1)
    for step in range(resumed.steps, portions.steps):
        start, before = time.perf_counter(), waited()
        with in_step(step + 1):
            groups = source.take(step)
        waiting = waited() - before
        rollout = time.perf_counter() - start - waiting
        with in_step(step + 1, groups):
            minibatch, state = prepare(
                collate(groups, length_limit=length_limit, device=policy.device),
                policy,
                reference,
                algorithm,
                state,
                tokens_per_micro=portions.micro_tokens,
                updates=portions.updates_per_step,
                critic=critic,
                processes=processes,
            )
        learning = warmup.learners if step < warmup.steps else learners
        parts = min(portions.minibatches, len(groups))
        updates = list(_passes(minibatch, learning, replace(portions, minibatches=parts), step))
        state, moved = adapt(
            minibatch,
            updates,
            policy,
            algorithm,
            state,
            tokens_per_micro=portions.micro_tokens,
            processes=processes,
        )
        source.receive(policy, step)
        if reference is not None and portions.refresh_reference and (step + 1) % portions.refresh_reference == 0:
            reference.refresh(policy)
        seconds = time.perf_counter() - start - waiting
        observed = {**source.observed, **moved}
        recorder.step(step + 1, StepResult(minibatch, updates, rollout, seconds, observed, waiting))
        due = step + 1 == portions.steps or (portions.eval_every and (step + 1) % portions.eval_every == 0)
        if due:
            recorder.evaluated(step + 1, evaluate)
        last = stops(step + 1) or step + 1 == portions.steps
        if last and not due:
            recorder.evaluated(step + 1, evaluate)
        if not last:
            keep(step + 1, state)
        if recorder.ended is not None:
            raise GroError(recorder.ended)
        if last:
            break
    processes.raise_together(fault_in_weights(policy.trained()) or None)  # which the last update may have left


def _passes(
    minibatch: Minibatch, learners: Sequence[Learner], portions: Portions, step: int
) -> Iterator[Update | CriticUpdate]:
    """The updates on a batch, until one is declined."""
    for epoch in range(portions.epochs):
        for part in minibatch.epoch(epoch, portions.minibatches, portions.seed, step):
            for learner in learners:
                with in_step(step + 1, part.groups):
                    update = learner.update(part)
                yield update
                if isinstance(update, Update) and update.declined:
                    return
