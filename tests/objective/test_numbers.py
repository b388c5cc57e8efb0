"""Values worked out once in float64 by code that knows nothing of the equation, to the digits printed here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build
from gro.objective import Algorithm, Anchor, Term, coefficients, loss_value
from gro.objective.credit import (
    BatchMean,
    Credit,
    Gae,
    Greedy,
    GroupMean,
    GroupSoftmax,
    GroupZScore,
    LeaveOneOut,
    MovingAverage,
    NoBaseline,
    TokenZScore,
)
from gro.objective.units import log_odds, token
from gro.objective.values import Expm1
from gro.objective.weights import (
    K2,
    K3,
    ClippedRatio,
)
from gro.types import Batch
from objective.fixture import (
    LENGTHS,
    LOGP,
    REWARDS,
    grid,
    group_batch,
    mask,
    pair_batch,
    value_and_gradient,
    with_advantage,
)

OLD, REF = Anchor("old"), Anchor("ref")
DIGITS = 6e-7
"""The printed values have six digits after the point."""


def advantages(credit, batch=None) -> list[float]:
    advantage_BX, _ = credit(batch or group_batch(), {})
    if advantage_BX.shape[1] == 1:
        return advantage_BX[:, 0].tolist()
    return advantage_BX[mask()].tolist()


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (GroupMean(), [0.625, -0.375, 0.125, -0.375]),
        (GroupZScore(eps=0), [1.507557, -0.904534, 0.301511, -0.904534]),
        (GroupZScore(ddof=1, eps=0), [1.305582, -0.783349, 0.261116, -0.783349]),
        (GroupZScore(ddof=1, eps=1e-4), [1.305310, -0.783186, 0.261062, -0.783186]),
        (LeaveOneOut(), [0.833333, -0.5, 0.166667, -0.5]),
        (LeaveOneOut(kl=0.05), [0.831667, -0.495, 0.185, -0.521667]),
        (GroupSoftmax(beta=0.5), [1.441183, -0.669622, -0.101939, -0.669622]),
        (BatchMean(), [0.625, -0.375, 0.125, -0.375]),
        (
            TokenZScore(kl=0.01),
            [1.601968, 1.604300, -0.727531, -0.727531, -0.722868, 0.443048, -0.736859, -0.734527],
        ),
        (
            TokenZScore(kl=0, group_baseline=True),
            [1.604515] * 2 + [-0.729325] * 3 + [0.437595] + [-0.729325] * 2,
        ),
        (NoBaseline(), [1.0, 0.0, 0.5, 0.0]),
    ],
)
def test_credit(credit, expected):
    assert advantages(credit) == pytest.approx(expected, abs=DIGITS)


def test_greedy_credit():
    batch = group_batch(greedy_B=torch.full((4,), 0.5, dtype=torch.float64))
    assert advantages(Greedy(), batch) == pytest.approx([0.5, -0.5, 0.0, -0.5])


@pytest.mark.parametrize(
    ("rewards", "credit", "expected"),
    [
        ([1, 0, 0, 0], GroupZScore(eps=0), [1.732051] + [-0.577350] * 3),
        ([1, 0, 0, 0], GroupZScore(ddof=1, eps=0), [1.5, -0.5, -0.5, -0.5]),
        ([1, 0, 0, 0], LeaveOneOut(), [1, -1 / 3, -1 / 3, -1 / 3]),
        ([0.1, 0.1, 0.1, 0.1], GroupZScore(eps=0), [0, 0, 0, 0]),
        ([0.1, 0.1, 0.1, math.nan], GroupZScore(eps=0), [0, 0, 0, 0]),
    ],
)
def test_group_credit_of_few_rewards(rewards, credit, expected):
    batch = group_batch(reward_B=torch.tensor(rewards, dtype=torch.float64))
    assert advantages(credit, batch) == pytest.approx(expected, abs=DIGITS)


def test_moving_average_uses_earlier_steps_only():
    credit, state = MovingAverage(), {}
    for reward in (1.0, 0.0):
        batch = Batch(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long), torch.tensor([reward]))
        _, state = credit(batch, state)
    batch = Batch(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long), torch.tensor([2.0]))
    advantage_B1, state = credit(batch, state)
    assert advantage_B1.item() == 1.5
    assert state == {"steps": 3, "mean": 1.0}


@pytest.mark.parametrize(
    ("gamma", "lam", "expected", "returns"),
    [
        (1, 0.95, [0.7465, 0.47, 0.6], [0.9465, 0.97, 1]),
        (1, 1, [0.8, 0.5, 0.6], [1, 1, 1]),
        (1, 0, [0.3, -0.1, 0.6], [0.5, 0.4, 1]),
        (0.99, 0.95, [0.72791215, 0.4603, 0.6], [0.92791215, 0.9603, 1]),
    ],
)
def test_gae(gamma, lam, expected, returns):
    batch = Batch(
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
        torch.tensor([1.0], dtype=torch.float64),
        values_BT=torch.tensor([[0.2, 0.5, 0.4]], dtype=torch.float64),
    )
    advantage_BT, _ = Gae(gamma=gamma, lam=lam)(batch, {})
    assert advantage_BT[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert Gae(gamma=gamma, lam=lam).returns(batch, {})[0].tolist() == pytest.approx(returns, abs=1e-9)


def only(algorithm: Algorithm, *terms: int, credit: Credit | None = None) -> Algorithm:
    """These terms of a declaration; with another credit where one is given."""
    chosen = replace(algorithm, terms=tuple(algorithm.terms[k] for k in terms))
    return chosen if credit is None else replace(chosen, credit=credit, critic=None)


GROUP = {
    "rloo": (
        build("rloo", kl=0.0),
        -0.29583333,
        [-0.208333] * 2 + [0.125] * 3 + [-0.041667] + [0.125] * 2,
    ),
    "remax": (build("remax"), -0.4375, [-0.125] * 2 + [0.125] * 3 + [0] + [0.125] * 2),
    "grpo without kl": (
        build("grpo", beta=0.0, eps=0.0),
        -0.04479989,
        [-0.208263, -0.188445, 0.061714, 0.075378, 0.101749, 0, 0, 0.113067],
    ),
    "grpo": (
        build("grpo", eps=0.0),
        -0.04429756,
        [-0.207357, -0.188970, 0.060976, 0.075982, 0.101749, 0.000952, -0.001107, 0.113973],
    ),
    "k3 alone": (only(build("grpo", eps=0.0), 1), 0.00050233, None),
    "ratio times k3 alone": (
        only(build("grpo", kl="rk3", eps=0.0), 1),
        0.00049530,
        [0.001105, -0.000500, -0.000546, 0.000667, 0, 0.001492, -0.000741, 0.001000],
    ),
    "dapo": (
        build("dapo", eps=0.0),
        0.11683241,
        [-0.208263, -0.188445, 0.092571, 0.113067, 0.152624, 0, 0, 0.113067],
    ),
    "dr_grpo": (
        build("dr_grpo", length=4),
        0.02484308,
        [-0.043171, -0.039062, 0.019189, 0.023438, 0.031637, 0, 0, 0.023438],
    ),
    "gspo": (build("gspo", eps=0.0), 0.00741607, [0, 0, 0.077933, 0.077933, 0.077933, 0, 0, 0]),
    "gspo, wide": (
        build("gspo", clip=0.1, clip_high=0.1, eps=0.0),
        -0.04180984,
        [-0.198106] * 2 + [0.077933] * 3 + [0, 0, 0],
    ),
    "gspo per token": (
        build("gspo", clip=0.1, clip_high=0.1, eps=0.0, per_token=True),
        None,
        [-0.198106] * 2 + [0.077933] * 3 + [0, 0, 0],
    ),
    "cispo": (
        build("cispo", cap=1.28, eps=0.0),
        -0.18925161,
        [-0.208263, -0.188445, 0.092571, 0.113067, 0.144725, -0.048242, 0.083762, 0.113067],
    ),
    "sapo": (
        build("sapo", eps=0.0),
        -0.11588563,
        [-0.207689, -0.188445, 0.061159, 0.075378, 0.098392, -0.105915, 0.082230, 0.113067],
    ),
    "reinforce++": (
        build("reinforce_pp"),
        -0.03542989,
        [-0.221306, -0.200537, 0.074457, 0.090941, 0.121971, 0, 0, 0.091816],
    ),
    "ppo penalty": (
        only(build("ppo_penalty", beta=0.5), 0, 1, credit=GroupMean()),
        0.05525246,
        [-0.079768, -0.078125, 0.027049, 0.046875, 0.085141, 0.007429, 0.018527, 0.046875],
    ),
    "ppo on sequences": (
        build("ppo_sequence", kl=0.0),
        -0.04209758,
        [-0.230244] * 2 + [0.138146] * 3 + [0, 0, 0],
    ),
    "a_lol": (build("a_lol"), 0.31221078, [-0.193405] * 2 + [0] * 3 + [-0.055259] + [0] * 2),
}


@pytest.mark.parametrize("name", GROUP)
def test_policy_gradients(name):
    algorithm, value, gradient = GROUP[name]
    greedy_B, values_BT = torch.full((4,), 0.5, dtype=torch.float64), torch.full((4, 3), 0.3, dtype=torch.float64)
    loss, found = value_and_gradient(algorithm, group_batch(algorithm, greedy_B=greedy_B, values_BT=values_BT))
    if value is not None:
        assert loss == pytest.approx(value, abs=1e-8)
    if gradient is not None:
        assert found == pytest.approx(gradient, abs=DIGITS)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.02, 2), (0.006, 0.5), (0.012, 1), (0.01501, 2), (0.01499, 1), (0.00667, 1), (0.00666, 0.5)],
)
def test_ppos_penalty_adapts(kl, factor):
    """Target .01: doubled above .015, halved below .00667; only the penalty, from where it stands."""
    algorithm = build("ppo_penalty")
    assert algorithm.adapted(None, kl) == (1.0, factor)
    assert algorithm.adapted((1.0, 0.25), kl) == (1.0, 0.25 * factor)
    assert build("ppo_penalty", adaptive=False).adapted(None, kl) == (1.0, 1.0)


def test_gspo_per_token_has_the_papers_gradient():
    """Eq. 13 literally: s_i,t = sg[s_i]·π/sg[π], the tokens' mean of min(s A, clip(s) A)."""
    algorithm = build("gspo", clip=0.1, clip_high=0.1, per_token=True)
    batch = group_batch(algorithm)
    assert batch.old_BT is not None
    assert batch.advantage_BX is not None
    leaf_BT = grid(LOGP).requires_grad_()
    losses = []
    for i, n in enumerate(LENGTHS):
        logp_T = leaf_BT[i, :n]
        s = (logp_T - batch.old_BT[i, :n]).mean().exp().detach() * (logp_T - logp_T.detach()).exp()
        a = float(batch.advantage_BX[i])
        losses.append(-torch.minimum(s * a, s.clamp(0.9, 1.1) * a).mean() / len(LENGTHS))
    (expected_BT,) = torch.autograd.grad(torch.stack(losses).sum(), leaf_BT)
    torch.testing.assert_close(-coefficients(leaf_BT, batch, algorithm), expected_BT, rtol=0, atol=1e-12)


