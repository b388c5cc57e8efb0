"""GRPO as libraries compute it: which are the same, how far they are apart, and what is said about each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from algorithms import updates
from gro.algorithms import build
from gro.algorithms.describe import describe, formula
from gro.objective import Algorithm, coefficients
from gro.objective.credit import Constant, GroupMean, KlAfterwards, LeaveOneOut, LeaveOneOutZScore, NoBaseline
from gro.objective.credit import MovingAverage as Moving
from objective.fixture import group_batch, value_and_gradient


def pull(algorithm: Algorithm, seed: int = 0) -> torch.Tensor:
    logp_BT, batch = updates.groups(seed)
    return coefficients(logp_BT, replace(batch, advantage_BX=algorithm.credit(batch, {})[0]), algorithm)


def same(one: Algorithm, other: Algorithm) -> None:
    assert bool(pull(one).any())
    torch.testing.assert_close(pull(one), pull(other), rtol=0, atol=1e-12)


def test_trls_loss_types_are_algorithms_of_their_own():
    trl = {"ddof": 1, "eps": 1e-4}
    same(build("grpo_trl"), build("dapo", clip_high=0.2, tokens="batch", **trl))
    same(build("grpo_trl", loss_type="bnpo"), build("bnpo", **trl))
    same(build("grpo_trl", loss_type="grpo"), build("grpo", beta=0.0, **trl))
    same(build("grpo_trl", loss_type="grpo", beta=0.2), build("grpo", beta=0.2, kl="rk3", **trl))
    same(build("grpo_trl", loss_type="dr_grpo", scale_rewards="none"), build("dr_grpo"))
    same(build("grpo_trl", loss_type="cispo", epsilon_high=3.0), build("cispo", cap=3.0, tokens="batch", **trl))
    same(build("grpo_trl", loss_type="sapo"), build("sapo", **trl))
    same(
        build("grpo_trl", loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, sequence_level=True), build("gspo", **trl)
    )


def test_by_how_much_the_same_name_differs():
    """One success of four: advantages 1.5 and −.5, or √3 and −1/√3, or .75 and −.25."""
    batch = group_batch(reward_B=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    expected = {
        "grpo": (math.sqrt(3), -1 / math.sqrt(3)),
        "grpo_trl": (1.5, -0.5),
        "grpo_verl": (1.5, -0.5),
        "grpo_open_instruct": (0.75, -0.25),
    }
    for name, (success, failure) in expected.items():
        advantage_B1, _ = build(name).credit(batch, {})
        assert advantage_B1[:, 0].tolist() == pytest.approx([success] + [failure] * 3, rel=3e-4), name


def test_openrlhf_takes_the_kl_off_after_the_baseline():
    """k1 of the fixture: [.1 −.1 | 0 .2 −.3 | −.3 | .1 .2]; β .1, to go."""
    advantage_BT, _ = KlAfterwards(GroupMean(), 0.1)(group_batch(), {})
    mask_BT = group_batch().mask_BT
    expected = [0.625, 0.635, -0.365, -0.365, -0.345, 0.155, -0.405, -0.395]
    assert advantage_BT[mask_BT].tolist() == pytest.approx(expected)
    cut_BT, _ = KlAfterwards(GroupMean(), 0.1, limit=0.15)(group_batch(), {})
    # cut off: [.1 −.1 | 0 .15 −.15 | −.15 | .1 .15]
    expected = [0.625, 0.635, -0.375, -0.375, -0.36, 0.14, -0.4, -0.39]
    assert cut_BT[mask_BT].tolist() == pytest.approx(expected)
    assert KlAfterwards(GroupMean(), 0.0).reads == frozenset()
    before_B1, _ = GroupMean(kl=0.1)(group_batch(), {})
    assert (before_B1 - advantage_BT)[mask_BT].abs().min() > 1e-3, "the order matters"


def test_verl_stops_a_bad_completion_at_three():
    """The second completion is worse than its group and its first token ten times as likely as before."""
    old_BT = group_batch().old_BT
    assert old_BT is not None
    old_BT = old_BT.clone()
    old_BT[1, 0] = -1.2 - math.log(10)
    gradients = {
        name: value_and_gradient(build(name), group_batch(build(name), old_BT=old_BT))[1]
        for name in ("grpo_verl", "grpo_trl")
    }
    assert gradients["grpo_verl"][2] == 0
    assert gradients["grpo_trl"][2] == pytest.approx(10 * 0.783186 / 8, abs=1e-6)
    limited = build("grpo_trl", delta=3.0)
    assert value_and_gradient(limited, group_batch(limited, old_BT=old_BT))[1][2] == 0


def test_verl_cuts_k3_off_at_ten():
    """A token of the reference e^3 times as likely: k3 = e^3 − 1 − 3 = 16.09 counts 10 and pulls no longer."""
    logp_BT = torch.tensor([[-5.0], [-1.0]], dtype=torch.float64)
    batch = replace(group_batch().rows(torch.tensor([0, 1])), mask_BT=torch.ones(2, 1, dtype=torch.bool))
    ref_BT = torch.tensor([[-2.0], [-0.5]], dtype=torch.float64)
    batch = replace(batch, old_BT=logp_BT, ref_BT=ref_BT, advantage_BX=torch.zeros(2, 1, dtype=torch.float64))
    pulls = coefficients(logp_BT, batch, build("grpo_verl", kl=1.0))[:, 0].tolist()
    assert pulls == pytest.approx([0.0, (math.exp(0.5) - 1) / 2])


def test_nemo_rl_divides_by_the_deviation_of_the_others():
    """[1 0 .5 0]: the others of 1 are 0 .5 0 (mean 1/6, std .288675), of 0 are 1 .5 0 (½, ½), of .5 are 1 0 0."""
    advantage_B1, _ = LeaveOneOutZScore(eps=0.0)(group_batch(), {})
    third = math.sqrt(1 / 3)
    assert advantage_B1[:, 0].tolist() == pytest.approx([5 / 6 / (third / 2), -1.0, 1 / 6 / third, -1.0])
    # all others alike, or only one: not divided
    two, few = ([1.0, 0.0, 1.0, 0.0], torch.tensor([0, 0, 1, 1])), ([1.0, 0.0, 0.0, 0.0], torch.zeros(4).long())
    for (rewards, groups), expected in ((two, [1, -1, 1, -1]), (few, [1.0, -third, -third, -third])):
        batch = group_batch(reward_B=torch.tensor(rewards, dtype=torch.float64), group_B=groups)
        assert LeaveOneOutZScore(eps=0.0)(batch, {})[0][:, 0].tolist() == pytest.approx(expected)


def test_nemo_rls_kl_has_the_gradient_of_k2():
    """exp(x − sg[x])·k3, differentiated, against the declaration's KL term."""
    algorithm = build("grpo_nemo_rl", kl=0.3)
    algorithm = replace(algorithm, terms=algorithm.terms[1:])
    logp_BT, batch = updates.groups()
    leaf_BT = logp_BT.nan_to_num(0, 0, 0).requires_grad_()
    assert batch.ref_BT is not None
    away_BT = leaf_BT - batch.ref_BT.nan_to_num(0, 0, 0)
    k3_BT = (leaf_BT - leaf_BT.detach()).exp() * ((-away_BT).exp() - 1 + away_BT)
    c_BT = coefficients(logp_BT, replace(batch, advantage_BX=algorithm.credit(batch, {})[0]), algorithm)
    kept_BT = c_BT != 0
    (expected_BT,) = torch.autograd.grad(0.3 * k3_BT[kept_BT].sum() / kept_BT.sum(), leaf_BT)
    torch.testing.assert_close(-c_BT, expected_BT, rtol=0, atol=1e-12)


