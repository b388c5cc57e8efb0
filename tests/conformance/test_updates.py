"""The random updates: both forms say the same, and they hold what an algorithm learns from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gro.algorithms import build, names
from gro.conformance.updates import (
    as_a_paper_sees_it,
    beside,
    for_algorithm,
    groups,
    mismatched,
    pairs,
    update_of,
    versus,
)
from gro.objective import select
from gro.types import ROLES

MAKERS = (groups, pairs, mismatched, beside, versus)
every_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@every_maker
def test_both_forms_hold_the_same_tokens(make):
    logp_BT, batch = make(0)
    update = as_a_paper_sees_it(logp_BT, batch)
    rows = [y for p in update.prompts for y in (*p.samples, *p.targets, *p.mismatches)]
    assert sum(len(y.logp) for y in rows) == int(batch.mask_BT.sum())
    assert math.isclose(sum(float(y.ref.sum()) for y in rows), float(batch.ref_BT[batch.mask_BT].sum()))
    for role, found in (("target", update.targets), ("mismatch", update.mismatches)):
        of_role_B = (batch.role_B == ROLES.index(role)) & batch.mask_BT.any(1)
        assert len(found) == int(of_role_B.sum())
    assert all(y.scored for y in update.samples)
    assert all(a.reward > b.reward for a, b in update.pairs)


def test_what_a_paper_sees_worked_out_by_hand():
    logp_BT, batch = update_of(0, [[2.0, -1.0], ["target", 0.5], ["failed", 1.0], ["mismatch", 3.0]])
    mask_BT = torch.ones_like(batch.mask_BT)
    update = as_a_paper_sees_it(logp_BT, replace(batch, mask_BT=mask_BT))
    assert [[y.reward for y in group] for group in update.groups] == [[2.0, -1.0], [0.5], [1.0], [3.0]]
    assert [(a.reward, b.reward) for a, b in update.pairs] == [(2.0, -1.0)]
    assert [y.reward for _, y in update.versus] == [0.5]
    assert len(update.mismatches) == 1
    assert math.isnan(update.targets[0].reward)


def test_gradients_flow_to_the_log_probs():
    logp_BT, batch = groups(1)
    assert batch.reward_B is not None
    leaf_BT = logp_BT.clone().requires_grad_()
    loss = torch.stack([y.logp.sum() for y in as_a_paper_sees_it(leaf_BT, batch).samples]).sum()
    (gradient_BT,) = torch.autograd.grad(loss, leaf_BT)
    expected_B = batch.samples_B & ~batch.reward_B.isnan()
    assert torch.equal(gradient_BT, (batch.mask_BT & expected_B[:, None]).to(gradient_BT))


@every_maker
def test_garbage_stands_wherever_no_loss_is_carried(make):
    logp_BT, batch = make(0)
    for t_BT in (logp_BT, batch.old_BT, batch.ref_BT, batch.values_BT, batch.entropy_BT):
        assert bool(t_BT[batch.mask_BT].isfinite().all())
        assert not bool((t_BT[~batch.mask_BT].abs() < 100).any())


@every_maker
def test_seeds_tell_updates_apart(make):
    assert torch.equal(make(3)[0].nan_to_num(), make(3)[0].nan_to_num())
    assert not torch.equal(make(3)[0].nan_to_num()[:, :1], make(4)[0].nan_to_num()[:, :1])


@pytest.mark.parametrize("name", names())
def test_an_algorithm_finds_what_it_learns_from(name: str):
    algorithm = build(name)
    _, batch = for_algorithm(algorithm)(0)
    advantage_BX, _ = algorithm.credit(batch, {})
    batch = replace(batch, advantage_BX=advantage_BX)
    for rows in algorithm.roles:
        assert bool(select(rows, batch).any()), rows
    if algorithm.mismatches:
        assert bool((batch.role_B == ROLES.index("mismatch")).any())
