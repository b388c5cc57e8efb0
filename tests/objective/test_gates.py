"""Gates: who takes part, and that closing one does not rescale the others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build
from gro.objective import Algorithm, Term, coefficients, counts
from gro.objective.credit import NoBaseline
from gro.objective.gates import BestOfGroup, Gate, GroupFails, GroupSucceeds, RewardAbove
from gro.objective.shares import per_sequence
from gro.objective.values import one
from gro.types import ROLES, Batch

NAN = math.nan
SAMPLE, TARGET = ROLES.index("sample"), ROLES.index("target")


def batch_of(rewards: list[float], groups: list[int], targets: tuple[int, ...] = (), **more) -> Batch:
    """Completions of one token each; those in `targets` are demonstrations."""
    rows = len(rewards)
    return Batch(
        torch.ones(rows, 1, dtype=torch.bool),
        torch.tensor(groups),
        torch.tensor(rewards, dtype=torch.float64),
        role_B=torch.tensor([TARGET if i in targets else SAMPLE for i in range(rows)]),
        **more,
    )


REWARDS, GROUPS, TARGETS = [1.0, 0.0, 0.5, NAN, 0.25, 0.25, NAN, 9.0, NAN], [0, 0, 0, 0, 1, 1, 1, 2, 2], (3, 6, 7)
"""Group 0: mean .5 and a demonstration.  Group 1: two equal and a demonstration.  Group 2: a demonstration with a
number, which is no sample's reward, and a sample that failed."""


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (RewardAbove((0.25,)), [1, 0, 1, 0, 0, 0, 0, 0, 0]),
        (RewardAbove((0.2,)), [1, 0, 1, 0, 1, 1, 0, 0, 0]),
        (BestOfGroup(), [1, 0, 0, 0, 1, 1, 0, 0, 0]),
        (GroupFails(0.25), [0, 0, 0, 0, 1, 1, 1, 0, 0]),
        (GroupSucceeds(0.25), [1, 1, 1, 1, 0, 0, 0, 0, 0]),
        (GroupFails(0.5), [1, 1, 1, 1, 1, 1, 1, 0, 0]),
        (GroupSucceeds(0.5), [0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
    ids=repr,
)
def test_who_takes_part(gate: Gate, expected: list[int]):
    assert gate(batch_of(REWARDS, GROUPS, TARGETS)).int().tolist() == expected


def test_best_of_group_allows_for_rounding():
    batch = batch_of([0.1 + 0.2, 0.3, 0.2, -1e7, -1e7 - 1e-3], [0, 0, 0, 1, 1])
    assert BestOfGroup()(batch).tolist() == [True, True, False, True, True]


def test_thresholds_rise_from_pass_to_pass_and_the_last_stays():
    gate = RewardAbove((0.1, 0.3, 0.6))
    batch = batch_of([0.2, 0.4, 0.7], [0, 0, 0])
    passed = [gate(replace(batch, epoch=e)).tolist() for e in range(5)]
    assert passed == [[True] * 3, [False, True, True], *[[False, False, True]] * 3]


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.5, 0.3)])
def test_thresholds_must_rise(thresholds: tuple[float, ...]):
    with pytest.raises(ValueError, match="thresholds must rise, at least one; found"):
        RewardAbove(thresholds)


def test_a_gate_without_rewards_is_named():
    batch = Batch(torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.long))
    for gate in (RewardAbove((0.0,)), BestOfGroup(), GroupFails(), GroupSucceeds()):
        with pytest.raises(ValueError, match="a gate reads rewards; the batch has no reward_B"):
            gate(batch)


def imitation(gate: Gate | None) -> Algorithm:
    return Algorithm("test", NoBaseline(), (Term(value=one, share=per_sequence, gate=gate),))


def test_a_closed_gate_does_not_rescale_the_others():
    batch = batch_of([1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1])
    logp_BT = torch.full((4, 1), -0.5, dtype=torch.float64)
    c_BT = coefficients(logp_BT, batch, imitation(RewardAbove((0.5,))))
    assert c_BT[:, 0].tolist() == [0.25, 0.0, 0.25, 0.0]
    assert counts(batch, imitation(RewardAbove((0.5,)))) == counts(batch, imitation(None)) == (4.0,)


@pytest.mark.parametrize(("gate", "scope"), [(RewardAbove((0.0,)), "row"), (BestOfGroup(), "group")])
def test_how_far_a_gate_looks(gate: Gate, scope: str):
    assert imitation(gate).scope == scope


# --- the declarations -------------------------------------------------------------------------------------------------


def pulled(name: str, batch: Batch, **params) -> list[float]:
    algorithm = build(name, **params)
    rows = len(batch.group_B)
    logp_BT: Tensor = -0.1 * torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    batch = replace(batch, old_BT=logp_BT, length_limit=1)
    batch = replace(batch, advantage_BX=algorithm.credit(batch, {})[0])
    return [round(c, 12) for c in coefficients(logp_BT, batch, algorithm)[:, 0].tolist()]


def test_best_of_n_and_rejection_sampling():
    batch = batch_of([1.0, 0.0, 1.0, 0.2, 0.4, NAN], [0, 0, 0, 1, 1, 1])
    assert pulled("best_of_n", batch) == [0.2, 0.0, 0.2, 0.0, 0.2, 0.0]
    assert pulled("rft", batch) == [0.2, 0.0, 0.2, 0.0, 0.0, 0.0]
    assert pulled("rft", batch, threshold=-1.0) == [0.2] * 5 + [0.0]


def test_rest_filters_harder_with_every_pass_and_keeps_the_original_data():
    batch = batch_of([0.6, 0.8, 0.0, NAN, NAN], [0, 0, 0, 1, 2], targets=(3, 4))
    found = [pulled("rest", replace(batch, epoch=e), thresholds=[0.5, 0.7]) for e in range(3)]
    third = round(1 / 3, 12)
    assert found == [[third, third, 0.0, 0.5, 0.5], *[[0.0, third, 0.0, 0.5, 0.5]] * 2]


def test_rest_takes_any_inner_loss():
    batch = batch_of([0.6, 0.8, 0.0, 0.4], [0, 0, 1, 1])
    alone = pulled("dr_grpo", batch, length=1)
    within = pulled("rest", batch, thresholds=[0.5], inner="dr_grpo", inner_parameters={"length": 1})
    assert alone == [-0.025, 0.025, -0.05, 0.05]
    assert within == [-0.025, 0.025, 0.0, 0.0]
    rest = build("rest", inner="ppo")
    assert (rest.credit, rest.critic) == (build("ppo").credit, build("ppo").critic)
    assert rest.paper == build("rest").paper


def test_hybrid_post_training_imitates_where_the_policy_fails():
    # Group 0 succeeds (mean ½): its samples are reinforced.  Group 1 fails: its demonstration is imitated.
    batch = batch_of([1.0, 0.0, NAN, 0.0, 0.0, NAN], [0, 0, 0, 1, 1, 1], targets=(2, 5))
    assert pulled("hpt", batch) == [0.125, -0.125, 0.0, 0.0, 0.0, 0.5]
    assert pulled("hpt", batch, threshold=0.5) == [0.0, 0.0, 0.5, 0.0, 0.0, 0.5]
    assert pulled("hpt", batch, rl=2.0, sft=0.5) == [0.25, -0.25, 0.0, 0.0, 0.0, 0.25]
    assert build("hpt").beside
    assert not build("rest").beside, "the original data need no samples of the same prompt"