# --- what is said ----------------------------------------------------------------------------------------------------

OWN = "the mean reward of the prompt's completions, the completion's own included"
REWARD, LOSS = "k1 to the reference in the reward", "to the reference in the loss"


@pytest.mark.parametrize(
    ("name", "params", "what", "said"),
    [
        ("grpo", {}, "baseline", OWN),
        ("grpo", {}, "scale", "divided by the group's standard deviation, ddof 0 (÷ G), plus ε = 1e-06"),
        ("grpo", {}, "normaliser", "1/(B·|y|) per token: the mean over completions of the mean over their tokens"),
        ("grpo", {}, "KL", f"k3 {LOSS}, β = 0.04: its value estimates the reverse KL, its gradient is the *forward*"),
        ("grpo", {"kl": "k2"}, "KL", f"k2 {LOSS}, β = 0.04: its gradient is the reverse KL's, token by token"),
        ("grpo_trl", {}, "scale", "divided by the group's standard deviation, ddof 1 (÷ (G − 1)), plus ε = 0.0001"),
        ("grpo_trl", {}, "normaliser", "1/N per token, N the tokens of the term's rows in the whole update"),
        ("grpo_trl", {"beta": 0.1}, "KL", f"the ratio times k3 {LOSS}, β = 0.1: its gradient is exactly the reverse"),
        ("grpo_verl", {"kl": 0.001}, "KL", f"k3 {LOSS}, β = 0.001, cut off at 10: its value"),
        ("grpo_openrlhf", {}, "scale", "divided by the group's standard deviation, ddof 1 (÷ (G − 1)), plus ε = 1e-09"),
        (
            "grpo_openrlhf",
            {},
            "KL",
            f"{REWARD}, *after* the baseline, token by token, β = 0.01, each k1 cut off at ±",
        ),
        ("grpo_open_instruct", {}, "scale", "not divided by a standard deviation"),
        ("grpo_nemo_rl", {}, "baseline", "the mean reward of the prompt's other completions"),
        ("grpo_nemo_rl", {}, "scale", "divided by the others' standard deviation, ddof 1 (÷ (G − 2)), plus ε = 1e-06"),
        ("dapo", {}, "KL", "none"),
        ("rloo", {}, "baseline", "the mean reward of the prompt's other completions"),
        ("rloo", {}, "KL", f"{REWARD}, as a total, before the baseline, β = 0.05"),
        ("reinforce", {"kl": 0.1}, "baseline", "the mean reward of earlier steps"),
        ("reinforce", {"kl": 0.1}, "KL", f"{REWARD}, token by token, β = 0.1"),
        ("remax", {}, "baseline", "the reward of the prompt's greedy completion"),
        ("remax", {"kl": 0.1}, "KL", f"{REWARD}, of the sample only, after the baseline, β = 0.1"),
        ("reinforce_pp", {}, "baseline", "the mean reward-to-go of all completion tokens of the batch"),
        ("reinforce_pp", {}, "scale", "divided by the standard deviation of all tokens, ddof 0 (÷ N), the variance at"),
        ("reinforce_pp_baseline", {}, "baseline", f"{OWN}; then the mean over all completion tokens of the batch"),
        ("ppo", {"lam": 0.9}, "baseline", "a critic's value at every token, advantages by GAE with γ = 1 and λ = 0.9"),
        ("ppo", {"kl_target": 6.0}, "KL", f"{REWARD}, β = 0.05 at first, then moved towards 6 nats per completion"),
        ("ppo", {"whiten": True}, "scale", "divided by the standard deviation of all tokens, ddof 0 (÷ N), plus ε"),
        ("ppo_penalty", {}, "KL", "KL(old‖θ) in the loss, β = 1"),
        ("marwil", {}, "scale", "divided by the root of the running mean of A², a new batch counting 0.01"),
        ("a_lol", {}, "baseline", "a critic's value of the prompt"),
        ("a_lol", {"variant": "kl"}, "KL", "the log-ratio to the reference in the loss, on its own samples, β = 0.1"),
        ("trpo", {}, "KL", "a step's KL(old‖θ) is at most 0.01 nats per token"),
        ("ppo", {"kl": 0.0, "max_kl": 0.02}, "KL", "the passes over a batch end above a KL(old‖θ) of 0.02 nats"),
        ("grpo", {}, "bounds", "no push by a ratio above 1.2 where A > 0, nor by one below 0.8 where A < 0"),
        ("dapo", {}, "bounds", "no push by a ratio above 1.28 where A > 0, nor by one below 0.8 where A < 0"),
        ("grpo_verl", {}, "bounds", "no push by a ratio above 1.2 where A > 0, nor by one below 0.8 or above 3 where"),
        ("cispo", {}, "bounds", "a ratio counts as no more than 5, and is not differentiated"),
        ("a_lol", {}, "bounds", "a ratio counts as no more than 1.9 and no less than 0.1, and is not differentiated"),
        ("ppo", {}, "critic", "learns 0.1 · ½(V − return)², V no further than 0.2 from its old value, the mean over"),
        ("awr", {}, "critic", "learns ½(V − return)², the mean over all completion tokens"),
        ("a_lol", {}, "critic", "learns ½(V − return)², the mean over all completion tokens; only before the policy"),
    ],
    ids=str,
)
def test_an_algorithm_says_what_it_computes(name: str, params: dict, what: str, said: str):
    words = dict(describe(name, build(name, **params)).words)
    assert list(words)[:4] == ["baseline", "scale", "normaliser", "KL"]
    assert ("critic" in words) == (build(name, **params).critic is not None)
    assert words[what].startswith(said)