def test_sampled_entropy_of_the_policys_own_samples():
    bonus = only(build("ppo", entropy=0.01, entropy_estimate="sampled"), 1, credit=NoBaseline())
    _, gradient = value_and_gradient(bonus, group_batch(bonus, old_BT=grid(LOGP)))
    assert gradient == pytest.approx([0.01 * x / 8 for x in LOGP], abs=1e-12)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [0.5, 0.8, 1, 1.2, 0]), (-1.0, [0, 0.8, 1, 1.2, 1.5])])
def test_clip_table(advantage, expected):
    r = torch.tensor([0.5, 0.8 + 1e-12, 1, 1.2 - 1e-12, 1.5], dtype=torch.float64)
    a = torch.full_like(r, advantage)
    assert ClippedRatio()(r.log(), a, a, None).tolist() == pytest.approx(expected)


PAIRS = {
    "dpo": (build("dpo"), 0.68815968, [-0.024875, 0.024875] * 2),
    "cdpo": (build("dpo", label_smoothing=0.1), 0.68915968, [-0.019875, 0.019875] * 2),
    "robust dpo": (build("dpo", label_smoothing=0.1, robust=True), 0.68690968, [-0.031125, 0.031125] * 2),
    "dpo, margins of the data": (build("dpo", data_margin=1.0), 0.74040629, [-0.027368, 0.027368, -0.024875, 0.024875]),
    "ipo": (build("ipo"), 24.01, [-4.9, 4.9] * 2),
    "ipo average": (build("ipo", unit="average"), 24.25625, [-2.475, 1.65, -4.9, 2.45]),
    "gpo logistic": (build("gpo", loss="logistic", beta=0.5), 0.66845965, [-0.121876, 0.121876] * 2),
    "gpo hinge": (build("gpo", loss="hinge", beta=0.5), 0.95, [-0.25, 0.25] * 2),
    "gpo squared": (build("gpo", loss="squared", beta=0.5), 0.9025, [-0.475, 0.475] * 2),
    "gpo exponential": (build("gpo", loss="exponential", beta=0.5), 0.95122942, [-0.237807, 0.237807] * 2),
    "gpo truncated": (build("gpo", loss="truncated_quadratic", beta=0.5), 0.9025, [-0.475, 0.475] * 2),
    "gpo savage": (build("gpo", loss="savage", beta=0.5), 0.23765879, [-0.060900, 0.060900] * 2),
    "slic": (build("slic"), 0.295, [-0.55, 0.5, -0.05, 0.0]),
    "simpo": (build("simpo", gamma=0.5), 0.61069435, [-0.322828, 0.215219, -0.167982, 0.083991]),
    "orpo": (build("orpo"), 0.61916031, [-0.274839, 0.017356, -0.519865, 0.004278]),
    "cpl, b 1": (build("cpl", bias=1.0), 0.61976827, [-0.024250, 0.024250, -0.021891, 0.021891]),
    "cpl": (build("cpl"), 0.67896248, [-0.025562, 0.012781, -0.023689, 0.011844]),
    "spin": (build("spin"), 0.67595337, [-0.025, 0.025, -0.024125, 0.024125]),
    "apo_zero": (build("apo_zero"), 0.99750002, [-0.0125, 0.0125] * 2),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preferences(name):
    algorithm, value, (chosen1, rejected1, chosen2, rejected2) = PAIRS[name]
    margin_B = torch.tensor([0.2, 0.2, 0.0, 0.0], dtype=torch.float64)
    role_B = torch.tensor([1, 0, 1, 0]) if name == "spin" else None  # the chosen are demonstrations
    loss, gradient = value_and_gradient(algorithm, pair_batch(algorithm, margin_B=margin_B, role_B=role_B))
    assert loss == pytest.approx(value, abs=1e-8)
    assert gradient == pytest.approx([chosen1] * 2 + [rejected1] * 3 + [chosen2] + [rejected2] * 2, abs=DIGITS)


@pytest.mark.parametrize(
    ("eta", "value", "expected"),
    [(1.0, 0.52, [-1, 1, 0.2, -0.2]), (2.0, 0.51125, [-0.5, 0.5, -0.075, 0.075])],  # the first overshoots
)
def test_rebel(eta, value, expected):
    algorithm = build("rebel", eta=eta)
    batch = pair_batch(algorithm, reward_B=torch.tensor(REWARDS, dtype=torch.float64))
    loss, gradient = value_and_gradient(algorithm, batch)
    assert loss == pytest.approx(value, abs=1e-8)
    assert gradient == pytest.approx([g for g, n in zip(expected, LENGTHS, strict=True) for _ in range(n)], abs=DIGITS)


def test_cpl_with_bias_and_discount():
    algorithm = build("cpl", beta=1.0, bias=0.5, gamma=0.9)
    loss, gradient = value_and_gradient(algorithm, pair_batch(algorithm))
    assert loss == pytest.approx(0.61908194, abs=1e-8)
    expected = [-0.301981, -0.271783, 0.150990, 0.135891, 0.122302, -0.133980, 0.066990, 0.060291]
    assert gradient == pytest.approx(expected, abs=DIGITS)


def test_log_odds():
    odds = log_odds(grid(LOGP), mask())[:, 0].tolist()
    assert odds == pytest.approx([-0.110647, -0.013659, 0.709633, -1.182682], abs=DIGITS)


def with_mismatches(batch: Batch, ratios: list[float]) -> tuple[Tensor, Batch]:
    """The fixture, and a completion of one token for each log-ratio that belongs to another prompt."""
    rows = len(ratios)
    logp_BT = torch.cat([grid(LOGP), torch.full((rows, 3), -1.0, dtype=torch.float64)])
    assert batch.ref_BT is not None
    assert batch.reward_B is not None
    lower_R1 = torch.tensor(ratios, dtype=torch.float64)[:, None]
    return logp_BT, Batch(
        mask_BT=torch.cat([batch.mask_BT, torch.arange(3).expand(rows, 3) == 0]),
        group_B=torch.cat([batch.group_B, torch.arange(rows)]),
        reward_B=torch.cat([batch.reward_B, torch.full((rows,), math.nan)]),
        role_B=torch.cat([torch.zeros(4, dtype=torch.long), torch.full((rows,), 2)]),
        ref_BT=torch.cat([batch.ref_BT, logp_BT[4:] - lower_R1]),
    )


@pytest.mark.parametrize(
    ("ratios", "z0"), [([0.3, -0.1, 0.2, 0.0], 0.1), ([-0.3, -0.1, 0.1, 0.0], 0.0), ([0.1, 0.0], 0.05), ([], 0.0)]
)
def test_ktos_estimate_of_the_kl(ratios, z0):
    algorithm = build("kto")
    logp_BT, batch = with_mismatches(pair_batch(), ratios)
    (term,) = algorithm.terms
    assert isinstance(term, Term)
    u_B = term.parts(logp_BT, with_advantage(batch, algorithm)).u_BX[:4, 0]
    assert u_B.tolist() == pytest.approx([0.1 - z0, 0.0 - z0, 0.1 - z0, 0.0 - z0])


def test_kto():
    algorithm = build("kto", undesirable=1.33)
    logp_BT, batch = with_mismatches(pair_batch(), [0.1, 0.0])  # z0 = .05
    batch = with_advantage(batch, algorithm)
    assert float(loss_value(logp_BT, batch, algorithm)) == pytest.approx(0.58104375, abs=1e-8)
    gradient = (-coefficients(logp_BT, batch, algorithm))[batch.mask_BT].tolist()
    expected = [-0.006250] * 2 + [0.008312] * 3 + [-0.006250] + [0.008312] * 2 + [0.0] * 2
    assert gradient == pytest.approx(expected, abs=DIGITS)


@pytest.mark.parametrize(
    ("settings", "value", "gradient"),
    [
        ({"margin": 0.3}, 0.47407698, [-0.37754067, 0.37754067]),
        ({"data_margin": 0.6}, 0.47407698, [-0.37754067, 0.37754067]),
        ({"margin": 0.3, "centring": 0.01}, 0.47407698 + 0.0144, [-0.37754067 + 0.024, 0.37754067 + 0.024]),
    ],
)
def test_bradley_terry(settings, value, gradient):
    """Scores 1 and .2."""
    algorithm = build("bradley_terry", **settings)
    rewards, margins = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
    batch = Batch(torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.long), rewards, margin_B=margins)
    batch = with_advantage(batch, algorithm)
    score_B1 = torch.tensor([[1.0], [0.2]], dtype=torch.float64)
    assert float(loss_value(score_B1, batch, algorithm)) == pytest.approx(value, abs=1e-8)
    assert (-coefficients(score_B1, batch, algorithm))[:, 0].tolist() == pytest.approx(gradient, abs=1e-8)


