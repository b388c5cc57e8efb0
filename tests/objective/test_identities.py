"""Identities between algorithms: at the start of a step (θ = old = ref), and always."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.objective import Algorithm, Anchor, Term, coefficients, loss_value
from gro.objective.anchors import Base, opponents_soft
from gro.objective.credit import Credit, GroupMean, GroupSoftmax, GroupZScore, Labels, LeaveOneOut
from gro.objective.shares import (
    per_pair,
    per_sequence,
    sequence_mean,
)
from gro.objective.units import Unit, average, token, total
from gro.objective.values import one
from gro.objective.weights import (
    K3,
    ClippedRatio,
    Ratio,
    RatioK3,
    Separation,
    SoftGate,
    Stay,
    TruncatedRatio,
    Weight,
)
from gro.types import Batch

OLD, REF = Anchor("old"), Anchor("ref")
EXACT = 1e-12


def declared(credit: Credit, *terms: Term) -> Algorithm:
    return Algorithm("test", credit, terms)


def groups(seed: int = 0) -> tuple[Tensor, Batch]:
    return updates.groups(seed)


def pairs(seed: int = 0) -> tuple[Tensor, Batch]:
    return updates.pairs(seed)


def labelled_pairs(seed: int = 0) -> tuple[Tensor, Batch]:
    """Three pairs labelled ±1, nothing missing."""
    logp_BT, batch = pairs(seed)
    index_R = torch.nonzero(torch.isin(batch.group_B, torch.tensor([0, 4, 7])))[:, 0]
    batch = batch.rows(index_R)
    return logp_BT[index_R], replace(batch, reward_B=labels(batch), role_B=None)


def labels(batch: Batch) -> Tensor:
    """±1 by who of a pair has the higher reward."""
    return Labels()(batch, {})[0][:, 0].double()


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
    [build("grpo", beta=0.0), build("grpo"), build("gspo"), build("sapo")],
    ids=["grpo without kl", "grpo", "gspo", "sapo"],
)
def test_grpo_gspo_and_sapo_start_as_reinforce_on_z_scores(algorithm: Algorithm):
    update = at_the_start(*groups())
    same(pull(algorithm, *update), pull(REINFORCE_ON_Z, *update))


@pytest.mark.parametrize("tokens", ["group", "batch"])
def test_dapo_starts_as_cispo(tokens: str):
    update = at_the_start(*groups())
    same(pull(build("dapo", tokens=tokens), *update), pull(build("cispo", tokens=tokens), *update))


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
    same(pull(build("rloo", kl=0.0), *update), 7 * 4 / 3 * pull(build("dr_grpo", length=7), *update))


def test_rebel_starts_as_leave_one_out():
    logp_BT, batch = at_the_start(*labelled_pairs())
    gaps_B = torch.tensor([2.0, 2.0, 0.5, 0.5, 3.0, 3.0], dtype=torch.float64)  # of rewards, not only their order
    batch = replace(batch, reward_B=gaps_B * labels(batch))
    rebel, rloo = build("rebel", eta=0.7), build("rloo", kl=0.0)
    # REBEL counts pairs, RLOO completions, of which there are twice as many.
    same(pull(rebel, logp_BT, batch), 4 / 0.7 * pull(rloo, logp_BT, batch))
    assert loss(rebel, logp_BT, batch) == pytest.approx((4.0**2 + 1.0**2 + 6.0**2) / 3)


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
    ("algorithm", "value", "strength"),
    [
        (build("dpo", beta=0.3), math.log(2), 0.3 / 2),
        (build("dpo", beta=0.3, label_smoothing=0.1), math.log(2), 0.3 * (0.5 - 0.1)),
        (build("dpo", beta=0.3, label_smoothing=0.1, robust=True), math.log(2), 0.3 / (2 * (1 - 2 * 0.1))),
        (build("ipo", beta=0.3), 1 / (4 * 0.3**2), 1 / 0.3),
        # f(0) and −βf′(0)
        (build("gpo", loss="logistic", beta=2.0), math.log(2), 2 * 0.5),
        (build("gpo", loss="hinge", beta=2.0), 1, 2 * 1),
        (build("gpo", loss="squared", beta=2.0), 1, 2 * 2),
        (build("gpo", loss="exponential", beta=2.0), 1, 2 * 1),
        (build("gpo", loss="truncated_quadratic", beta=2.0), 1, 2 * 2),
        (build("gpo", loss="savage", beta=2.0), 0.25, 2 * 0.25),
        (build("apo_zero", beta=0.4), 1, 0.4 / 4),
        (build("sppo", beta=0.4), 2 / (4 * 0.4**2), 1 / 0.4),
        # both ½: KL(½‖1 − ε), and its slope
        (build("exo", beta=0.4, label_smoothing=0.1), -math.log(2) - math.log(0.1 * 0.9) / 2, 0.1 * math.log(9)),
    ],
    ids=str,
)
def test_preferences_start_with(algorithm: Algorithm, value: float, strength: float):
    logp_BT, batch = at_the_start(*pairs())
    assert loss(algorithm, logp_BT, batch) == pytest.approx(value, abs=1e-14)
    pushes = declared(Labels(), Term(unit=total, share=per_pair, rows="paired"))
    same(pull(algorithm, logp_BT, batch), strength * pull(pushes, logp_BT, batch))


def test_kto_and_bco_start_with():
    update = at_the_start(*labelled_pairs())
    assert loss(build("kto", desirable=1.2, undesirable=0.8), *update) == pytest.approx((1.2 + 0.8) / 2 / 2)
    same(pull(build("kto", beta=0.4), *update), pull(build("dpo", beta=0.4), *update) / 4)
    assert loss(build("bco"), *update) == pytest.approx(math.log(2))
    same(pull(build("bco", beta=0.4), *update), pull(build("dpo", beta=0.4), *update) / 2)


def test_spin_starts_as_dpo_of_demonstrations_and_samples():
    logp_BT, batch = at_the_start(*labelled_pairs())
    demonstrated = replace(batch, role_B=(labels(batch) > 0).long(), reward_B=None)
    same(pull(build("spin"), logp_BT, demonstrated), pull(build("dpo"), logp_BT, batch))


# --- always ----------------------------------------------------------------------------------------------------------


def agree(one_: Algorithm, other: Algorithm, factor: float, update: tuple[Tensor, Batch]) -> None:
    """one = factor · other, in value and gradient."""
    same(pull(one_, *update), factor * pull(other, *update))
    assert loss(one_, *update) == pytest.approx(factor * loss(other, *update), abs=1e-12)


beta = st.floats(0.05, 3)
seeds = st.integers(0, 99)
sometimes = settings(max_examples=10, deadline=None)


@sometimes
@given(beta=beta, seed=seeds)
def test_gro_of_a_labelled_pair_is_dpo(beta: float, seed: int):
    update = labelled_pairs(seed)
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
    # GRO counts completions, DPO pairs, of which there are half as many.
    agree(gro, build("dpo", beta=beta), 1 / beta, update)
    (term,) = gro.terms
    assert isinstance(term, Term)
    agree(declared(gro.credit, replace(term, share=per_pair)), build("dpo", beta=beta), 2 / beta, update)


@sometimes
@given(beta=beta, seed=seeds)
def test_members_of_the_gpo_family(beta: float, seed: int):
    update, dpo = pairs(seed), build("dpo", beta=beta)
    agree(build("gpo", loss="squared", beta=beta), build("ipo", beta=beta / 2), beta**2, update)
    agree(build("gpo", loss="logistic", beta=beta), dpo, 1, update)
    agree(build("dpo", beta=beta, robust=True), dpo, 1, update)  # no label is flipped


@sometimes
@given(delta=st.floats(0.2, 5), seed=seeds)
def test_slic_without_imitation_is_the_hinge(delta: float, seed: int):
    hinge = of_base("zero", build("gpo", loss="hinge", beta=1 / delta))
    agree(build("slic", delta=delta, imitation=0.0), hinge, delta, pairs(seed))


def of_base(base: Base, algorithm: Algorithm) -> Algorithm:
    """The algorithm of one term with another base."""
    (term,) = algorithm.terms
    assert isinstance(term, Term)
    return replace(algorithm, terms=(replace(term, anchor=replace(term.anchor, base=base)),))


@sometimes
@given(beta=beta, seed=seeds)
def test_cpl_without_bias_is_dpo_without_reference(beta: float, seed: int):
    agree(build("cpl", beta=beta, bias=1.0), of_base("zero", build("dpo", beta=beta)), 1, pairs(seed))


@sometimes
@given(beta=beta, seed=seeds)
def test_spin_against_ref_is_dpo_of_demonstrations_and_samples(beta: float, seed: int):
    logp_BT, batch = labelled_pairs(seed)
    spin, dpo = build("spin", beta=beta, base="ref"), build("dpo", beta=beta)
    demonstrated = replace(batch, role_B=(labels(batch) > 0).long(), reward_B=None)
    same(pull(spin, logp_BT, demonstrated), pull(dpo, logp_BT, batch))
    assert loss(spin, logp_BT, demonstrated) == pytest.approx(loss(dpo, logp_BT, batch), abs=1e-12)


@sometimes
@given(beta=beta, seed=seeds)
def test_nca_of_a_cold_softmax_is_that_of_pairs(beta: float, seed: int):
    agree(build("nca", beta=beta, temperature=1e-3), build("nca", beta=beta), 1, labelled_pairs(seed))


def of_equal_lengths(logp_BT: Tensor, batch: Batch, tokens: int) -> tuple[Tensor, Batch]:
    mask_BT = torch.zeros_like(batch.mask_BT)
    mask_BT[:, :tokens] = True
    random = torch.Generator().manual_seed(1)
    logp_BT = -torch.rand(logp_BT.shape, generator=random, dtype=torch.float64)
    return logp_BT, replace(batch, mask_BT=mask_BT)


@sometimes
@given(beta=beta, seed=seeds)
def test_simpo_of_equal_lengths_is_dpo_without_reference(beta: float, seed: int):
    update = of_equal_lengths(*pairs(seed), tokens=4)
    agree(build("simpo", beta=beta, gamma=0.0), of_base("zero", build("dpo", beta=beta / 4)), 1, update)
    margin = of_base("zero", build("dpo", beta=beta / 4, margin=0.7))
    agree(build("simpo", beta=beta, gamma=0.7), margin, 1, update)


@sometimes
@given(beta=beta, seed=seeds)
def test_apo_zero_is_kto_of_balanced_pairs(beta: float, seed: int):
    agree(build("apo_zero", beta=beta), build("kto", beta=beta), 2, labelled_pairs(seed))  # no mismatches: z0 = 0


@sometimes
@given(beta=beta, seed=seeds)
def test_what_gro_contains(beta: float, seed: int):
    """With κ 0 REINFORCE under any baseline, advantage-weighted imitation, and importance sampling."""
    update = groups(seed)
    plain = partial(build, "gro", kappa=0.0, target_weight=0)
    agree(plain(credit="leave_one_out", share="per_sequence", kl=0.1), build("rloo", kl=0.1), 1, update)
    weighted = plain(credit="mean", value="exp", beta=beta, share="token_mean")
    agree(weighted, build("awr", beta=beta, cap=None, baseline="group"), 1, update)
    same(
        pull(plain(credit="mean", base="old"), *update),
        pull(build("dr_grpo", clip=1.0, clip_high=1e9), *update),
    )
    # and on a labelled pair, contrastive preference learning
    cpl = partial(build, "gro", credit="mean", unit="total", measure="total", share="per_sequence", target_weight=0)
    agree(cpl(kappa=beta), build("cpl", beta=beta, bias=1.0), 1 / beta, labelled_pairs(seed))


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
