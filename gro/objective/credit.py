"""Credit: rewards → advantages, computed once per update on the global batch.

`credit(batch, state) → (advantage_BX, state)` is pure; `state` is a dict of plain numbers that the run keeps (a
moving baseline, say).  Advantages are [B, 1], or [B, T] where tokens are credited separately.  Rows without a reward
(failed, pending) and rows of length 0 have advantage 0 and are left out of every mean.  Demonstrations are not
compared with samples: their advantage is 0, but for `NoBaseline`, where it is the reward if they carry one.

A credit that reads the critic's values also says what the critic learns: `returns(batch, state) → returns_BT`, with the
state before the call.

Where a credit takes `kl` = β > 0, it first folds −β(ℓ_old − ℓ_ref) (k1) into the reward: as a sequence total before
a group's baseline, as a token's reward-to-go elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gro.objective.groups import same_group, sum_over
from gro.objective.values import positive
from gro.types import ROLES, Batch

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


def _rewards(batch: Batch) -> Tensor:
    """[B], 0 where there is none."""
    if batch.reward_B is None:
        raise ValueError("this credit needs rewards; the batch has no reward_B")
    return batch.reward_B.nan_to_num(0.0)


def _kl_BT(batch: Batch) -> Tensor:
    """[B, T] k1 = ℓ_old − ℓ_ref, 0 outside the mask."""
    if batch.old_BT is None or batch.ref_BT is None:
        raise ValueError("a KL penalty in the reward needs old_BT and ref_BT")
    return (batch.old_BT - batch.ref_BT).masked_fill(~batch.mask_BT, 0.0)


def _penalised(batch: Batch, kl: float) -> Tensor:
    """[B] R − β Σ_t k1."""
    reward_B = _rewards(batch)
    return reward_B - kl * _kl_BT(batch).sum(1).to(reward_B) if kl else reward_B


def _token_rewards(batch: Batch, kl: float) -> Tensor:
    """[B, T] −β k1 at every token, and R at the last."""
    reward_B = _rewards(batch)
    place_BT = batch.mask_BT.cumsum(1)
    last_BT = batch.mask_BT & (place_BT == place_BT[:, -1:])
    rewards_BT = torch.where(last_BT, reward_B[:, None], reward_B.new_zeros(()))
    return rewards_BT - kl * _kl_BT(batch).to(rewards_BT) if kl else rewards_BT


def _to_go(rewards_BT: Tensor) -> Tensor:
    """[B, T] Σ_{k≥t} r_k."""
    return rewards_BT.flip(1).cumsum(1).flip(1)


def _members(batch: Batch) -> tuple[Tensor, Tensor]:
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


def _spread(values_B: Tensor, members_BB: Tensor) -> tuple[Tensor, Tensor]:
    """(max − min, max|·|) of each row's group."""
    high_B = values_B[None, :].masked_fill(~members_BB, -torch.inf).amax(1)
    low_B = values_B[None, :].masked_fill(~members_BB, torch.inf).amin(1)
    return (high_B - low_B).nan_to_num(0.0, 0.0, 0.0), torch.maximum(high_B.abs(), low_B.abs()).nan_to_num(
        0.0, 0.0, 0.0
    )


def _equal(values: Tensor) -> bool:
    """Whether numbers (at least one) count as equal."""
    return bool(values.max() - values.min() <= EQUAL * values.abs().max().clamp(min=1))


def _group(advantage_B: Tensor, values_B: Tensor, scored_B: Tensor, members_BB: Tensor) -> Tensor:
    """[B, 1]: 0 for groups of equal rewards and for rows without one."""
    spread_B, size_B = _spread(values_B, members_BB)
    equal_B = spread_B <= EQUAL * size_B.clamp(min=1)
    return advantage_B.masked_fill(equal_B | ~scored_B, 0.0)[:, None]


class _Folds:
    """A credit that reads old and ref log-probs where it folds a KL penalty into the reward."""

    kl: float
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"old", "ref"}) if self.kl else frozenset()


@dataclass(frozen=True)
class NoBaseline(_Folds):
    """A = R: the reward as it is."""

    kl: float = 0.0
    symbol = "R"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.reward_B is None:  # demonstrations only
            return torch.zeros(len(batch.group_B), 1, device=batch.group_B.device), state
        return _penalised(batch, self.kl).masked_fill(batch.mask_BT.sum(1) == 0, 0.0)[:, None], state


