"""What credits share: the protocol, rewards with their KL penalty, and who is compared with whom."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gro.objective.groups import same_group
from gro.types import Batch

State = dict[str, Any]

EQUAL = 1e-6
"""Rewards of a group closer than this × max(1, max|R|) are equal: the advantage is exactly 0, never rounding noise."""


class Credit(Protocol):
    @property
    def symbol(self) -> str: ...

    @property
    def group_size(self) -> int:
        """Fewest scored completions per prompt with which it means anything."""
        ...

    @property
    def reads(self) -> frozenset[str]:
        """What the batch must hold: 'old', 'ref', 'values', 'greedy'."""
        ...

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]: ...


def scored_rows(batch: Batch) -> Tensor:
    """bool [B]: samples that have a reward and at least one trained token."""
    scored_B = batch.samples_B & batch.mask_BT.any(1)
    return scored_B if batch.reward_B is None else scored_B & ~batch.reward_B.isnan()


def rewards(batch: Batch) -> Tensor:
    """[B], 0 where there is none."""
    if batch.reward_B is None:
        raise ValueError("this credit needs rewards; the batch has no reward_B")
    return batch.reward_B.nan_to_num(0.0)


def kl_BT(batch: Batch) -> Tensor:
    """[B, T] k1 = ℓ_old − ℓ_ref, 0 outside the mask."""
    if batch.old_BT is None or batch.ref_BT is None:
        raise ValueError("a KL penalty in the reward needs old_BT and ref_BT")
    return (batch.old_BT - batch.ref_BT).masked_fill(~batch.mask_BT, 0.0)


def penalised(batch: Batch, kl: float) -> Tensor:
    """[B] R − β Σ_t k1."""
    reward_B = rewards(batch)
    return reward_B - kl * kl_BT(batch).sum(1).to(reward_B) if kl else reward_B


def token_rewards(batch: Batch, kl: float) -> Tensor:
    """[B, T] −β k1 at every token, and R at the last."""
    reward_B = rewards(batch)
    place_BT = batch.mask_BT.cumsum(1)
    last_BT = batch.mask_BT & (place_BT == place_BT[:, -1:])
    rewards_BT = torch.where(last_BT, reward_B[:, None], reward_B.new_zeros(()))
    return rewards_BT - kl * kl_BT(batch).to(rewards_BT) if kl else rewards_BT


def to_go(rewards_BT: Tensor) -> Tensor:
    """[B, T] Σ_{k≥t} r_k."""
    return rewards_BT.flip(1).cumsum(1).flip(1)


def members(batch: Batch) -> tuple[Tensor, Tensor]:
    """(bool [B] scored rows, bool [B, B] who shares whose prompt among them); refuses prompts with one sample."""
    scored_B = scored_rows(batch)
    same_BB = same_group(batch)
    samples_B = (same_BB & batch.samples_B[None, :]).sum(1)
    lonely_B = batch.samples_B & (samples_B == 1)
    if bool(lonely_B.any()):
        group = int(batch.group_B[lonely_B][0])
        raise ValueError(
            f"a group baseline needs at least 2 completions per prompt; {int(lonely_B.sum())} prompts have 1 "
            f"(the first is group {group})"
        )
    return scored_B, same_BB & scored_B[None, :]


def spread(values_B: Tensor, members_BB: Tensor) -> tuple[Tensor, Tensor]:
    """(max − min, max|·|) of each row's group."""
    high_B = values_B[None, :].masked_fill(~members_BB, -torch.inf).amax(1)
    low_B = values_B[None, :].masked_fill(~members_BB, torch.inf).amin(1)
    return (high_B - low_B).nan_to_num(0.0, 0.0, 0.0), torch.maximum(high_B.abs(), low_B.abs()).nan_to_num(
        0.0, 0.0, 0.0
    )


def equal(values: Tensor) -> bool:
    """Whether numbers (at least one) count as equal."""
    return bool(values.max() - values.min() <= EQUAL * values.abs().max().clamp(min=1))


def in_groups(advantage_B: Tensor, values_B: Tensor, scored_B: Tensor, members_BB: Tensor) -> Tensor:
    """[B, 1]: 0 for groups of equal rewards and for rows without one."""
    spread_B, size_B = spread(values_B, members_BB)
    equal_B = spread_B <= EQUAL * size_B.clamp(min=1)
    return advantage_B.masked_fill(equal_B | ~scored_B, 0.0)[:, None]


class Folds:
    """A credit that reads old and ref log-probs where it folds a KL penalty into the reward."""

    kl: float
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"old", "ref"}) if self.kl else frozenset()