def test_where_nothing_is_compared_nothing_is_said():
    assert [what for what, _ in describe("sft").words] == ["normaliser", "KL"]
    assert [what for what, _ in describe("dpo").words] == ["normaliser", "KL"]


def test_a_credit_that_nobody_knows_speaks_for_itself():
    class Luck(Constant):
        """A = what a coin says (Fortuna, eq. 1).  More about it."""

    class Fair(NoBaseline):
        """A = R."""

    described = describe("grpo", replace(build("grpo"), credit=Luck(0.5)))
    assert dict(described.words)["baseline"] == "0.5", "a constant by another name"
    for credit in (Moving(), LeaveOneOut()):
        assert dict(describe("grpo", replace(build("grpo"), credit=credit)).words)["baseline"].startswith("the mean")
    assert "baseline" not in dict(describe("grpo", replace(build("grpo"), credit=Fair())).words)


def test_the_formula_holds_the_numbers():
    lines = {" ".join(line.split()) for line in formula(build("grpo_trl"))}
    assert "A = (R − group mean)/(group std + ε)" in lines
    assert "group std = √(Σ(R − group mean)²/(G − 1))" in lines
    assert "ε = 0.0001" in lines
    lines = {" ".join(line.split()) for line in formula(build("grpo"))}
    assert {"group std = √(Σ(R − group mean)²/G)", "ε = 1e-06", "β = 0.04"} <= lines
    lines = {" ".join(line.split()) for line in formula(build("grpo_openrlhf"))}
    assert "A = (R − group mean)/(group std + ε) − 0.01·Σ_k≥t(ℓ_old − ℓ_ref)" in lines


def test_ptx_is_listed_where_it_can_be_given():
    assert describe("grpo").parameters[-1].name == "ptx"
    assert [p.name for p in describe("sft").parameters] == []
    assert [p.name for p in describe("ppo_ptx").parameters].count("ptx") == 1
