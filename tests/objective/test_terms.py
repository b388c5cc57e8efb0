"""What a term refuses, how far it looks, and the correction of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from algorithms import updates
from gro.algorithms import build
from gro.errors import GroError
from gro.objective import Algorithm, Anchor, FromLoss, Term, coefficients, counts, loss_value, select
from gro.objective.anchors import (
    Partner,
    Rows,
    Scope,
    Shift,
    group_mean,
    kl_estimate,
    margin,
    opponents,
    opponents_soft,
    partner,
)
from gro.objective.credit import GroupMean, Labels, MovingAverage, NoBaseline
from gro.objective.shares import (
    FixedLength,
    group_token_mean,
    per_pair,
    per_sequence,
    sequence_mean,
    token_mean,
)
from gro.objective.units import average, token, total
from gro.objective.values import Exp, one
from gro.objective.weights import ClippedRatio, Logistic, RatioK3, Separation
from gro.types import ROLES, Batch

NAN = math.nan


@pytest.mark.parametrize("shift", [opponents, opponents_soft, group_mean, partner, kl_estimate])
def test_comparing_completions_by_token_is_refused(shift):
    with pytest.raises(ValueError, match=r"compares whole completions; measure total or average, not token"):
        Term(anchor=Anchor("ref", (shift,)), weight=Separation())
    Term(anchor=Anchor("ref", (shift,)), weight=Separation(), measure=average)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Term(unit=total, measure=token), "cannot have one weight per token"),
        (
            lambda: Term(weight=RatioK3(0.1), anchor=Anchor("old"), second=Anchor("ref", (margin(1.0),))),
            "a second anchor is a base only",
        ),
    ],
)
def test_declarations_that_mean_nothing(declare: Callable[[], Term], message: str):
    with pytest.raises(ValueError, match=message):
        declare()


def test_a_mistake_in_a_recipe_is_named():
    with pytest.raises(GroError, match="algorithm gro: opponents compares whole completions"):
        build("gro", measure="token")
    assert build("gro", measure="token", shift="none", base="ref")


def test_advantages_of_tokens_need_a_term_of_tokens():
    logp_BT, batch = updates.groups()
    algorithm = Algorithm("test", MovingAverage(kl=0.1), (Term(unit=total, share=per_sequence),))
    batch = replace(batch, advantage_BX=algorithm.credit(batch, {})[0])
    with pytest.raises(ValueError, match="one advantage per token, but this term's unit is a whole completion"):
        coefficients(logp_BT, batch, algorithm)


# --- how far a term looks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "scope"),
    [
        (Term(), "row"),
        (Term(anchor=Anchor("old", (margin(0.1),))), "row"),
        (Term(share=group_token_mean), "group"),
        (Term(rows="paired"), "group"),
        (Term(rows="chosen"), "group"),
        (Term(rows="targets"), "row"),
        (Term(unit=total, anchor=Anchor("ref", (partner,))), "group"),
        (Term(unit=total, anchor=Anchor("ref", (partner, kl_estimate))), "batch"),
        (FromLoss(lambda u_BX, batch: u_BX), "group"),
    ],
)
def test_scope(term: Term | FromLoss, scope: Scope):
    assert term.scope == scope
    assert Algorithm("test", NoBaseline(), (Term(), term)).scope == scope


TERMS = [
    Term(share=token_mean),
    Term(share=sequence_mean, anchor=Anchor("old"), weight=ClippedRatio()),
    Term(share=per_sequence, unit=average),
    Term(share=FixedLength(5), rows="targets", value=one),
    Term(share=group_token_mean),
    Term(share=per_pair, rows="paired", unit=total, anchor=Anchor("ref", (partner,)), weight=Logistic()),
    Term(share=per_sequence, rows="chosen", value=one),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.rows} {term.share.symbol}")
def test_scope_is_how_finely_a_batch_may_be_split(term: Term):
    algorithm = Algorithm("test", Labels(), (term,))
    logp_BT, batch = updates.pairs()
    batch = replace(batch, advantage_BX=algorithm.credit(batch, {})[0])
    whole_BT = coefficients(logp_BT, batch, algorithm)
    assert bool(whole_BT.any())
    units_B = torch.arange(len(logp_BT)) if term.scope == "row" else batch.group_B
    indices = [torch.nonzero(units_B == unit)[:, 0] for unit in units_B.unique()]
    total_K = tuple(map(sum, zip(*(counts(batch.rows(i), algorithm) for i in indices), strict=True)))
    assert total_K == counts(batch, algorithm)
    for index_R in indices:
        found_RT = coefficients(logp_BT[index_R], replace(batch.rows(index_R), counts_K=total_K), algorithm)
        torch.testing.assert_close(found_RT, whole_BT[index_R], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [opponents, opponents_soft], ids=repr)
@pytest.mark.parametrize("advantage", [0.5, -0.5, 0.0])
def test_who_has_no_opponent_has_weight_one(shift: Shift, advantage: float):
    # All on one side of the baseline, as a critic, a label or a moving average can have it.
    logp_BT, batch = updates.groups()
    batch = replace(batch, advantage_BX=torch.full((len(logp_BT), 1), advantage, dtype=torch.float64))
    weight = Separation(kappa=10.0, margin=0.3)
    term = Term(unit=average, anchor=Anchor("ref", (shift,)), weight=weight, value=Exp(), share=per_sequence)
    part = term.parts(logp_BT, batch)
    torch.testing.assert_close(part.w_BX[part.keep_B], torch.ones_like(part.w_BX[part.keep_B]), rtol=0, atol=1e-15)
    assert not bool(part.u_BX[part.keep_B].any())
    algorithms = [Algorithm("test", NoBaseline(), (t,)) for t in (term, Term(average, value=Exp(), share=per_sequence))]
    separated, plain = (loss_value(logp_BT, batch, algorithm) for algorithm in algorithms)
    torch.testing.assert_close(separated, plain, rtol=0, atol=1e-15)


def test_opponents_are_rows_of_the_term():
    batch = Batch(
        torch.ones(3, 1, dtype=torch.bool),
        torch.tensor([0, 0, 0]),
        role_B=torch.tensor([ROLES.index(r) for r in ("sample", "sample", "target")]),
        advantage_BX=torch.tensor([[1.0], [-1.0], [-3.0]]),
    )
    for shift in (opponents, opponents_soft):
        term = Term(total, Anchor("zero", (shift,)), Separation(), share=per_sequence)
        part = term.parts(torch.tensor([[-1.0], [-3.0], [-9.0]]), batch)
        assert part.u_BX[:2, 0].tolist() == [2.0, -2.0]


@pytest.mark.parametrize(
    ("rewards", "roles", "paired", "chosen"),
    [
        ([1.0, -1.0], "ss", [1, 1], [1, 0]),
        ([0.2, 0.7], "ss", [1, 1], [0, 1]),
        ([0.5, 0.5], "ss", [0, 0], [0, 0]),  # a tie
        ([1.0], "s", [0], [0]),
        ([1.0, 0.5, 0.0], "sss", [0, 0, 0], [0, 0, 0]),  # three are no pair, though one ± stands against one ∓
        ([1.0, NAN, 0.0], "sss", [1, 0, 1], [1, 0, 0]),
        ([1.0, NAN, 0.0], "sts", [1, 0, 1], [1, 0, 0]),  # a demonstration beside the pair
        ([1.0, NAN], "ss", [0, 0], [0, 0]),
    ],
)
def test_pairs(rewards: list[float], roles: str, paired: list[int], chosen: list[int]):
    rows = len(rewards)
    batch = Batch(
        torch.ones(rows, 1, dtype=torch.bool),
        torch.zeros(rows, dtype=torch.long),
        reward_B=torch.tensor(rewards),
        role_B=torch.tensor(["st".index(role) for role in roles]),
    )
    batch = replace(batch, advantage_BX=Labels()(batch, {})[0])
    assert select("paired", batch).int().tolist() == paired
    assert select("chosen", batch).int().tolist() == chosen


def test_a_scaled_partner():
    d_B1 = torch.tensor([[-0.3], [-0.7], [-0.2]], dtype=torch.float64)
    a_B1 = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    batch = Batch(torch.ones(3, 1, dtype=torch.bool), torch.tensor([0, 0, 1]))
    rows = Rows(batch, torch.ones(3, dtype=torch.bool), a_B1, a_B1)
    u_BXJ, _ = Anchor("zero", (Partner(0.3),)).compare(d_B1, rows)
    expected = [-0.3 + 0.3 * 0.7, -0.7 + 0.3 / 0.3, -0.2]  # u₊ = d₊ − b·d₋, u₋ = d₋ − d₊/b; alone: d
    assert u_BXJ.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_opponents_are_looked_for_in_the_group_only():
    logp_BT, batch = updates.groups()
    batch = replace(batch, advantage_BX=GroupMean()(batch, {})[0])
    assert batch.advantage_BX is not None
    rows = Rows(batch, select("scored", batch), batch.advantage_BX, batch.advantage_BX)
    shift_BXJ, p_BXJ = opponents_soft(average(logp_BT, batch.mask_BT), rows)
    assert shift_BXJ.shape == p_BXJ.shape == (len(logp_BT), 1, 5), "with a ratio per token this is B × T × J"


# --- who counts how much ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"),
    [  # groups of lengths (1, 3), (2, 2, 4) and (1), of which the last two rows are no samples
        (token_mean, [1 / 8, 1 / 8, 1 / 8, 1 / 8]),
        (group_token_mean, [1 / 8, 1 / 8, 1 / 8, 1 / 8]),
        (sequence_mean, [1 / 4, 1 / 12, 1 / 8, 1 / 8]),
        (per_sequence, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        (FixedLength(5), [1 / 20, 1 / 20, 1 / 20, 1 / 20]),
        (FixedLength(), [1 / 40, 1 / 40, 1 / 40, 1 / 40]),
    ],
)
@pytest.mark.fault("R11")
def test_shares_by_hand(share, expected):
    mask_BT = torch.arange(4) < torch.tensor([1, 3, 2, 2, 4, 1])[:, None]
    roles = torch.tensor([ROLES.index(r) for r in ("sample", "sample", "sample", "sample", "target", "mismatch")])
    batch = Batch(mask_BT, torch.tensor([0, 0, 1, 1, 1, 2]), role_B=roles, length_limit=10)
    algorithm = Algorithm("test", NoBaseline(), (Term(share=share, value=one),))
    c_BT = coefficients(-torch.ones(6, 4, dtype=torch.float64), batch, algorithm)
    assert c_BT[:, 0].tolist() == pytest.approx([*expected, 0.0, 0.0])
    # an average stands for as many tokens as it is of, except where completions are what is counted
    averaged = Algorithm("test", NoBaseline(), (Term(unit=average, share=share, value=one),))
    by_average_BT = coefficients(-torch.ones(6, 4, dtype=torch.float64), batch, averaged)
    lengths = [1, 3, 2, 2] if share == per_sequence else [1, 1, 1, 1]
    assert by_average_BT[:4, 0].tolist() == pytest.approx([e / n for e, n in zip(expected, lengths, strict=True)])


def test_group_token_mean_of_uneven_groups():
    mask_BT = torch.arange(4) < torch.tensor([1, 3, 2])[:, None]
    batch = Batch(mask_BT, torch.tensor([0, 0, 1]))
    algorithm = Algorithm("test", NoBaseline(), (Term(share=group_token_mean, value=one),))
    c_BT = coefficients(-torch.ones(3, 4), batch, algorithm)
    assert c_BT[:, 0].tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4])  # 2 prompts of 4 and 2 tokens


def test_a_value_that_drops_rows_does_not_rescale_the_rest():
    _, batch = updates.groups()
    algorithm = Algorithm("test", GroupMean(), (Term(share=sequence_mean),))
    batch = replace(batch, advantage_BX=algorithm.credit(batch, {})[0])
    assert batch.advantage_BX is not None
    assert bool((batch.advantage_BX[batch.group_B == 2] == 0).all())
    scored = 3 + 2 + 3 + 4 + 1 + 2 + 3  # of updates.groups(): all with a reward and a token, equal or not
    assert counts(batch, algorithm) == (scored,)


# --- the correction of tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "reinforce", "rloo", "grpo"])
def test_importance_multiplies_each_token(name: str):
    logp_BT, batch = updates.groups()
    algorithm = build(name)
    batch = replace(batch, advantage_BX=algorithm.credit(batch, {})[0])
    random = torch.Generator().manual_seed(0)
    importance_BT = torch.rand(logp_BT.shape, generator=random, dtype=torch.float64)
    corrected = replace(batch, importance_BT=updates.with_garbage(importance_BT, batch.mask_BT))
    expected_BT = coefficients(logp_BT, batch, algorithm) * importance_BT
    torch.testing.assert_close(coefficients(logp_BT, corrected, algorithm), expected_BT, rtol=0, atol=1e-12)


def test_importance_multiplies_a_written_loss_too():
    logp_BT, batch = updates.groups()
    by_loss = Algorithm("test", NoBaseline(), (FromLoss(lambda u_BT, batch: -u_BT, unit=token),))
    plain = Algorithm("test", NoBaseline(), (Term(share=per_sequence, value=one),))
    corrected = replace(batch, importance_BT=torch.full_like(logp_BT, 0.25))
    found_BT = coefficients(logp_BT, corrected, by_loss)
    torch.testing.assert_close(found_BT, 0.25 * coefficients(logp_BT, batch, plain), rtol=0, atol=1e-12)
    assert float(loss_value(logp_BT, corrected, by_loss)) == pytest.approx(
        0.25 * float(loss_value(logp_BT, batch, plain))
    )


@pytest.mark.parametrize("algorithm", [build("dpo"), Algorithm("t", Labels(), (FromLoss(lambda u_BX, batch: u_BX),))])
def test_whole_completions_cannot_be_corrected_by_token(algorithm: Algorithm):
    logp_BT, batch = updates.pairs()
    batch = replace(batch, importance_BT=torch.ones_like(logp_BT), advantage_BX=algorithm.credit(batch, {})[0])
    with pytest.raises(ValueError, match="importance_BT corrects tokens"):
        coefficients(logp_BT, batch, algorithm)
