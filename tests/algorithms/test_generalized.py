"""GRO: which of its settings go together, and what separation does."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.errors import GroError
from gro.objective import Term, coefficients
from gro.types import ROLES, Batch

UNITS = ("token", "average", "total")
SHIFTS = ("opponents_soft", "opponents", "group", "none")


def pull(logp_BT: Tensor, batch: Batch, **settings) -> Tensor:
    algorithm = build("gro", **settings)
    return coefficients(logp_BT, replace(batch, advantage_BX=algorithm.credit(batch, {})[0]), algorithm)


def refusal(unit: str, measure: str, shift: str, kappa: float, value: str) -> str:
    """Why such settings do not go together; '' where they do."""
    if value == "exp" and kappa:
        return "value exp pushes every completion up, so there is nothing to separate: use kappa 0"
    if measure == "token" and kappa and shift != "none":
        return "compares whole completions; measure total or average, not token"
    if measure == "token" and unit != "token":
        return "a completion as a whole cannot have one weight per token; measure total or average"
    return ""


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("value", ["identity", "exp", "expm1", "prospect"])
@pytest.mark.parametrize("kappa", [0.0, 10.0])
def test_settings_go_together_or_are_refused_with_the_reason(shift: str, value: str, kappa: float):
    logp_BT, batch = updates.groups()
    for unit, measure, base, credit in product(UNITS, UNITS, ("zero", "old", "ref"), ("softmax", "mean")):
        settings = {"unit": unit, "measure": measure, "base": base, "credit": credit}
        settings |= {"shift": shift, "value": value, "kappa": kappa}
        if reason := refusal(unit, measure, shift, kappa, value):
            with pytest.raises(GroError, match=f"algorithm gro: .*{reason}"):
                build("gro", **settings)
        else:
            c_BT = pull(logp_BT, batch, **settings)
            assert bool(c_BT.isfinite().all())
            assert bool(c_BT.any())


def a_group(*logp: float, rewards: tuple[float, ...]) -> tuple[Tensor, Batch]:
    """One prompt's completions of one token."""
    rows = len(logp)
    return torch.tensor(logp, dtype=torch.float64)[:, None], Batch(
        mask_BT=torch.ones(rows, 1, dtype=torch.bool),
        group_B=torch.zeros(rows, dtype=torch.long),
        reward_B=torch.tensor(rewards, dtype=torch.float64),
        role_B=torch.zeros(rows, dtype=torch.long),
        length_limit=1,
    )


@pytest.mark.parametrize("shift", ["opponents_soft", "opponents"])
def test_what_is_separated_is_left_alone(shift: str):
    """2σ(−κ·gap) times REINFORCE's push: nothing where the better one is far ahead, twice where it is far behind."""
    for gap, factor in ((9.0, 0.0), (0.1, 0.5378828), (0.0, 1.0), (-0.1, 1.4621172), (-9.0, 2.0)):
        group = a_group(-10.0 + gap, -10.0, rewards=(1.0, 0.0))
        found, plain = pull(*group, credit="mean", shift=shift), pull(*group, credit="mean", kappa=0.0)
        torch.testing.assert_close(found, factor * plain, rtol=0, atol=1e-7)


def test_a_margin_asks_for_more():
    """σ(−κ(gap − m))/σ(κm): 1 at no gap, ½/σ(κm) at the margin."""
    for gap, factor in ((0.0, 1.0), (0.2, 0.5676676), (9.0, 0.0)):
        group = a_group(-10.0 + gap, -10.0, rewards=(1.0, 0.0))
        found, plain = pull(*group, credit="mean", margin=0.2), pull(*group, credit="mean", kappa=0.0)
        torch.testing.assert_close(found, factor * plain, rtol=0, atol=1e-7)


def test_who_is_at_the_baseline_is_nobodys_opponent():
    with_it = a_group(-2.0, -1.0, -0.1, rewards=(1.0, 0.0, 0.5))
    without = a_group(-2.0, -1.0, -0.1, rewards=(1.0, 0.0, torch.nan))
    for shift in ("opponents_soft", "opponents"):
        found, expected = (pull(*g, credit="mean", shift=shift, share="token_mean") for g in (with_it, without))
        assert found[2].item() == 0
        torch.testing.assert_close(found[:2], expected[:2] * 2 / 3)  # it still counts as a completion


def test_equal_rewards_teach_nothing_unless_the_value_of_nothing_is_one():
    group = a_group(-2.0, -1.0, -0.1, rewards=(0.3, 0.3, 0.3))
    for value in ("identity", "expm1", "prospect"):
        assert not bool(pull(*group, value=value).any())
    imitated = pull(*group, value="exp", kappa=0.0, credit="mean")
    torch.testing.assert_close(imitated, torch.full((3, 1), 1 / 3, dtype=torch.float64))


def test_demonstrations_are_never_pushed_down():
    """Whatever reward is written beside them: who has a reward to be judged by is a sample."""
    logp_BT, batch = updates.groups()
    assert batch.reward_B is not None
    assert batch.role_B is not None
    target_B = batch.role_B == ROLES.index("target")
    for settings in ({}, {"value": "prospect", "credit": "zscore"}, {"credit": "leave_one_out", "base": "old"}):
        expected = pull(logp_BT, batch, **settings)
        judged = replace(batch, reward_B=batch.reward_B.masked_fill(target_B, -5.0))
        torch.testing.assert_close(pull(logp_BT, judged, **settings), expected, rtol=0, atol=0)
        assert bool((expected[target_B] >= 0).all())
        assert bool((expected[target_B] > 0).any())


def test_off_policy_the_weight_is_multiplied_by_the_ratio():
    logp_BT, batch = a_group(-2.0, -1.0, rewards=(1.0, 0.0))
    old_BT = torch.tensor([[-2.5], [-0.5]], dtype=torch.float64)
    (term, _) = build("gro", base="old", credit="mean").terms
    assert isinstance(term, Term)
    c_BT = pull(logp_BT, replace(batch, old_BT=old_BT), base="old", credit="mean", kappa=1.0)
    # u₊ = .5 and u₋ = −.5 against one another: 2σ(−1); ratios e^.5 and e^−.5; A = ±½; 1/(B·L) = ½
    pushes = [0.537883 * 1.648721 / 4, -0.537883 * 0.606531 / 4]
    assert c_BT[:, 0].tolist() == pytest.approx(pushes, abs=1e-6)