# --- GRO -----------------------------------------------------------------------------------------------------------


def gro_parts(**settings):
    """(the factors on the group, the declaration, the batch) of GRO counted per sequence, without demonstrations."""
    algorithm = build("gro", share="per_sequence", target_weight=0, **{"credit": "mean"} | settings)
    batch = group_batch(algorithm)
    (term,) = algorithm.terms
    assert isinstance(term, Term)
    return term.parts(grid(LOGP), batch), algorithm, batch


@pytest.mark.parametrize(
    ("settings", "u", "w"),
    [
        ({"kappa": 1}, [0.325, -0.125, 0.675, -0.875], [0.838915, 0.937581, 0.674756, 0.588430]),
        ({"kappa": 10}, None, [0.074654, 0.445400, 0.002339, 0.000317]),
        ({"kappa": 1, "measure": "total"}, None, [0.537883, 0.480978, 0.218194, 0.249107]),
        ({"kappa": 10, "base": "ref"}, [0.05, -0.075, 0.10, -0.075], [0.755081, 0.641643, 0.537883, 0.641643]),
    ],
    ids=str,
)
def test_gro_against_the_mean_opponent(settings, u, w):
    part, _, _ = gro_parts(shift="opponents", **settings)
    assert part.w_BX[:, 0].tolist() == pytest.approx(w, abs=DIGITS)
    if u is not None:
        assert part.u_BX[:, 0].tolist() == pytest.approx(u, abs=DIGITS)