@dataclass(frozen=True)
class Constant(_Folds):
    """A = R − b."""

    baseline: float
    kl: float = 0.0
    symbol = "R − b"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_B = _penalised(batch, self.kl) - self.baseline
        return advantage_B.masked_fill(~scored_rows(batch), 0.0)[:, None], state


@dataclass(frozen=True)
class MovingAverage(_Folds):
    """A = R − the mean of *earlier* steps' mean rewards; at the first step, minus the mean of the batch's others.

    Williams 1992's reinforcement baseline.  With a KL penalty, R is the reward-to-go of each token.
    State: steps seen and the mean of their mean rewards.
    """

    kl: float = 0.0

    @property
    def symbol(self) -> str:
        return f"{'R_to-go' if self.kl else 'R'} − mean of earlier steps"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = _rewards(batch)
        steps, mean = state.get("steps", 0), state.get("mean", 0.0)
        count = int(scored_B.sum())
        if count == 0:
            return torch.zeros_like(reward_B)[:, None], state
        now = float(reward_B[scored_B].double().mean())
        if steps:
            baseline_B = torch.full_like(reward_B, mean)
        elif _equal(reward_B[scored_B]):  # also a single completion, of which there is nothing to leave out
            baseline_B = reward_B
        else:
            baseline_B = (now * count - reward_B) / (count - 1)
        to_go_BX = _to_go(_token_rewards(batch, self.kl)) if self.kl else reward_B[:, None]
        advantage_BX = (to_go_BX - baseline_B[:, None]).masked_fill(~scored_B[:, None], 0.0)
        return advantage_BX, {**state, "steps": steps + 1, "mean": (mean * steps + now) / (steps + 1)}


@dataclass(frozen=True)
class BatchMean(_Folds):
    """A = R − the batch's mean reward; with `std`, divided by its standard deviation (ddof, + eps)."""

    kl: float = 0.0
    std: bool = False
    ddof: int = 0
    eps: float = 1e-8
    symbol = "R − batch mean"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = _penalised(batch, self.kl)
        count = int(scored_B.sum())
        if count <= self.ddof:
            return torch.zeros_like(reward_B)[:, None], state
        advantage_B = reward_B - reward_B[scored_B].mean()
        if self.std:
            advantage_B = advantage_B / (reward_B[scored_B].std(correction=self.ddof) + self.eps)
        everybody_BB = scored_B[None, :].expand(len(reward_B), -1)
        return _group(advantage_B, reward_B, scored_B, everybody_BB), state


@dataclass(frozen=True)
class TokenZScore(_Folds):
    """The reward-to-go of every token, z-scored over all completion *tokens* of the batch.

    REINFORCE++ (Hu et al. 2025, eq. 4–6): ddof 0, variance floored.  With `group_baseline`, the group's mean reward
    is subtracted first (REINFORCE++-baseline).
    """

    kl: float = 0.01
    group_baseline: bool = False
    floor: float = 1e-8
    symbol = "token z-score of R_to-go"

    @property
    def group_size(self) -> int:  # type: ignore[override]
        return 2 if self.group_baseline else 1

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        if self.group_baseline:
            centred_B1, _ = GroupMean()(batch, {})
            batch = replace(batch, reward_B=centred_B1[:, 0])
        to_go_BT = _to_go(_token_rewards(batch, self.kl))
        inside_BT = batch.mask_BT & scored_B[:, None]
        if not bool(inside_BT.any()):
            return torch.zeros_like(to_go_BT), state
        tokens = to_go_BT[inside_BT]
        if _equal(tokens):
            return torch.zeros_like(to_go_BT), state
        std = tokens.var(correction=0).clamp(min=self.floor).sqrt()
        return ((to_go_BT - tokens.mean()) / std).masked_fill(~inside_BT, 0.0), state


