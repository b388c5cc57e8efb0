"""What moves from step to step with how far the policy came: the factors of terms, and a credit's own coefficient."""

from __future__ import annotations

from collections.abc import Sequence

from gro.objective import Algorithm
from gro.objective.credit import State
from gro.policy.policy import Policy
from gro.training.batching import Minibatch
from gro.training.critic import CriticUpdate
from gro.training.learner import Update
from gro.training.metrics import kl_to
from gro.training.prepare import scales, score
from gro.training.processes import ALONE, Processes


def adapt(
    minibatch: Minibatch,
    updates: Sequence[Update | CriticUpdate],
    policy: Policy,
    algorithm: Algorithm,
    state: State,
    *,
    tokens_per_micro: int,
    processes: Processes = ALONE,
) -> tuple[State, dict[str, float]]:
    """(the state with the terms' factors for the next step, metrics), after the updates on this batch.

    Factors move with the mean KL(old‖θ) per token of the samples, which are scored once more where a factor does move.
    What the credit has adapted itself is only reported.  Where the policy rested, as in a critic's warm-up, nothing
    moves.
    """
    metrics = {name: state[name] for name in ("kl_coefficient",) if name in state}
    first = next((update for update in updates if isinstance(update, Update)), None)
    if not algorithm.adapts or first is None:
        return state, metrics
    batch = minibatch.batch
    old_BT = first.batch.old_BT if batch.old_BT is None else batch.old_BT  # of a single update, on all of the batch
    assert old_BT is not None
    logp_BT = score(policy, minibatch.groups, tokens_per_micro, processes=processes)
    samples_BT = batch.mask_BT & batch.samples_B[:, None]
    kl = kl_to(logp_BT, old_BT, samples_BT) if bool(samples_BT.any()) else 0.0
    moved = algorithm.adapted(scales(algorithm, state), kl)
    state = state | {f"scale.{k}": scale for k, scale in enumerate(moved)}
    adaptive = next(s for s, t in zip(moved, algorithm.terms, strict=True) if getattr(t, "adapt", None) is not None)
    return state, metrics | {"policy/kl": kl, "kl_scale": adaptive}