def test_gro_pairwise():
    part, algorithm, batch = gro_parts(unit="average")
    assert part.w_BX[:, 0].tolist() == pytest.approx([0.623370, 1.053241, 0.047453, 0.001528], abs=DIGITS)
    pushes = (part.w_BX * part.v_BX)[:, 0]
    assert pushes.tolist() == pytest.approx([0.389606, -0.394965, 0.005932, -0.000573], abs=DIGITS)
    assert float(pushes.sum()) == pytest.approx(0, abs=1e-15)
    loss, gradient = value_and_gradient(algorithm, batch)
    assert loss == pytest.approx(0.01538612, abs=1e-8)
    assert gradient == pytest.approx([-0.048701] * 2 + [0.032914] * 3 + [-0.001483] + [0.000072] * 2, abs=DIGITS)


def test_gro_pairwise_on_softmax_credit():
    part, algorithm, batch = gro_parts(unit="average", credit="softmax", beta=0.5)
    assert part.w_BX[:, 0].tolist() == pytest.approx([0.716597, 1.244919, 1.941376, 0.001822], abs=DIGITS)
    pushes = (part.w_BX * part.v_BX)[:, 0].tolist()
    assert pushes == pytest.approx([1.032747, -0.833625, -0.197902, -0.001220], abs=DIGITS)
    assert float(loss_value(grid(LOGP), batch, algorithm)) == pytest.approx(0.05063465, abs=1e-8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"credit": "softmax", "beta": 0.5}, [1.441183, -0.669622, -0.101939, -0.669622]),
        ({"credit": "mean", "value": "prospect"}, [0.661263, -0.949139, 0.160428, -0.949139]),
        (
            {"credit": "mean", "value": "exp", "beta": 0.5, "kappa": 0},
            [math.exp(1.25), math.exp(-0.75), math.exp(0.25)],
        ),
    ],
    ids=str,
)
def test_values_of_gro(settings, expected):
    part, _, _ = gro_parts(**settings)
    assert part.v_BX[: len(expected), 0].tolist() == pytest.approx(expected, abs=DIGITS)