@dataclass(frozen=True)
class GroupMean(_Folds):
    """A = R − mean of the group (Dr. GRPO)."""

    kl: float = 0.0
    symbol = "R − group mean"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = _members(batch)
        reward_B = _penalised(batch, self.kl)
        mean_B = sum_over(members_BB, reward_B) / members_BB.sum(1).clamp(min=1)
        return _group(reward_B - mean_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class GroupZScore(_Folds):
    """A = (R − mean)/(std + eps) of the group (GRPO, Shao et al. 2024, sec. 4.1.2; GRO, eq. 11: ddof 0)."""

    kl: float = 0.0
    ddof: int = 0
    eps: float = 1e-6
    symbol = "(R − group mean)/(group std + ε)"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = _members(batch)
        reward_B = _penalised(batch, self.kl)
        count_B = members_BB.sum(1)
        mean_B = sum_over(members_BB, reward_B) / count_B.clamp(min=1)
        square_B = sum_over(members_BB, (reward_B - mean_B).square())
        std_B = (square_B / (count_B - self.ddof).clamp(min=1)).sqrt()
        # Where std is 0 the rewards are equal and _group returns 0; the division must only not be 0/0.
        advantage_B = (reward_B - mean_B) / (std_B + self.eps).masked_fill(std_B + self.eps == 0, 1.0)
        return _group(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class LeaveOneOut(_Folds):
    """A = R − mean of the group's others (RLOO, Ahmadian et al. 2024, eq. 7)."""

    kl: float = 0.0
    symbol = "R − mean of the others"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = _members(batch)
        reward_B = _penalised(batch, self.kl)
        others_B = sum_over(members_BB, reward_B) - reward_B
        advantage_B = reward_B - others_B / (members_BB.sum(1) - 1).clamp(min=1)
        return _group(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class LeaveOneOutZScore(_Folds):
    """A = (R − mean)/(std + eps), both of the group's *others*, ddof 1; not divided where that std is 0 or undefined.

    NeMo-RL's: of a group of two there is one other, so nothing to divide by.
    """

    kl: float = 0.0
    eps: float = 1e-6
    symbol = "(R − mean of the others)/(std of the others + ε)"
    group_size = 2

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = _members(batch)
        reward_B = _penalised(batch, self.kl)
        others_BB = members_BB & ~torch.eye(len(reward_B), dtype=torch.bool, device=reward_B.device)
        count_B = others_BB.sum(1)
        mean_B = sum_over(others_BB, reward_B) / count_B.clamp(min=1)
        square_BB = (reward_B[None, :] - mean_B[:, None]).square().masked_fill(~others_BB, 0.0)
        std_B = (square_BB.sum(1) / (count_B - 1).clamp(min=1)).sqrt()
        spread_B, size_B = _spread(reward_B, others_BB)
        alike_B = (count_B < 2) | (spread_B <= EQUAL * size_B.clamp(min=1))
        advantage_B = (reward_B - mean_B) / torch.where(alike_B, 1.0, std_B + self.eps)
        return _group(advantage_B, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class GroupSoftmax(_Folds):
    """A = G·softmax(R/β) − 1 over the group: exp(R/β) with the 1/Z of GRO, eq. 33, so that it is centred."""

    beta: float = 1.0
    kl: float = 0.0
    symbol = "G·softmax(R/β) − 1"
    group_size = 2

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B, members_BB = _members(batch)
        reward_B = _penalised(batch, self.kl)
        logit_BB = (reward_B / self.beta)[None, :].masked_fill(~members_BB, -torch.inf)
        share_B = (reward_B / self.beta - torch.logsumexp(logit_BB, 1)).nan_to_num(0.0, 0.0, 0.0).exp()
        return _group(members_BB.sum(1) * share_B - 1, reward_B, scored_B, members_BB), state


@dataclass(frozen=True)
class Greedy(_Folds):
    """A = R − R(greedy), then −β k1 of the sample only (ReMax, Li et al. 2023, eq. 6): to-go, or `immediate`."""

    kl: float = 0.0
    immediate: bool = False
    symbol = "R − R(greedy)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"greedy"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.greedy_B is None:
            raise ValueError("this credit subtracts the greedy completion's reward; the batch has no greedy_B")
        scored_B = scored_rows(batch) & ~batch.greedy_B.isnan()
        advantage_BX = (_rewards(batch) - batch.greedy_B.nan_to_num(0.0))[:, None]
        if self.kl:
            penalty_BT = -self.kl * _kl_BT(batch)
            advantage_BX = advantage_BX + (penalty_BT if self.immediate else _to_go(penalty_BT))
        return advantage_BX.masked_fill(~scored_B[:, None], 0.0), state


@dataclass(frozen=True)
class Labels:
    """A = ±1: better or worse than its group's mean; a row alone has the sign of its reward.  A tie is 0.

    So is a row whose companions' rewards have failed: of a score, without another, nobody knows whether it is good.
    """

    symbol = "±1"
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scored_B = scored_rows(batch)
        reward_B = _rewards(batch)
        members_BB = same_group(batch) & scored_B[None, :]
        count_B = members_BB.sum(1)
        mean_B = torch.where(count_B > 1, sum_over(members_BB, reward_B) / count_B.clamp(min=1), 0.0)
        spread_B, size_B = _spread(reward_B, members_BB)
        gap_B, equal_B = reward_B - mean_B, EQUAL * size_B.clamp(min=1)
        # Of two, each is half the spread from the mean; of more, one can be at the mean while the others are not.
        tie_B = (count_B > 1) & ((spread_B <= equal_B) | (gap_B.abs() <= equal_B / 2))
        samples_B = batch.samples_B & batch.mask_BT.any(1)
        left_B = (count_B == 1) & ((same_group(batch) & samples_B[None, :]).sum(1) > 1)
        return gap_B.sign().masked_fill(tie_B | left_B | ~scored_B, 0.0)[:, None], state


@dataclass(frozen=True)
class Gae(_Folds):
    """Generalised advantage estimation on a critic's values (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γV_{t+1} − V_t, A_t = Σ_k (γλ)^k δ_{t+k}, V_{T+1} = 0, also after truncation unless `bootstrap`, which
    takes the last value for the one after it.  `whiten`: z-score over the batch's tokens.
    """

    gamma: float = 1.0
    lam: float = 0.95
    kl: float = 0.0
    bootstrap: bool = False
    whiten: bool = False
    symbol = "GAE(γ, λ)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"values"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.values_BT is None:
            raise ValueError("GAE needs the critic's values; the batch has no values_BT")
        scored_B = scored_rows(batch)
        rewards_BT = _token_rewards(batch, self.kl)
        values_BT = batch.values_BT.to(rewards_BT)
        ahead_B = values_BT.new_zeros(len(values_BT))
        next_B = torch.zeros_like(ahead_B)
        if self.bootstrap and batch.truncated_B is not None:
            place_BT = batch.mask_BT.cumsum(1)
            last_BT = batch.mask_BT & (place_BT == place_BT[:, -1:])
            next_B = values_BT.masked_fill(~last_BT, 0.0).sum(1) * batch.truncated_B
        advantage_BT = torch.zeros_like(values_BT)
        for t in reversed(range(values_BT.shape[1])):
            inside_B = batch.mask_BT[:, t]  # untrained tokens are no states of the process
            delta_B = rewards_BT[:, t] + self.gamma * next_B - values_BT[:, t]
            ahead_B = torch.where(inside_B, delta_B + self.gamma * self.lam * ahead_B, ahead_B)
            next_B = torch.where(inside_B, values_BT[:, t], next_B)
            advantage_BT[:, t] = ahead_B
        inside_BT = batch.mask_BT & scored_B[:, None]
        if self.whiten and int(inside_BT.sum()) > 1:
            tokens = advantage_BT[inside_BT]
            advantage_BT = (advantage_BT - tokens.mean()) / (tokens.std(correction=0) + 1e-8)
        return advantage_BT.masked_fill(~inside_BT, 0.0), state

    def returns(self, batch: Batch, state: State) -> Tensor:
        """[B, T] A + V, the λ-return that the critic learns."""
        assert batch.values_BT is not None
        advantage_BT, _ = replace(self, whiten=False)(batch, {})
        return advantage_BT + batch.values_BT.to(advantage_BT).masked_fill(~batch.mask_BT, 0.0)


@dataclass(frozen=True)
class StateValue(_Folds):
    """A = R − V(x), V(x) the critic's value before the first token (A-LoL, Baheti et al. 2023, sec. 3)."""

    kl: float = 0.0
    symbol = "R − V(x)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {"values"}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.values_BT is None:
            raise ValueError("this credit subtracts the critic's value; the batch has no values_BT")
        reward_B = _penalised(batch, self.kl)
        first_BT = batch.mask_BT & (batch.mask_BT.cumsum(1) == 1)
        value_B = batch.values_BT.to(reward_B).masked_fill(~first_BT, 0.0).sum(1)
        return (reward_B - value_B).masked_fill(~scored_rows(batch), 0.0)[:, None], state

    def returns(self, batch: Batch, state: State) -> Tensor:
        """[B, T] the completion's reward at every token."""
        return _penalised(batch, self.kl)[:, None].expand(batch.mask_BT.shape).masked_fill(~batch.mask_BT, 0.0)


@dataclass(frozen=True)
class Versus:
    """A = +1 for demonstrations and −1 for the policy's own samples; no rewards (SPIN, Chen et al. 2024)."""

    symbol = "+1 demonstration, −1 sample"
    group_size = 1

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        if batch.role_B is None:
            raise ValueError("demonstrations are told from samples by role_B; the batch has none")
        target_B = batch.role_B == ROLES.index("target")
        side_B = target_B.float() - batch.samples_B.float()
        return side_B.masked_fill(~batch.mask_BT.any(1), 0.0)[:, None], state


@dataclass(frozen=True)
class Normalised:
    """A/c, c² the running mean of the batches' mean A² (MARWIL, Wang et al. 2018, sec. 3.2).

    State: the mean square, beside what the inner credit keeps.
    """

    inner: Credit
    rate: float = 0.01
    """How much a new batch counts; the first one counts alone."""

    @property
    def symbol(self) -> str:
        return f"({self.inner.symbol})/c"

    @property
    def group_size(self) -> int:
        return self.inner.group_size

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_BX, state = self.inner(batch, state)
        inside_BX = scored_rows(batch)[:, None] & (batch.mask_BT if advantage_BX.shape[1] > 1 else True)
        if not bool(inside_BX.any()):
            return advantage_BX, state
        now = float(advantage_BX[inside_BX].double().square().mean())
        square = now if "square" not in state else state["square"] + self.rate * (now - state["square"])
        return advantage_BX / max(square, EQUAL**2) ** 0.5, {**state, "square": square}

    def returns(self, batch: Batch, state: State) -> Tensor:
        """The inner credit's: values are not normalised."""
        return self.inner.returns(batch, state)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class KlAfterwards:
    """The inner credit of the bare reward, then −β Σ_k≥t k1 on every token: the penalty has no baseline.

    OpenRLHF's order for group baselines; k1 is cut off at ±`limit`.
    """

    inner: Credit
    kl: float = 0.01
    limit: float | None = None

    @property
    def symbol(self) -> str:
        return f"{self.inner.symbol} − {self.kl:g}·Σ_k≥t(ℓ_old − ℓ_ref)"

    @property
    def group_size(self) -> int:
        return self.inner.group_size

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads | (frozenset({"old", "ref"}) if self.kl else frozenset())

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_BX, state = self.inner(batch, state)
        if not self.kl:
            return advantage_BX, state
        k1_BT = _kl_BT(batch)
        k1_BT = k1_BT if self.limit is None else k1_BT.clamp(-self.limit, self.limit)
        advantage_BT = advantage_BX - self.kl * _to_go(k1_BT).to(advantage_BX)
        return advantage_BT.masked_fill(~scored_rows(batch)[:, None], 0.0), state


@dataclass(frozen=True)
class AdaptiveKl:
    """The inner credit, its β moved so that the KL to the reference comes to `target` nats per completion.

    β ← β(1 + clip(KL/target − 1, ±0.2)·n/horizon), n the completions of the batch (Ziegler et al. 2019, sec. 2.2).
    The KL is that of this step's samples; the new β holds from the next step on.  State: β.
    """

    inner: Credit
    target: float
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        positive(kl=getattr(self.inner, "kl", 0.0), target=self.target, horizon=self.horizon)

    @property
    def symbol(self) -> str:
        return self.inner.symbol

    @property
    def group_size(self) -> int:
        return self.inner.group_size

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        beta = state.get("kl_coefficient", self.inner.kl)  # type: ignore[attr-defined]
        advantage_BX, state = replace(self.inner, kl=beta)(batch, state)  # type: ignore[type-var]
        scored_B = scored_rows(batch)
        number = int(scored_B.sum())
        if number:
            measured = float(_kl_BT(batch).sum(1)[scored_B].double().mean())
            error = min(max(measured / self.target - 1, -0.2), 0.2)
            beta *= 1 + error * number / self.horizon
        return advantage_BX, {**state, "kl_coefficient": beta}

    def returns(self, batch: Batch, state: State) -> Tensor:
        """The inner credit's, under the β of this step."""
        beta = state.get("kl_coefficient", self.inner.kl)  # type: ignore[attr-defined]
        return replace(self.inner, kl=beta).returns(batch, state)  # type: ignore[attr-defined, type-var]
