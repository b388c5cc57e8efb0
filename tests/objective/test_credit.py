"""Credit, by hand: every expected number in this file was worked out on paper."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gro.objective.credit import (
    AdaptiveKl,
    BatchMean,
    Constant,
    Credit,
    Gae,
    Greedy,
    GroupMean,
    GroupSoftmax,
    GroupZScore,
    Labels,
    LeaveOneOut,
    LeaveOneOutZScore,
    MovingAverage,
    NoBaseline,
    Normalised,
    StateValue,
    TokenZScore,
    Versus,
)
from gro.types import ROLES, Batch

NAN = math.nan
GROUP_CREDITS = [
    GroupMean(),
    GroupZScore(),
    GroupZScore(ddof=1),
    LeaveOneOut(),
    LeaveOneOutZScore(),
    GroupSoftmax(),
]


def real(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def batch_of(rewards, groups=None, mask=None, **more) -> Batch:
    """A batch of completions with these rewards; one token each and one group unless said."""
    rows = len(rewards)
    mask_BT = torch.ones(rows, 1, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    group_B = torch.tensor(groups if groups is not None else [0] * rows)
    return Batch(mask_BT, group_B, reward_B=real(*rewards), **more)


def advantages(credit: Credit, batch: Batch, state: dict | None = None) -> list:
    """As nested lists; one number per completion where there is one."""
    advantage_BX, _ = credit(batch, state or {})
    return advantage_BX.squeeze(1).tolist()


# --- one number per completion ---------------------------------------------------------------------------------------


def test_constant_and_no_baseline():
    batch = batch_of([2.0, NAN, -1.0])
    assert advantages(Constant(0.5), batch) == [1.5, 0.0, -1.5]
    assert advantages(NoBaseline(), batch) == [2.0, 0.0, -1.0]


def test_kl_is_folded_in_before_the_baseline_as_a_total():
    kl = {"old_BT": real([-1.0, -2.0, 9.0], [-1.0, 9.0, 9.0]), "ref_BT": real([-1.5, -2.5, NAN], [-3.0, NAN, NAN])}
    batch = batch_of([1.0, 1.0], mask=[[1, 1, 0], [1, 0, 0]], **kl)
    # k1 totals 1 and 2, so R̃ = .9 and .8 at β = .1
    assert advantages(NoBaseline(kl=0.1), batch) == pytest.approx([0.9, 0.8])
    assert advantages(Constant(0.5, kl=0.1), batch) == pytest.approx([0.4, 0.3])
    assert advantages(GroupMean(kl=0.1), batch) == pytest.approx([0.05, -0.05])
    assert advantages(LeaveOneOut(kl=0.1), batch) == pytest.approx([0.1, -0.1])
    assert advantages(GroupZScore(kl=0.1, eps=0), batch) == pytest.approx([1.0, -1.0])
    assert advantages(BatchMean(kl=0.1), batch) == pytest.approx([0.05, -0.05])
    softmax = 2 / (1 + math.exp(-0.1)) - 1
    assert advantages(GroupSoftmax(kl=0.1), batch) == pytest.approx([softmax, -softmax])


def test_batch_mean_and_its_z_score():
    batch = batch_of([3.0, 1.0, NAN, 2.0], groups=[0, 0, 1, 1])
    assert advantages(BatchMean(), batch) == [1.0, -1.0, 0.0, 0.0]
    std = math.sqrt(2 / 3)
    assert advantages(BatchMean(std=True, eps=0), batch) == pytest.approx([1 / std, -1 / std, 0, 0])
    assert advantages(BatchMean(std=True, ddof=1, eps=1.0), batch) == pytest.approx([0.5, -0.5, 0, 0])
    assert advantages(BatchMean(std=True, ddof=1), batch_of([3.0])) == [0.0]


def test_groups_do_not_see_each_other():
    batch = batch_of([1.0, 5.0, 3.0, 7.0, 0.0], groups=[0, 1, 0, 1, 0])
    third = 1 / 3
    assert advantages(GroupMean(), batch) == pytest.approx([-third, -1, 5 * third, 1, -4 * third])
    assert advantages(LeaveOneOut(), batch) == pytest.approx([-0.5, -2, 2.5, 2, -2])


@pytest.mark.fault("N4")
@pytest.mark.parametrize("credit", GROUP_CREDITS, ids=repr)
def test_one_member_groups_are_refused_with_the_numbers(credit: Credit):
    with pytest.raises(
        ValueError, match=r"at least 2 completions per prompt; 2 prompts have 1 \(the first is group 4\)"
    ):
        credit(batch_of([1.0, 0.0, 1.0, 0.0], groups=[3, 3, 4, 7]), {})


@pytest.mark.fault("N4")
@pytest.mark.parametrize("credit", GROUP_CREDITS, ids=repr)
def test_a_group_left_with_one_reward_gives_nothing(credit: Credit):
    assert advantages(credit, batch_of([0.7, NAN, NAN])) == [0.0, 0.0, 0.0]
    untrained = batch_of([0.7, 0.1], mask=[[1], [0]])
    assert advantages(credit, untrained) == [0.0, 0.0]
    assert advantages(credit, batch_of([NAN, NAN])) == [0.0, 0.0]


@pytest.mark.fault("N4")
@pytest.mark.parametrize("credit", [*GROUP_CREDITS, BatchMean(std=True), TokenZScore(kl=0), MovingAverage()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reward", [0.1, -1e6 / 3, 1e-12])
def test_equal_rewards_are_exactly_zero(credit: Credit, dtype: torch.dtype, reward: float):
    batch = batch_of([0.0] * 7)
    batch = replace(batch, reward_B=torch.full((7,), reward, dtype=dtype))
    assert advantages(credit, batch) == [0.0] * 7
    assert batch.reward_B is not None
    batch.reward_B[3] *= 1 + 1e-7  # still equal for all purposes
    assert advantages(credit, batch) == [0.0] * 7


@pytest.mark.parametrize(
    "credit", [*GROUP_CREDITS, BatchMean(), TokenZScore(kl=0), MovingAverage(), Labels()], ids=repr
)
def test_other_roles_do_not_disturb_the_samples(credit: Credit):
    samples = batch_of([1.0, 0.0, 0.5, 2.0], groups=[0, 0, 1, 1])
    roles = torch.tensor([ROLES.index(r) for r in ("sample", "target", "sample", "mismatch", "sample", "sample")])
    mixed = batch_of([1.0, 9.0, 0.0, -9.0, 0.5, 2.0], groups=[0, 0, 0, 1, 1, 1], role_B=roles)
    alone, _ = credit(samples, {})
    among, _ = credit(mixed, {})
    torch.testing.assert_close(among[[0, 2, 4, 5]], alone)
    assert among[[1, 3]].flatten().tolist() == [0.0, 0.0]


def test_a_mean_of_earlier_steps():
    credit, state = MovingAverage(), {}
    first, state = credit(batch_of([1.0, 0.0, 0.5]), state)
    # leave-one-out over the whole batch, whatever the groups
    assert first[:, 0].tolist() == pytest.approx([0.75, -0.75, 0.0])
    assert state == {"steps": 1, "mean": 0.5}
    second, state = credit(batch_of([2.0, NAN]), state)
    assert second[:, 0].tolist() == [1.5, 0.0]
    assert state == {"steps": 2, "mean": 1.25}
    failed, same = credit(batch_of([NAN, NAN]), state)
    assert failed[:, 0].tolist() == [0.0, 0.0]
    assert same == state, "a step without a reward teaches the baseline nothing"


def test_the_first_step_of_one_completion_has_no_advantage():
    assert advantages(MovingAverage(), batch_of([3.0])) == [0.0]


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, -1.0], [1, -1]),
        ([-0.5, 0.25], [-1, 1]),
        ([0.4, 0.4], [0, 0]),  # a tie
        ([3.0], [1]),  # alone: the sign of the reward
        ([-2.0], [-1]),
        ([0.0], [0]),
        ([1.0, NAN], [0, 0]),  # nothing left to be better than
        ([NAN, NAN], [0, 0]),
        ([1.0, 0.0, 0.2], [1, -1, -1]),
        ([0.3, 0.1, 0.2], [1, -1, 0]),  # exactly the mean, though not in floating point
        ([1.0, 1.0, 0.0], [1, 1, -1]),
    ],
)
def test_labels(rewards, expected):
    assert advantages(Labels(), batch_of(rewards)) == expected


# --- tokens ----------------------------------------------------------------------------------------------------------

MASK = [[1, 0, 1, 0], [0, 1, 0, 0]]
"""Tokens inside completions that carry no loss."""
OLD = real([-1.0, NAN, -1.0, NAN], [NAN, -2.0, NAN, NAN])
REF = real([-1.5, NAN, -2.0, NAN], [NAN, -1.0, NAN, NAN])
"""k1 is .5 and 1 on the first completion's tokens, −1 on the second's."""


def masked(rewards=(1.0, 0.0), **more) -> Batch:
    return batch_of(rewards, mask=MASK, old_BT=OLD, ref_BT=REF, **more)


def tokens(credit: Credit, batch: Batch, state: dict | None = None) -> list[float]:
    """Of the trained tokens, in order; the others have no advantage."""
    advantage_BX, _ = credit(batch, state or {})
    advantage_BT = advantage_BX.expand(batch.mask_BT.shape)
    return advantage_BT[batch.mask_BT].tolist()


def test_moving_average_with_a_kl_penalty_to_go():
    # β .1: rewards-to-go 1 − .05 − .1 and 1 − .1 on the first completion, 0 + .1 on the second; the others' mean is
    # 0 for the first and 1 for the second at the first step, .25 afterwards.
    assert tokens(MovingAverage(kl=0.1), masked()) == pytest.approx([0.85, 0.9, 0.1 - 1.0])
    _, state = MovingAverage(kl=0.1)(masked((0.5, 0.0)), {})
    assert state == {"steps": 1, "mean": 0.25}, "the penalty is no part of the baseline"
    assert tokens(MovingAverage(kl=0.1), masked(), state) == pytest.approx([0.6, 0.65, -0.15])


def test_token_z_score_with_masks_inside_completions():
    # rewards-to-go .85, .9, .1
    to_go = [0.85, 0.9, 0.1]
    mean = sum(to_go) / 3
    std = math.sqrt(sum((x - mean) ** 2 for x in to_go) / 3)
    assert tokens(TokenZScore(kl=0.1), masked()) == pytest.approx([(x - mean) / std for x in to_go])
    # two tokens of reward 1 and one of reward 0: mean 2/3, std √2/3
    assert tokens(TokenZScore(kl=0), masked()) == pytest.approx([math.sqrt(0.5)] * 2 + [-math.sqrt(2)])
    # a group's mean first: two tokens of ½ and one of −½, so the same
    centred = TokenZScore(kl=0, group_baseline=True)
    assert tokens(centred, masked()) == pytest.approx([math.sqrt(0.5)] * 2 + [-math.sqrt(2)])
    assert tokens(TokenZScore(kl=0), masked((1.0, NAN))) == [0.0, 0.0, 0.0]


def test_the_variance_of_tokens_has_a_floor():
    # rewards 0 and 3e-5: variance 2/9 · 9e-10 = 2e-10 is below 1e-8, so divided by 1e-4
    assert tokens(TokenZScore(kl=0), masked((3e-5, 0.0))) == pytest.approx([0.1, 0.1, -0.2])


def test_greedy_with_a_kl_penalty():
    batch = masked(greedy_B=real(0.25, 0.5))
    assert tokens(Greedy(), batch) == pytest.approx([0.75, 0.75, -0.5])
    assert tokens(Greedy(kl=0.1), batch) == pytest.approx([0.6, 0.65, -0.4])
    assert tokens(Greedy(kl=0.1, immediate=True), batch) == pytest.approx([0.7, 0.65, -0.4])
    assert tokens(Greedy(), masked(greedy_B=real(NAN, 0.5))) == [0.0, 0.0, -0.5]
    assert Greedy().reads == {"greedy"}
    assert Greedy(kl=0.1).reads == {"greedy", "old", "ref"}


# --- generalised advantage estimation --------------------------------------------------------------------------------


def gae_batch(**more) -> Batch:
    """Values .2 and .4 in the first completion, .5 in the second; the rest is garbage."""
    return masked(values_BT=real([0.2, NAN, 0.4, NAN], [NAN, 0.5, NAN, NAN]), **more)


def test_gae_skips_tokens_without_loss():
    # δ = 0 + .4 − .2 and 1 − .4; the other completion 0 − .5
    assert tokens(Gae(lam=0.0), gae_batch()) == pytest.approx([0.2, 0.6, -0.5])
    assert tokens(Gae(lam=0.5), gae_batch()) == pytest.approx([0.5, 0.6, -0.5])
    # γ .5: δ = .5·.4 − .2 = 0, then + .5·.5·.6
    assert tokens(Gae(gamma=0.5, lam=0.5), gae_batch()) == pytest.approx([0.15, 0.6, -0.5])
    # β .1: δ = −.05 + .2 and −.1 + .6; the other +.1 − .5
    assert tokens(Gae(lam=0.5, kl=0.1), gae_batch()) == pytest.approx([0.15 + 0.25, 0.5, -0.4])


@pytest.mark.fault("R11")
def test_gae_bootstraps_truncated_completions_only_when_asked():
    batch = gae_batch(truncated_B=torch.tensor([True, False]))
    assert tokens(Gae(lam=0.5), batch) == pytest.approx([0.5, 0.6, -0.5])
    # the last value, .4, stands for the one after it: δ = .2 and 1 + .4 − .4
    assert tokens(Gae(lam=0.5, bootstrap=True), batch) == pytest.approx([0.7, 1.0, -0.5])


def test_gae_whitens_over_the_batchs_tokens():
    mean, raw = 0.2, [0.5, 0.6, -0.5]
    std = math.sqrt(sum((x - mean) ** 2 for x in raw) / 3)
    assert tokens(Gae(lam=0.5, whiten=True), gae_batch()) == pytest.approx([(x - mean) / std for x in raw], rel=1e-6)
    # a failed completion is not part of the statistics
    failed = tokens(Gae(lam=0.5, whiten=True), gae_batch(rewards=(1.0, NAN)))
    assert failed == pytest.approx([-1.0, 1.0, 0.0], rel=1e-5)


def test_gae_reads_values():
    assert Gae().reads == {"values"}
    assert Gae(kl=0.1).reads == {"values", "old", "ref"}
    with pytest.raises(ValueError, match="no values_BT"):
        Gae()(masked(), {})


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.floats(0, 1), st.floats(0, 1), st.integers(0, 999))
def test_gae_is_the_double_sum(length: int, gamma: float, lam: float, seed: int):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(length, generator=random, dtype=torch.float64)
    reward = 1.7
    batch = Batch(
        torch.ones(1, length, dtype=torch.bool), torch.zeros(1).long(), reward_B=real(reward), values_BT=values[None]
    )
    rewards = [0.0] * (length - 1) + [reward]
    after = [*values.tolist(), 0.0]
    delta = [rewards[t] + gamma * after[t + 1] - after[t] for t in range(length)]
    expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]
    assert Gae(gamma, lam)(batch, {})[0][0].tolist() == pytest.approx(expected)
    # With λ = 1 the values telescope: return − V
    to_go = [sum(gamma**k * rewards[t + k] for k in range(length - t)) for t in range(length)]
    expected = [g - v for g, v in zip(to_go, values.tolist(), strict=True)]
    assert Gae(gamma, 1.0)(batch, {})[0][0].tolist() == pytest.approx(expected)


def test_gae_says_what_the_critic_learns():
    # A + V of λ = ½; whitening is for the policy only
    for credit in (Gae(lam=0.5), Gae(lam=0.5, whiten=True)):
        returns_BT = credit.returns(gae_batch(), {})
        assert returns_BT[torch.tensor(MASK).bool()].tolist() == pytest.approx([0.7, 1.0, 0.0])
        assert not bool(returns_BT[~torch.tensor(MASK).bool()].any())


def test_the_value_of_the_prompt_is_the_first_tokens():
    # V(x) is .2 and .5, before the first trained token
    assert tokens(StateValue(), gae_batch()) == pytest.approx([0.8, 0.8, -0.5])
    # k1 totals 1.5 and −1, so R̃ = .85 and .1 at β = .1
    assert tokens(StateValue(kl=0.1), gae_batch()) == pytest.approx([0.65, 0.65, -0.4])
    assert tokens(StateValue(), gae_batch(rewards=(1.0, NAN))) == pytest.approx([0.8, 0.8, 0.0])
    returns_BT = StateValue(kl=0.1).returns(gae_batch(), {})
    assert returns_BT[torch.tensor(MASK).bool()].tolist() == pytest.approx([0.85, 0.85, 0.1])
    assert StateValue(kl=0.1).reads == {"values", "old", "ref"}
    with pytest.raises(ValueError, match="no values_BT"):
        StateValue()(masked(), {})


def test_normalised_divides_by_the_root_of_a_running_mean_square():
    # λ = 1: return − V is .8, .6, −.5, of mean square 1.25/3
    credit, raw = Normalised(Gae(lam=1.0), rate=0.1), [0.8, 0.6, -0.5]
    now = 1.25 / 3
    first, state = credit(gae_batch(), {})
    assert first[torch.tensor(MASK).bool()].tolist() == pytest.approx([x / math.sqrt(now) for x in raw])
    assert state == {"square": pytest.approx(now)}
    then = 1 + 0.1 * (now - 1)
    later, state = credit(gae_batch(), {"square": 1.0})
    assert later[torch.tensor(MASK).bool()].tolist() == pytest.approx([x / math.sqrt(then) for x in raw])
    assert state == {"square": pytest.approx(then)}
    _, state = credit(gae_batch(rewards=(NAN, NAN)), {"square": 1.0})
    assert state == {"square": 1.0}, "nothing was learnt of the usual size"
    # of completions, where there is one advantage for each: ±½
    assert advantages(Normalised(GroupMean()), batch_of([1.0, 0.0])) == pytest.approx([1.0, -1.0])
    assert advantages(Normalised(GroupMean()), batch_of([1.0, 1.0])) == [0.0, 0.0]
    torch.testing.assert_close(credit.returns(gae_batch(), {}), Gae(lam=1.0).returns(gae_batch(), {}))
    assert (credit.reads, Normalised(GroupMean()).group_size) == ({"values"}, 2)


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        (0.25, 1.0),  # k1 totals 1.5 and −1: .25 nats per completion
        (0.2, 1.04),  # a quarter too much counts .2, of two completions in ten
        (0.24, 1 + (0.25 / 0.24 - 1) / 5),
        (1.0, 0.96),
    ],
)
def test_an_adaptive_kl_moves_towards_its_target(target: float, factor: float):
    credit = AdaptiveKl(Gae(lam=0.5, kl=0.1), target, horizon=10.0)
    found, state = credit(gae_batch(), {})
    torch.testing.assert_close(found, Gae(lam=0.5, kl=0.1)(gae_batch(), {})[0])
    assert state == {"kl_coefficient": pytest.approx(0.1 * factor)}
    # the new strength holds from the next step on, for the returns too
    strength = state["kl_coefficient"]
    again, state = credit(gae_batch(), state)
    expected = Gae(lam=0.5, kl=strength)
    torch.testing.assert_close(again, expected(gae_batch(), {})[0])
    torch.testing.assert_close(
        credit.returns(gae_batch(), {"kl_coefficient": strength}), expected.returns(gae_batch(), {})
    )
    assert state == {"kl_coefficient": pytest.approx(0.1 * factor**2)}


def test_an_adaptive_kl_needs_something_to_adapt():
    with pytest.raises(ValueError, match="kl is 0; it must be above 0 where it adapts to a target"):
        AdaptiveKl(Gae(), 1.0)
    with pytest.raises(ValueError, match="target is 0; it must be above 0"):
        AdaptiveKl(Gae(kl=0.1), 0)
    _, state = AdaptiveKl(Gae(kl=0.1), 1.0)(gae_batch(rewards=(NAN, NAN)), {})
    assert state == {"kl_coefficient": 0.1}, "nothing was measured"


def test_versus_tells_demonstrations_from_samples():
    roles = torch.tensor([ROLES.index(r) for r in ("target", "sample", "mismatch", "target", "sample")])
    batch = batch_of([NAN, 9.0, 0.0, NAN, NAN], role_B=roles, mask=[[1], [1], [1], [0], [1]])
    assert advantages(Versus(), batch) == [1.0, -1.0, 0.0, 0.0, -1.0]
    with pytest.raises(ValueError, match="demonstrations are told from samples by role_B"):
        Versus()(batch_of([1.0]), {})


def test_a_group_baseline_before_the_tokens_z_score_needs_groups():
    assert (TokenZScore().group_size, TokenZScore(group_baseline=True).group_size) == (1, 2)
    with pytest.raises(ValueError, match="at least 2 completions per prompt"):
        TokenZScore(kl=0, group_baseline=True)(batch_of([1.0, 0.0], groups=[0, 1]), {})


# --- what is missing is named ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credit", "batch", "message"),
    [
        (GroupMean(), Batch(torch.ones(2, 1).bool(), torch.zeros(2).long()), "no reward_B"),
        (LeaveOneOut(kl=0.1), batch_of([1.0, 0.0]), "needs old_BT and ref_BT"),
        (Greedy(), batch_of([1.0]), "no greedy_B"),
    ],
)
def test_what_is_missing_is_named(credit: Credit, batch: Batch, message: str):
    with pytest.raises(ValueError, match=message):
        credit(batch, {})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=2, max_size=6), st.floats(0.1, 9), st.floats(-9, 9))
def test_z_scores_do_not_see_scale_and_shift(rewards: list[float], scale: float, shift: float):
    if max(rewards) - min(rewards) < 1e-3:
        return
    credit = GroupZScore(eps=0)
    moved = [scale * r + shift for r in rewards]
    assert advantages(credit, batch_of(moved)) == pytest.approx(advantages(credit, batch_of(rewards)), abs=1e-8)