def test_expm1_of_z_scores():
    z = GroupZScore(eps=0)(group_batch(), {})[0][:, 0]
    assert Expm1()(z).tolist() == pytest.approx([3.515684, -0.595270, 0.351900, -0.595270], abs=DIGITS)


def test_kl_estimators():
    u, one_ = torch.tensor([0.5], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert K2(1.0).potential(u, one_, one_, None).item() == 0.125
    assert K3(1.0).potential(u, one_, one_, None).item() == pytest.approx(0.10653066, abs=1e-8)
    assert -K2(1.0)(u, one_, one_, None).item() == 0.5
    assert -K3(1.0)(u, one_, one_, None).item() == pytest.approx(0.39346934, abs=1e-8)


@pytest.mark.parametrize(
    ("loss", "value", "slope", "curvature", "strength"),
    [
        ("logistic", math.log(2), 0.5, 0.25, 0.5),
        ("hinge", 1, 1, 0, 0),
        ("squared", 1, 2, 2, 1),
        ("exponential", 1, 1, 1, 1),
        ("truncated_quadratic", 1, 2, 2, 1),
        ("savage", 0.25, 0.25, 0.125, 0.5),
    ],
)
def test_gpo_at_the_anchor(loss, value, slope, curvature, strength):
    """f(0), −f′(0), f″(0) and |f″(0)/f′(0)|, by which it regularises."""
    (term,) = build("gpo", loss=loss, beta=1.0).terms
    assert isinstance(term, Term)
    zero, one_ = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    potential = term.weight.potential(zero, one_, one_, None)
    assert potential is not None
    assert float(potential) == pytest.approx(value)
    assert float(term.weight(zero, one_, one_, None)) == pytest.approx(slope)
    behind, ahead = (float(term.weight(zero + step, one_, one_, None)) for step in (-1e-4, 1e-4))
    assert (behind - ahead) / 2e-4 == pytest.approx(curvature, abs=1e-6)
    assert curvature / slope == strength


def test_token_unit_keeps_tokens_apart():
    assert token(grid(LOGP), mask())[0].tolist() == [-0.5, -1.0, 0.0]
