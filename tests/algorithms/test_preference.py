"""What a pair is to the preference algorithms, who is labelled how, and which settings are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build, names
from gro.errors import GroError
from gro.objective import coefficients, counts
from gro.objective.units import score
from gro.types import Batch

NAN = math.nan
PAIRED = [n for n in names() if build(n).pairs and all(t.unit != score for t in build(n).terms)]


def batch_of(
    rewards: list[float], groups: list[int], roles: list[int] | None = None, margin: float = 0.0
) -> tuple[Tensor, Batch]:
    """Completions of two tokens that differ from one another, from old and from ref."""
    rows = len(rewards)
    random = torch.Generator().manual_seed(0)
    old_BT, ref_BT, logp_BT = (-3 * torch.rand(3, rows, 2, generator=random, dtype=torch.float64)).unbind()
    return logp_BT, Batch(
        mask_BT=torch.ones(rows, 2, dtype=torch.bool),
        group_B=torch.tensor(groups),
        reward_B=torch.tensor(rewards, dtype=torch.float64),
        role_B=torch.tensor(roles or [0] * rows),
        margin_B=torch.full((rows,), margin, dtype=torch.float64),
        old_BT=old_BT,
        ref_BT=ref_BT,
    )


def pull(name: str, logp_BT: Tensor, batch: Batch, **params) -> Tensor:
    algorithm = build(name, **params)
    return coefficients(logp_BT, replace(batch, advantage_BX=algorithm.credit(batch, {})[0]), algorithm)


def test_the_paired_algorithms():
    assert {"dpo", "ipo", "gpo", "exo", "slic", "simpo", "orpo", "cpl", "rebel", "sppo", "nca"} < set(PAIRED)
    assert {"apo_zero", "apo_down"} < set(PAIRED)
    assert {"kto", "bco", "spin", "gro"}.isdisjoint(PAIRED)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize(
    "rewards",
    [[1.0, 0.0, -1.0], [1.0, 1.0, 0.0], [1.0, NAN], [0.7, 0.7], [NAN, NAN]],
    ids=["three", "three with a tie", "one failed", "a tie", "both failed"],
)
def test_what_is_no_pair_is_not_learnt_from(name: str, rewards: list[float]):
    """Neither are its completions counted: the pair beside it counts as if it were alone."""
    logp_BT, batch = batch_of([1.0, -1.0, *rewards], [0, 0] + [1] * len(rewards))
    c_BT = pull(name, logp_BT, batch)
    assert not bool(c_BT[2:].any())
    alone = batch.rows(torch.arange(2))
    torch.testing.assert_close(c_BT[:2], pull(name, logp_BT[:2], alone), rtol=0, atol=0)
    assert bool(c_BT[:1].all())


@pytest.mark.parametrize("name", PAIRED)
def test_a_third_completion_without_a_reward_leaves_a_pair(name: str):
    logp_BT, batch = batch_of([1.0, -1.0, NAN], [0, 0, 0])
    c_BT = pull(name, logp_BT, batch)
    assert bool(c_BT[0].all())
    assert not bool(c_BT[2].any())


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize(
    ("rewards", "signs"),
    [
        ([3.0], [1]),  # alone: the sign of the reward is its label
        ([-0.2], [-1]),
        ([0.0], [0]),
        ([2.0, 5.0], [-1, 1]),  # of several: scores are good or bad beside each other
        ([2.0, 5.0, 2.5], [-1, 1, -1]),
        ([0.7, 0.7], [0, 0]),
        ([0.7, NAN], [0, 0]),  # a score of which nobody knows whether it is good
        ([-0.7, NAN, NAN], [0, 0, 0]),
        ([1.0, 0.0, NAN], [1, -1, 0]),
    ],
    ids=str,
)
def test_who_is_labelled_good_or_bad(name: str, rewards: list[float], signs: list[int]):
    logp_BT, batch = batch_of(rewards, [0] * len(rewards))
    assert pull(name, logp_BT, batch).sign()[:, 0].tolist() == signs


def test_ktos_estimate_is_one_number_of_the_whole_update_and_has_no_gradient():
    logp_BT, batch = batch_of([1.0, -1.0, NAN, NAN], [0, 1, 0, 1], roles=[0, 0, 2, 2])
    assert batch.ref_BT is not None
    ratios_B = (logp_BT - batch.ref_BT).sum(1)
    assert build("kto").scope == "batch"
    assert build("kto").mismatches
    for z0, ratios in ((0.7, (0.4, 1.0)), (0.0, (-0.4, -1.0)), (0.1, (1.2, -1.0))):
        ref_BT = batch.ref_BT.clone()
        ref_BT[2:] = logp_BT[2:] - torch.tensor(ratios, dtype=torch.float64)[:, None] / 2
        c_BT = pull("kto", logp_BT, replace(batch, ref_BT=ref_BT), beta=0.5)
        assert not bool(c_BT[2:].any())
        for row, side in ((0, 1), (1, -1)):  # each row's prompt has one mismatch, but all have the same z0
            x = torch.sigmoid(0.5 * (ratios_B[row] - z0))
            assert c_BT[row].tolist() == pytest.approx([side * 0.5 * float(x * (1 - x)) / 2] * 2)


def test_ktos_weights_are_of_the_good_and_of_the_bad():
    logp_BT, batch = batch_of([1.0, -1.0], [0, 1])
    plain, weighted = pull("kto", logp_BT, batch), pull("kto", logp_BT, batch, desirable=0.0, undesirable=1.5)
    assert not bool(weighted[0].any())
    torch.testing.assert_close(weighted[1], 1.5 * plain[1])


def test_margins_of_the_data_are_asked_for():
    logp_BT, batch = batch_of([1.0, -1.0], [0, 0], margin=0.4)
    given, fixed = pull("dpo", logp_BT, batch, data_margin=0.5), pull("dpo", logp_BT, batch, margin=0.2)
    torch.testing.assert_close(given, fixed)
    assert bool((given != pull("dpo", logp_BT, batch)).all())
    with pytest.raises(ValueError, match="a margin from the data needs margin_B"):
        pull("dpo", logp_BT, replace(batch, margin_B=None), data_margin=0.5)


def test_spin_needs_one_demonstration_and_one_sample():
    logp_BT, batch = batch_of([NAN] * 7, [0, 0, 1, 1, 1, 2, 3], roles=[1, 0, 1, 0, 0, 1, 0])
    c_BT = pull("spin", logp_BT, batch)
    assert c_BT.sign()[:, 0].tolist() == [1, -1, 0, 0, 0, 0, 0]
    assert counts(batch, build("spin")) == (1.0,)


def test_slic_imitates_demonstrations_beside_ranked_samples():
    logp_BT, batch = batch_of([1.0, -1.0, NAN], [0, 0, 0], roles=[0, 0, 1])
    c_BT = pull("slic", logp_BT, batch, reference="demonstration", imitation=0.3, delta=50.0)
    assert c_BT.tolist() == [[1.0, 1.0], [-1.0, -1.0], [0.3, 0.3]]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing: 0.5 is no finite number ≥ 0 and < 0.5"),
        ("dpo", {"label_smoothing": -0.1}, "label_smoothing: -0.1 is no finite number ≥ 0 and < 0.5"),
        ("dpo", {"robust": 1}, "robust: 1 is no true or false"),
        ("dpo", {"unit": "token"}, "unit: 'token' is no 'total' or 'average'"),
        ("ipo", {"beta": 0.0}, "beta: 0.0 is no finite number > 0"),
        ("gpo", {"loss": "logit"}, "loss: 'logit' is no 'logistic', 'hinge', 'squared', "),
        ("exo", {"label_smoothing": 0.0}, "label_smoothing: 0.0 is no finite number > 0 and < 0.5"),
        ("exo", {"label_smoothing": 0.5}, "label_smoothing: 0.5 is no finite number > 0 and < 0.5"),
        ("slic", {"delta": 0.0}, "delta: 0.0 is no finite number > 0"),
        ("slic", {"imitation": -1.0}, "imitation: -1.0 is no finite number ≥ 0"),
        ("slic", {"reference": "none"}, "reference: 'none' is no 'chosen' or 'demonstration'"),
        ("simpo", {"gamma": -0.5}, "gamma: -0.5 is no finite number ≥ 0"),
        ("orpo", {"odds": -0.1}, "odds: -0.1 is no finite number ≥ 0"),
        ("cpl", {"bias": 0.0}, "bias: 0.0 is no finite number > 0 and ≤ 1"),
        ("cpl", {"bias": 1.5}, "bias: 1.5 is no finite number > 0 and ≤ 1"),
        ("cpl", {"gamma": 1.1}, "gamma: 1.1 is no finite number > 0 and ≤ 1"),
        ("kto", {"desirable": -1.0}, "desirable: -1.0 is no finite number ≥ 0"),
        ("bco", {"beta": 0.0}, "beta: 0.0 is no finite number > 0"),
        ("nca", {"temperature": 0.0}, "temperature: 0.0 is no finite number > 0 or null"),
        ("rebel", {"eta": 0.0}, "eta: 0.0 is no finite number > 0"),
        ("spin", {"base": "zero"}, "base: 'zero' is no 'old' or 'ref'"),
        ("sppo", {"beta": -1.0}, "beta: -1.0 is no finite number > 0"),
    ],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused(name: str, params: dict, message: str):
    with pytest.raises(GroError) as error:
        build(name, **params)
    assert str(error.value).startswith(f"algorithm.{message}")
