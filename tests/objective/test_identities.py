"""Identities between algorithms: at the start of a step (θ = old = ref), and always."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.objective import Algorithm, Anchor, Term, coefficients, loss_value
from gro.objective.anchors import Partner, opponents_soft, partner
from gro.objective.credit import Credit, GroupMean, GroupSoftmax, GroupZScore, Labels, LeaveOneOut
from gro.objective.shares import (
    FixedLength,
    Share,
    group_token_mean,
    per_pair,
    per_sequence,
    sequence_mean,
    token_mean,
)
from gro.objective.units import Discounted, Unit, average, token, total
from gro.objective.values import Desirability, one
from gro.objective.weights import (
    K3,
    Bell,
    ClippedRatio,
    Exponential,
    Hinge,
    Ipo,
    Logistic,
    Ratio,
    RatioK3,
    Regression,
    RobustLogistic,
    Savage,
    Separation,
    SoftGate,
    Squared,
    Stay,
    TruncatedQuadratic,
    TruncatedRatio,
    Weight,
)
from gro.types import Batch

OLD, REF = Anchor("old"), Anchor("ref")
EXACT = 1e-12


def declared(credit: Credit, *terms: Term) -> Algorithm:
    return Algorithm("test", credit, terms)


def preference(
    weight: Weight, unit: Unit = total, anchor: Anchor | None = None, credit: Credit | None = None
) -> Algorithm:
    anchor = anchor or Anchor("ref", (partner,))
    return declared(credit or Labels(), Term(unit=unit, anchor=anchor, weight=weight, share=per_pair, rows="paired"))


def groups(seed: int = 0) -> tuple[Tensor, Batch]:
    return updates.groups(seed)


def pairs(seed: int = 0) -> tuple[Tensor, Batch]:
    return updates.pairs(seed)


def at_the_start(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """θ = old = ref."""
    return logp_BT, replace(batch, old_BT=logp_BT.clone(), ref_BT=logp_BT.clone())


def pull(algorithm: Algorithm, logp_BT: Tensor, batch: Batch) -> Tensor:
    return coefficients(logp_BT, credited(algorithm, batch), algorithm)


def loss(algorithm: Algorithm, logp_BT: Tensor, batch: Batch) -> float:
    return float(loss_value(logp_BT, credited(algorithm, batch), algorithm))


def credited(algorithm: Algorithm, batch: Batch) -> Batch:
    return replace(batch, advantage_BX=algorithm.credit(batch, {})[0])


def same(found_BT: Tensor, expected_BT: Tensor) -> None:
    assert bool(expected_BT.any())
    torch.testing.assert_close(found_BT, expected_BT, rtol=0, atol=EXACT)


# --- at the start of a step ------------------------------------------------------------------------------------------

Z = GroupZScore()
REINFORCE_ON_Z = declared(Z, Term(share=sequence_mean))


@pytest.mark.parametrize("weight", [Ratio(), ClippedRatio(), TruncatedRatio(5.0), SoftGate()], ids=repr)
def test_ratios_start_at_one(weight: Weight):
    logp_BT, batch = at_the_start(*groups())
    algorithm = declared(Z, Term(anchor=OLD, weight=weight, share=sequence_mean))
    (term,) = algorithm.terms
    assert isinstance(term, Term)
    part = term.parts(logp_BT, credited(algorithm, batch))
    assert bool((part.w_BX[batch.mask_BT] == 1).all()), "no ratio differs from 1 and none is clipped"
    same(pull(algorithm, logp_BT, batch), pull(REINFORCE_ON_Z, logp_BT, batch))


@pytest.mark.parametrize(
    "term",
    [
        Term(anchor=REF, weight=K3(0.04), value=one),
        Term(anchor=OLD, weight=Stay(0.5), value=one),
        Term(anchor=OLD, second=REF, weight=RatioK3(0.04), value=one),
    ],
    ids=repr,
)
def test_pulls_start_at_nothing(term: Term):
    logp_BT, batch = at_the_start(*groups())
    algorithm = declared(Z, term)
    assert loss(algorithm, logp_BT, batch) == 0
    assert not bool(pull(algorithm, logp_BT, batch).any())


@pytest.mark.parametrize(
    "algorithm",
    [
        build("grpo", beta=0.0),
        build("grpo"),
        declared(Z, Term(unit=average, anchor=OLD, weight=ClippedRatio(3e-4, 4e-4), share=per_sequence)),  # GSPO
        declared(Z, Term(anchor=OLD, weight=SoftGate(), share=sequence_mean)),  # SAPO
    ],
    ids=["grpo without kl", "grpo", "gspo", "sapo"],
)
def test_grpo_gspo_and_sapo_start_as_reinforce_on_z_scores(algorithm: Algorithm):
    update = at_the_start(*groups())
    same(pull(algorithm, *update), pull(REINFORCE_ON_Z, *update))


@pytest.mark.parametrize("share", [token_mean, group_token_mean])
def test_dapo_starts_as_cispo(share: Share):
    update = at_the_start(*groups())
    dapo = declared(Z, Term(anchor=OLD, weight=ClippedRatio(0.2, 0.28), share=share))
    cispo = declared(Z, Term(anchor=OLD, weight=TruncatedRatio(5.0), share=share))
    same(pull(dapo, *update), pull(cispo, *update))


def even_groups(seed: int = 0) -> tuple[Tensor, Batch]:
    """Three prompts with four completions each, all rewarded."""
    logp_BT, batch = groups(seed)
    index_B = torch.nonzero(batch.mask_BT.any(1))[:12, 0]
    random = torch.Generator().manual_seed(seed)
    reward_B = torch.randn(12, generator=random, dtype=torch.float64)
    even = replace(batch.rows(index_B), group_B=torch.arange(3).repeat_interleave(4), reward_B=reward_B, role_B=None)
    return logp_BT[index_B], even


def test_rloo_is_dr_grpo_but_for_a_factor():
    update = at_the_start(*even_groups())
    dr_grpo = declared(GroupMean(), Term(anchor=OLD, weight=ClippedRatio(), share=FixedLength(7)))
    same(pull(build("rloo", kl=0.0), *update), 7 * 4 / 3 * pull(dr_grpo, *update))


def test_rebel_starts_as_leave_one_out():
    logp_BT, batch = at_the_start(*pairs())
    rebel = declared(
        LeaveOneOut(),
        Term(
            unit=total,
            anchor=Anchor("old", (partner,)),
            weight=Regression(0.7),
            value=one,
            share=per_pair,
            rows="paired",
        ),
    )
    rloo = declared(LeaveOneOut(), Term(share=per_pair, rows="paired"))
    same(pull(rebel, logp_BT, batch), 2 / 0.7 * pull(rloo, logp_BT, batch))
    gaps = [1 - -1, -0.5 - -2, 3.5 - 0.5, 1 - -1]
    assert loss(rebel, logp_BT, batch) == pytest.approx(sum(g * g for g in gaps) / len(gaps))


@pytest.mark.parametrize("credit", [GroupMean(), GroupZScore(), LeaveOneOut(), GroupSoftmax(0.7)], ids=repr)
@pytest.mark.parametrize(
    "term",
    [
        Term(unit=total, share=per_sequence),
        Term(unit=total, anchor=OLD, weight=ClippedRatio(), share=per_sequence),
    ],
    ids=["plain", "clipped"],
)
def test_pushes_of_a_group_sum_to_zero(credit: Credit, term: Term):
    logp_BT, batch = at_the_start(*groups())
    check_zero_sum(term, logp_BT, credited(declared(credit, term), batch))


@pytest.mark.parametrize("credit", [GroupMean(), GroupZScore(), LeaveOneOut(), GroupSoftmax(0.7)], ids=repr)
@pytest.mark.parametrize("measure", [average, total])
@pytest.mark.parametrize("anchor", [Anchor(b, (opponents_soft,)) for b in ("zero", "old", "ref")], ids=repr)
def test_pairwise_separation_sums_to_zero_always(credit: Credit, measure: Unit, anchor: Anchor):
    logp_BT, batch = groups()
    term = Term(unit=token, measure=measure, anchor=anchor, weight=Separation(3.0), share=per_sequence)
    check_zero_sum(term, logp_BT, credited(declared(credit, term), batch))


def check_zero_sum(term: Term, logp_BT: Tensor, batch: Batch) -> None:
    part = term.parts(logp_BT, batch)
    push_B = part.pull_BX[:, 0]
    for group in batch.group_B.unique():
        assert abs(float(push_B[batch.group_B == group].sum())) < 1e-15
    assert bool(push_B.any())


@pytest.mark.parametrize("base", ["old", "ref"])
@pytest.mark.parametrize("shift", ["opponents_soft", "opponents", "group", "none"])
def test_gro_against_old_or_ref_starts_as_reinforce(base: str, shift: str):
    update = at_the_start(*groups())
    gro = build("gro", credit="zscore", base=base, shift=shift, share="sequence_mean", target_weight=0.0)
    same(pull(gro, *update), pull(REINFORCE_ON_Z, *update))


@pytest.mark.parametrize(
    ("weight", "value", "strength"),
    [
        (Logistic(0.3), math.log(2), 0.3 / 2),
        (Logistic(0.3, smoothing=0.1), math.log(2), 0.3 * (0.5 - 0.1)),
        (RobustLogistic(0.3, 0.1), math.log(2), 0.3 / (2 * (1 - 2 * 0.1))),
        (Ipo(0.3), 1 / (4 * 0.3**2), 1 / 0.3),
        # f(0) and −βf′(0) of the six GPO losses
        (Logistic(2.0), math.log(2), 2 * 0.5),
        (Hinge(2.0), 1, 2 * 1),
        (Squared(2.0), 1, 2 * 2),
        (Exponential(2.0), 1, 2 * 1),
        (TruncatedQuadratic(2.0), 1, 2 * 2),
        (Savage(2.0), 0.25, 2 * 0.25),
    ],
    ids=repr,
)
def test_preferences_start_with(weight: Weight, value: float, strength: float):
    logp_BT, batch = at_the_start(*pairs())
    algorithm = preference(weight)
    assert loss(algorithm, logp_BT, batch) == pytest.approx(value, abs=1e-14)
    pushes = declared(Labels(), Term(unit=total, share=per_pair, rows="paired"))
    same(pull(algorithm, logp_BT, batch), strength * pull(pushes, logp_BT, batch))


def test_kto_and_apo_start_with():
    logp_BT, batch = at_the_start(*pairs())
    bell = Term(
        unit=total, anchor=REF, weight=Bell(0.4), value=Desirability(1.0, 1.0), rows="paired", share=per_sequence
    )
    kto, apo = declared(Labels(), bell), declared(Labels(), replace(bell, share=per_pair))
    assert loss(kto, logp_BT, batch) == pytest.approx(0.5)
    assert loss(apo, logp_BT, batch) == pytest.approx(1.0)
    same(pull(kto, logp_BT, batch), pull(build("dpo", beta=0.4), logp_BT, batch) / 4)


# --- always ----------------------------------------------------------------------------------------------------------


def agree(one_: Algorithm, other: Algorithm, factor: float, update: tuple[Tensor, Batch]) -> None:
    """one = factor · other, in value and gradient."""
    same(pull(one_, *update), factor * pull(other, *update))
    assert loss(one_, *update) == pytest.approx(factor * loss(other, *update), abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_gro_of_a_labelled_pair_is_dpo(beta: float):
    # GRO counts completions, DPO pairs, of which there are half as many.
    logp_BT, batch = pairs()
    index_B = torch.nonzero(torch.isin(batch.group_B, torch.tensor([0, 7])))[:, 0]  # labelled ±1, nothing missing
    update = logp_BT[index_B], batch.rows(index_B)
    gro = build(
        "gro",
        credit="mean",
        unit="total",
        measure="total",
        base="ref",
        kappa=beta,
        share="per_sequence",
        target_weight=0,
    )
    agree(gro, build("dpo", beta=beta), 1 / beta, update)
    (term,) = gro.terms
    assert isinstance(term, Term)
    agree(declared(gro.credit, replace(term, share=per_pair)), build("dpo", beta=beta), 2 / beta, update)


def test_gpo_squared_is_ipo_and_logistic_is_dpo():
    for beta in (0.1, 0.8):
        agree(preference(Squared(beta)), preference(Ipo(beta / 2)), beta**2, pairs())
        agree(preference(Logistic(beta)), build("dpo", beta=beta), 1, pairs())


def test_cpl_without_bias_is_dpo_without_reference():
    zero = Anchor("zero", (partner,))
    cpl = preference(Logistic(0.3), unit=Discounted(1.0), anchor=Anchor("zero", (Partner(1.0),)))
    agree(cpl, preference(Logistic(0.3), anchor=zero), 1, pairs())


def of_equal_lengths(logp_BT: Tensor, batch: Batch, tokens: int) -> tuple[Tensor, Batch]:
    mask_BT = torch.zeros_like(batch.mask_BT)
    mask_BT[:, :tokens] = True
    random = torch.Generator().manual_seed(1)
    logp_BT = -torch.rand(logp_BT.shape, generator=random, dtype=torch.float64)
    return logp_BT, replace(batch, mask_BT=mask_BT)


def test_simpo_of_equal_lengths_is_dpo_without_reference():
    zero, update = Anchor("zero", (partner,)), of_equal_lengths(*pairs(), tokens=4)
    simpo = preference(Logistic(2.0), unit=average, anchor=zero)
    agree(simpo, preference(Logistic(2.0 / 4), anchor=zero), 1, update)


def test_apo_zero_is_kto_of_balanced_pairs():
    bell = Term(unit=total, anchor=REF, weight=Bell(0.4), value=Desirability(), rows="paired", share=per_sequence)
    agree(declared(Labels(), replace(bell, share=per_pair)), declared(Labels(), bell), 2, pairs())


def test_separation_vanishes_into_reinforce():
    plain = build("gro", kappa=0.0)
    torch.testing.assert_close(pull(build("gro", kappa=1e-7), *groups()), pull(plain, *groups()), rtol=0, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 9), shift=st.floats(-9, 9))
def test_what_preferences_and_z_scores_do_not_see(seed: int, scale: float, shift: float):
    logp_BT, batch = pairs(seed)
    assert batch.reward_B is not None
    assert batch.ref_BT is not None
    rewards = replace(batch, reward_B=scale * batch.reward_B + shift)
    dpo = build("dpo", beta=0.3, margin=0.2)
    same(pull(dpo, logp_BT, rewards), pull(dpo, logp_BT, batch))
    # the same shift of ℓ and ref, token by token; and one of the totals of a prompt's completions
    moved_BT = shift * torch.arange(logp_BT.shape[1]).cos()
    both = pull(dpo, logp_BT + moved_BT, replace(batch, ref_BT=batch.ref_BT + moved_BT))
    torch.testing.assert_close(both, pull(dpo, logp_BT, batch), rtol=0, atol=1e-10)
    first_BT = batch.mask_BT & (batch.mask_BT.cumsum(1) == 1)
    constant_BT = batch.ref_BT + torch.where(first_BT, shift * (1.0 + batch.group_B[:, None]), 0.0)
    prompt = pull(dpo, logp_BT, replace(batch, ref_BT=constant_BT))
    torch.testing.assert_close(prompt, pull(dpo, logp_BT, batch), rtol=0, atol=1e-10)

    logp_BT, batch = groups(seed)
    assert batch.reward_B is not None
    rewards = replace(batch, reward_B=scale * batch.reward_B + shift)
    grpo = build("grpo", eps=0.0)
    torch.testing.assert_close(pull(grpo, logp_BT, rewards), pull(grpo, logp_BT, batch), rtol=0, atol=1e-9)
