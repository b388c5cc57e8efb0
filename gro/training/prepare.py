"""What an update needs besides rollouts: log-probs of old and reference policy, values, advantages.

Nothing here is configured: what is prepared is what the algorithm's slots say they read.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gro.objective import Algorithm
from gro.objective.credit import State
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.training.batching import Minibatch
from gro.training.critic import value
from gro.training.finite import refuse_rewards, refuse_rows
from gro.training.memory import naming_the_batch
from gro.training.processes import ALONE, Processes
from gro.types import Completion, Group, rows_of


@torch.no_grad()
def score(
    policy: Policy,
    groups: Sequence[Group],
    tokens_per_micro: int,
    *,
    width: int | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """[B, T] log-probs of every trained token, without gradient.  T is `width`, or that of the longest completion."""
    if width is None:
        width = max((len(c.ids) for _, _, c in rows_of(groups)), default=0)
    logp_BT = blank(policy, (len(rows_of(groups)), width))
    for pack, counts in processes.passes(policy, groups, tokens_per_micro, width=width):
        with naming_the_batch(pack):
            logp_RT = policy.logp(pack).logp_RT
        if counts:
            logp_BT[pack.rows_R] = logp_RT
    processes.whole(logp_BT)
    return logp_BT


def blank(policy: Policy, shape: Sequence[int]) -> Tensor:
    """Zeros where and in which precision the policy's log-probs are: float32, or float64 where its weights are."""
    return torch.zeros(*shape, dtype=torch.promote_types(policy.model.dtype, torch.float32), device=policy.device)


class Reference:
    """The frozen starting policy, or a later one.  Completions from files are scored once and remembered."""

    def __init__(self, policy: Policy, processes: Processes = ALONE) -> None:
        self.policy, self.processes = policy, processes
        self.refreshed = False
        """Whether it is no longer the policy that it was made with."""
        self._known: dict[bytes, Tensor] = {}

    def refresh(self, policy: Policy) -> None:
        """From now on the reference is a frozen copy of this policy as it is."""
        self.policy = policy.snapshot()
        self.refreshed = True
        self._known.clear()

    def score(self, groups: Sequence[Group], tokens_per_micro: int) -> Tensor:
        """[B, T] log-probs under the reference."""
        unknown = [g for g in groups if any(_key(g, c) not in self._known for c in g.completions)]
        fresh = [
            replace(g, completions=tuple(c for c in g.completions if _key(g, c) not in self._known)) for g in unknown
        ]
        fresh_BT = score(self.policy, fresh, tokens_per_micro, processes=self.processes)
        found = {_key(g, c): fresh_BT[b, : len(c.ids)] for b, (_, g, c) in enumerate(rows_of(fresh))}
        rows = rows_of(groups)
        width = max((len(c.ids) for _, _, c in rows), default=0)
        out_BT = blank(self.policy, (len(rows), width))
        for b, (_, g, c) in enumerate(rows):
            key = _key(g, c)
            logp_T = self._known[key] if key in self._known else found[key]
            out_BT[b, : len(c.ids)] = logp_T
            if c.finish == "given" and c.role != "mismatch":  # whose prompt is another one in every epoch
                self._known[key] = logp_T.clone()
        return out_BT

    def known(self) -> dict[str, Tensor]:
        """What is remembered, as a resumed run needs it: scored once more, in other company, the last bits may differ.

        keys uint8 [n, 16], lengths int64 [n], logp: all log-probs one after the other.
        """
        keys = [torch.frombuffer(bytearray(key), dtype=torch.uint8) for key in self._known]
        values = list(self._known.values())
        return {
            "keys": torch.stack(keys) if keys else torch.zeros(0, _KEY_BYTES, dtype=torch.uint8),
            "lengths": torch.tensor([len(value) for value in values], dtype=torch.int64),
            "logp": torch.cat(values).cpu() if values else torch.zeros(0),
        }

    def remember(self, known: Mapping[str, Tensor]) -> None:
        """Remembers what `known` gave, and nothing else."""
        keys = [bytes(key.tolist()) for key in known["keys"]]
        values = known["logp"].to(self.policy.device).split(known["lengths"].tolist())
        self._known = dict(zip(keys, values, strict=True))


_KEY_BYTES = 16


def _key(group: Group, completion: Completion) -> bytes:
    """Of the token ids: 16 bytes, so that nothing else collides with it in practice."""
    ids = (*group.prompt.ids, -1, *completion.ids)
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=_KEY_BYTES).digest()


def prepare(
    minibatch: Minibatch,
    policy: Policy,
    reference: Reference | None,
    algorithm: Algorithm,
    state: State,
    *,
    tokens_per_micro: int,
    updates: int,
    critic: Critic | None = None,
    processes: Processes = ALONE,
) -> tuple[Minibatch, State]:
    """Adds log-probs and values where they are read, then the advantage, computed once for all updates.

    updates: how many optimizer steps will be taken on this batch.  With a single one, old *is* the current policy,
    and the update takes it from its own forward pass (ratio exactly 1) unless the credit reads it beforehand.
    """
    groups, batch = minibatch.groups, minibatch.batch
    refuse_rewards(groups)
    if "ref" in algorithm.reads:
        assert reference is not None, f"{algorithm.name} reads the reference"
        ref_BT = reference.score(groups, tokens_per_micro)
        refuse_rows("the reference's log-probs", ref_BT, batch, groups)
        batch = replace(batch, ref_BT=ref_BT)
    if "old" in algorithm.credit.reads or (algorithm.looks_back and updates > 1):
        old_BT = score(policy, groups, tokens_per_micro, processes=processes)
        refuse_rows("the old policy's log-probs", old_BT, batch, groups, policy)
        batch = replace(batch, old_BT=old_BT)
    if "values" in algorithm.reads:
        assert critic is not None, f"{algorithm.name} reads a critic's values"
        values_BT = value(critic, groups, tokens_per_micro, shape=batch.mask_BT.shape, processes=processes)
        refuse_rows("the critic's values", values_BT, batch, groups, critic.trunk)
        batch = replace(batch, values_BT=values_BT)
    advantage_BX, after = algorithm.credit(batch, state)
    refuse_rows("advantages", advantage_BX, batch, groups)
    if "values" in algorithm.reads:
        returns_BT = algorithm.credit.returns(batch, state)  # type: ignore[attr-defined]
        refuse_rows("returns", returns_BT, batch, groups)
        batch = replace(batch, returns_BT=returns_BT)
    batch = replace(batch, advantage_BX=advantage_BX, scales_K=scales(algorithm, state))
    return Minibatch(groups, batch), after


def scales(algorithm: Algorithm, state: State) -> tuple[float, ...] | None:
    """The factor of every term as earlier steps have left it; None where none moves."""
    return tuple(state.get(f"scale.{k}", 1.0) for k in range(len(algorithm.terms))) if algorithm.adapts else None
