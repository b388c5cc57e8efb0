"""Values worked out once in float64 by code that knows nothing of the equation, to the digits printed here."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gro.algorithms import build
from gro.objective import Algorithm, Anchor, Term, loss_value
from gro.objective.anchors import (
    Base,
    Margin,
    Opponents,
    Partner,
    Rows,
    Scope,
    Shift,
    kl_estimate,
    opponents,
    opponents_soft,
    partner,
)
from gro.objective.credit import (
    BatchMean,
    Credit,
    Gae,
    Greedy,
    GroupMean,
    GroupSoftmax,
    GroupZScore,
    Labels,
    LeaveOneOut,
    MovingAverage,
    NoBaseline,
    TokenZScore,
)
from gro.objective.shares import (
    FixedLength,
    group_token_mean,
    per_pair,
    per_sequence,
    sequence_mean,
    token_mean,
)
from gro.objective.units import Discounted, Unit, average, log_odds, token, total
from gro.objective.values import Desirability, Expm1, Prospect, above, one, relu
from gro.objective.weights import (
    K2,
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
from objective.fixture import LOGP, grid, group_batch, mask, pair_batch, value_and_gradient, with_advantage

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
    ("gamma", "lam", "expected"),
    [
        (1, 0.95, [0.7465, 0.47, 0.6]),
        (1, 1, [0.8, 0.5, 0.6]),
        (1, 0, [0.3, -0.1, 0.6]),
        (0.99, 0.95, [0.72791215, 0.4603, 0.6]),
    ],
)
def test_gae(gamma, lam, expected):
    batch = Batch(
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
        torch.tensor([1.0], dtype=torch.float64),
        values_BT=torch.tensor([[0.2, 0.5, 0.4]], dtype=torch.float64),
    )
    advantage_BT, _ = Gae(gamma=gamma, lam=lam)(batch, {})
    assert advantage_BT[0].tolist() == pytest.approx(expected, abs=1e-9)


def algo(credit, *terms) -> Algorithm:
    return Algorithm("test", credit, terms)


Z = GroupZScore(eps=0)
GROUP = {
    "rloo": (
        build("rloo", kl=0.0),
        -0.29583333,
        [-0.208333] * 2 + [0.125] * 3 + [-0.041667] + [0.125] * 2,
    ),
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
    "k3 alone": (algo(Z, Term(anchor=REF, weight=K3(0.04), value=one, share=sequence_mean)), 0.00050233, None),
    "ratio times k3 alone": (
        algo(Z, Term(anchor=OLD, second=REF, weight=RatioK3(0.04), value=one, share=sequence_mean)),
        0.00049530,
        [0.001105, -0.000500, -0.000546, 0.000667, 0, 0.001492, -0.000741, 0.001000],
    ),
    "dapo": (
        algo(Z, Term(anchor=OLD, weight=ClippedRatio(0.2, 0.28), share=group_token_mean)),
        0.11683241,
        [-0.208263, -0.188445, 0.092571, 0.113067, 0.152624, 0, 0, 0.113067],
    ),
    "dr_grpo": (
        algo(GroupMean(), Term(anchor=OLD, weight=ClippedRatio(), share=FixedLength(4))),
        0.02484308,
        [-0.043171, -0.039062, 0.019189, 0.023438, 0.031637, 0, 0, 0.023438],
    ),
    "gspo": (
        algo(Z, Term(unit=average, anchor=OLD, weight=ClippedRatio(3e-4, 4e-4), share=per_sequence)),
        0.00741607,
        [0, 0, 0.077933, 0.077933, 0.077933, 0, 0, 0],
    ),
    "gspo, wide": (
        algo(Z, Term(unit=average, anchor=OLD, weight=ClippedRatio(0.1, 0.1), share=per_sequence)),
        -0.04180984,
        [-0.198106] * 2 + [0.077933] * 3 + [0, 0, 0],
    ),
    "cispo": (
        algo(Z, Term(anchor=OLD, weight=TruncatedRatio(1.28), share=token_mean)),
        -0.18925161,
        [-0.208263, -0.188445, 0.092571, 0.113067, 0.144725, -0.048242, 0.083762, 0.113067],
    ),
    "sapo": (
        algo(Z, Term(anchor=OLD, weight=SoftGate(), share=sequence_mean)),
        -0.11588563,
        [-0.207689, -0.188445, 0.061159, 0.075378, 0.098392, -0.105915, 0.082230, 0.113067],
    ),
    "reinforce++": (
        algo(TokenZScore(kl=0.01), Term(anchor=OLD, weight=ClippedRatio(), share=token_mean)),
        -0.03542989,
        [-0.221306, -0.200537, 0.074457, 0.090941, 0.121971, 0, 0, 0.091816],
    ),
    "ppo penalty": (
        algo(
            GroupMean(),
            Term(anchor=OLD, weight=Ratio(), share=token_mean),
            Term(anchor=OLD, weight=Stay(0.5), value=one, share=token_mean),
        ),
        0.05525246,
        [-0.079768, -0.078125, 0.027049, 0.046875, 0.085141, 0.007429, 0.018527, 0.046875],
    ),
    "ppo on sequences": (
        algo(LeaveOneOut(), Term(unit=total, anchor=OLD, weight=ClippedRatio(), share=per_sequence)),
        -0.04209758,
        [-0.230244] * 2 + [0.138146] * 3 + [0, 0, 0],
    ),
}


@pytest.mark.parametrize("name", GROUP)
def test_policy_gradients(name):
    algorithm, value, gradient = GROUP[name]
    loss, found = value_and_gradient(algorithm, group_batch(algorithm))
    assert loss == pytest.approx(value, abs=1e-8)
    if gradient is not None:
        assert found == pytest.approx(gradient, abs=DIGITS)


def test_a_lol():
    batch = group_batch(advantage_BX=torch.tensor([[0.7], [-0.3], [0.2], [-0.3]], dtype=torch.float64))
    term = Term(unit=total, anchor=REF, weight=TruncatedRatio(low=0.1, high=1.9), value=relu, share=per_sequence)
    loss, gradient = value_and_gradient(algo(NoBaseline(), term), batch)
    assert loss == pytest.approx(0.31221078, abs=1e-8)
    assert gradient == pytest.approx([-0.193405] * 2 + [0] * 3 + [-0.055259] + [0] * 2, abs=DIGITS)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [0.5, 0.8, 1, 1.2, 0]), (-1.0, [0, 0.8, 1, 1.2, 1.5])])
def test_clip_table(advantage, expected):
    r = torch.tensor([0.5, 0.8 + 1e-12, 1, 1.2 - 1e-12, 1.5], dtype=torch.float64)
    a = torch.full_like(r, advantage)
    assert ClippedRatio()(r.log(), a, a, None).tolist() == pytest.approx(expected)


def pair_term(
    weight: Weight, unit: Unit = total, base: Base = "ref", shifts: tuple[Shift, ...] = (partner,)
) -> Algorithm:
    return algo(Labels(), Term(unit=unit, anchor=Anchor(base, shifts), weight=weight, share=per_pair, rows="paired"))


def cpl(beta: float, bias: float, gamma: float = 1.0) -> Algorithm:
    return algo(
        Labels(),
        *(
            Term(
                unit=Discounted(gamma),
                anchor=Anchor("zero", (Partner(bias),)),
                weight=Logistic(beta * k),
                value=value,
                share=per_pair,
                rows="paired",
            )
            for k, value in ((1.0, above(0.0)), (bias, _Below()))
        ),
    )


class _Below:
    symbol = "−1[A < 0]"
    imitates: ClassVar[bool] = False

    def __call__(self, advantage: Tensor) -> Tensor:
        return -(advantage < 0).to(advantage)


PAIRS = {
    "dpo": (build("dpo"), 0.68815968, [-0.024875, 0.024875, -0.024875, 0.024875]),
    "cdpo": (build("dpo", label_smoothing=0.1), 0.68915968, [-0.019875, 0.019875] * 2),
    "robust dpo": (pair_term(RobustLogistic(0.1, 0.1)), 0.68690968, [-0.031125, 0.031125] * 2),
    "ipo": (pair_term(Ipo(0.1)), 24.01, [-4.9, 4.9] * 2),
    "ipo average": (pair_term(Ipo(0.1), unit=average), 24.25625, [-2.475, 1.65, -4.9, 2.45]),
    "gpo logistic": (pair_term(Logistic(0.5)), 0.66845965, [-0.121876, 0.121876] * 2),
    "gpo hinge": (pair_term(Hinge(0.5)), 0.95, [-0.25, 0.25] * 2),
    "gpo squared": (pair_term(Squared(0.5)), 0.9025, [-0.475, 0.475] * 2),
    "gpo exponential": (pair_term(Exponential(0.5)), 0.95122942, [-0.237807, 0.237807] * 2),
    "gpo truncated": (pair_term(TruncatedQuadratic(0.5)), 0.9025, [-0.475, 0.475] * 2),
    "gpo savage": (pair_term(Savage(0.5)), 0.23765879, [-0.060900, 0.060900] * 2),
    "simpo": (
        pair_term(Logistic(2.0), unit=average, base="zero", shifts=(partner, Margin(0.25))),
        0.61069435,
        [-0.322828, 0.215219, -0.167982, 0.083991],
    ),
    "rebel, eta 1": (None, 0.52, [-1, 1, 0.2, -0.2]),
    "rebel, eta 2": (None, 0.51125, [-0.5, 0.5, -0.075, 0.075]),
    "spin": (pair_term(Logistic(0.1), base="old"), 0.67595337, [-0.025, 0.025, -0.024125, 0.024125]),
    "cpl, b 1": (cpl(0.1, 1.0), 0.61976827, [-0.024250, 0.024250, -0.021891, 0.021891]),
    "apo_zero": (
        algo(Labels(), Term(unit=total, anchor=REF, weight=Bell(0.1), share=per_pair, rows="paired")),
        None,
        [-0.0125, 0.0125] * 2,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preferences(name):
    algorithm, value, (chosen1, rejected1, chosen2, rejected2) = PAIRS[name]
    batch = pair_batch()
    if algorithm is None:  # REBEL regresses on true rewards, its credit is leave-one-out of two
        eta = float(name[-1])
        term = Term(
            unit=total,
            anchor=Anchor("old", (partner,)),
            weight=Regression(eta),
            value=one,
            share=per_pair,
            rows="paired",
        )
        algorithm = algo(LeaveOneOut(), term)
        batch = pair_batch(reward_B=torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=torch.float64))
    loss, gradient = value_and_gradient(algorithm, with_advantage(batch, algorithm))
    if value is not None:
        assert loss == pytest.approx(value, abs=1e-8)
    assert gradient == pytest.approx([chosen1] * 2 + [rejected1] * 3 + [chosen2] + [rejected2] * 2, abs=DIGITS)


def test_margins_from_the_data():
    algorithm = pair_term(Logistic(0.1), shifts=(partner, Margin(data=10.0)))
    batch = pair_batch(algorithm, margin_B=torch.tensor([0.2, 0.2, 0.0, 0.0], dtype=torch.float64))
    loss, gradient = value_and_gradient(algorithm, batch)
    assert loss == pytest.approx(0.74040629, abs=1e-8)
    assert gradient[0] == pytest.approx(-0.027368, abs=DIGITS)
    assert gradient[5] == pytest.approx(-0.024875, abs=DIGITS)


def test_cpl_with_bias_and_discount():
    # The loss is stated once per pair; with a bias the members' terms have different weights, so only gradients.
    _, gradient = value_and_gradient(cpl(0.1, 0.5), pair_batch(cpl(0.1, 0.5)))
    assert gradient == pytest.approx([-0.025562] * 2 + [0.012781] * 3 + [-0.023689] + [0.011844] * 2, abs=DIGITS)
    algorithm = cpl(1.0, 0.5, 0.9)
    _, gradient = value_and_gradient(algorithm, pair_batch(algorithm))
    expected = [-0.301981, -0.271783, 0.150990, 0.135891, 0.122302, -0.133980, 0.066990, 0.060291]
    assert gradient == pytest.approx(expected, abs=DIGITS)


def test_slic():
    algorithm = algo(
        Labels(),
        Term(unit=total, anchor=Anchor("zero", (partner,)), weight=Hinge(1.0), share=per_pair, rows="paired"),
        Term(unit=total, value=one, share=per_sequence, rows="chosen", scale=0.1),
    )
    loss, gradient = value_and_gradient(algorithm, pair_batch(algorithm))
    assert loss == pytest.approx(0.295, abs=1e-8)
    assert gradient == pytest.approx([-0.55] * 2 + [0.5] * 3 + [-0.05] + [0.0] * 2, abs=DIGITS)


def test_orpo():
    algorithm = algo(
        Labels(),
        Term(unit=average, value=one, share=per_sequence, rows="chosen"),
        Term(
            unit=log_odds,
            anchor=Anchor("zero", (partner,)),
            weight=Logistic(1.0),
            share=per_pair,
            rows="paired",
            scale=0.1,
        ),
    )
    loss, gradient = value_and_gradient(algorithm, pair_batch(algorithm))
    assert loss == pytest.approx(0.61916031, abs=1e-8)
    expected = [-0.274839] * 2 + [0.017356] * 3 + [-0.519865] + [0.004278] * 2
    assert gradient == pytest.approx(expected, abs=DIGITS)
    odds = log_odds(grid(LOGP), mask())[:, 0].tolist()
    assert odds == pytest.approx([-0.110647, -0.013659, 0.709633, -1.182682], abs=DIGITS)


class _Z0:
    """The shift of a known z0, to test the weight apart from the estimate."""

    symbol = "z0"
    scope: ClassVar[Scope] = "batch"
    mutual: ClassVar[bool] = False

    def __call__(self, d_BX: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.full_like(d_BX, 0.05)[..., None], torch.ones_like(d_BX)[..., None]


def test_kto():
    term = Term(
        unit=total, anchor=Anchor("ref", (_Z0(),)), weight=Bell(0.1), value=Desirability(1.0, 1.33), share=per_sequence
    )
    algorithm = algo(Labels(), term)
    loss, gradient = value_and_gradient(algorithm, pair_batch(algorithm))
    assert loss == pytest.approx(0.58104375, abs=1e-8)
    assert gradient == pytest.approx([-0.006250] * 2 + [0.008312] * 3 + [-0.006250] + [0.008312] * 2, abs=2e-6)


@pytest.mark.parametrize(("ratios", "expected"), [([0.3, -0.1, 0.2, 0.0], 0.1), ([-0.3, -0.1, 0.1, 0.0], 0.0)])
def test_kl_estimate_of_mismatched_rows(ratios, expected):
    batch = Batch(torch.ones(4, 1, dtype=torch.bool), torch.arange(4), role_B=torch.full((4,), 2))
    d_B1 = torch.tensor(ratios)[:, None]
    shift_BXJ, _ = kl_estimate(d_B1, Rows(batch, torch.ones(4, dtype=torch.bool), d_B1, d_B1))
    assert shift_BXJ.flatten().tolist() == pytest.approx([expected] * 4, abs=1e-7)


# --- GRO -----------------------------------------------------------------------------------------------------------


def gro_parts(measure: Unit, shift: Shift, kappa: float, base: Base = "zero", credit: Credit | None = None):
    anchor = Anchor(base, (shift,))
    term = Term(unit=measure, measure=measure, anchor=anchor, weight=Separation(kappa), share=per_sequence)
    algorithm = algo(credit or GroupMean(), term)
    batch = group_batch(algorithm)
    return term.parts(grid(LOGP), batch), algorithm, batch


@pytest.mark.parametrize(
    ("measure", "kappa", "base", "u", "w"),
    [
        (average, 1, "zero", [0.325, -0.125, 0.675, -0.875], [0.838915, 0.937581, 0.674756, 0.588430]),
        (average, 10, "zero", None, [0.074654, 0.445400, 0.002339, 0.000317]),
        (total, 1, "zero", None, [0.537883, 0.480978, 0.218194, 0.249107]),
        (average, 10, "ref", [0.05, -0.075, 0.10, -0.075], [0.755081, 0.641643, 0.537883, 0.641643]),
    ],
)
def test_gro_against_the_mean_opponent(measure, kappa, base, u, w):
    part, _, _ = gro_parts(measure, opponents, kappa, base)
    assert part.w_BX[:, 0].tolist() == pytest.approx(w, abs=DIGITS)
    if u is not None:
        assert part.u_BX[:, 0].tolist() == pytest.approx(u, abs=DIGITS)
    assert opponents == Opponents()


def test_gro_pairwise():
    part, algorithm, batch = gro_parts(average, opponents_soft, 10)
    assert part.w_BX[:, 0].tolist() == pytest.approx([0.623370, 1.053241, 0.047453, 0.001528], abs=DIGITS)
    pushes = (part.w_BX * part.v_BX)[:, 0]
    assert pushes.tolist() == pytest.approx([0.389606, -0.394965, 0.005932, -0.000573], abs=DIGITS)
    assert float(pushes.sum()) == pytest.approx(0, abs=1e-15)
    loss, gradient = value_and_gradient(algorithm, batch)
    assert loss == pytest.approx(0.01538612, abs=1e-8)
    assert gradient == pytest.approx([-0.048701] * 2 + [0.032914] * 3 + [-0.001483] + [0.000072] * 2, abs=DIGITS)


def test_gro_pairwise_on_softmax_credit():
    part, algorithm, batch = gro_parts(average, opponents_soft, 10, credit=GroupSoftmax(0.5))
    assert part.w_BX[:, 0].tolist() == pytest.approx([0.716597, 1.244919, 1.941376, 0.001822], abs=DIGITS)
    pushes = (part.w_BX * part.v_BX)[:, 0].tolist()
    assert pushes == pytest.approx([1.032747, -0.833625, -0.197902, -0.001220], abs=DIGITS)
    assert float(loss_value(grid(LOGP), batch, algorithm)) == pytest.approx(0.05063465, abs=1e-8)


def test_values():
    z = GroupZScore(eps=0)(group_batch(), {})[0][:, 0]
    assert Expm1()(z).tolist() == pytest.approx([3.515684, -0.595270, 0.351900, -0.595270], abs=DIGITS)
    centred = torch.tensor([0.625, -0.375, 0.125, -0.375], dtype=torch.float64)
    assert Prospect()(centred).tolist() == pytest.approx([0.661263, -0.949139, 0.160428, -0.949139], abs=DIGITS)


def test_kl_estimators():
    u, one_ = torch.tensor([0.5], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert K2(1.0).potential(u, one_, one_, None).item() == 0.125
    assert K3(1.0).potential(u, one_, one_, None).item() == pytest.approx(0.10653066, abs=1e-8)
    assert -K2(1.0)(u, one_, one_, None).item() == 0.5
    assert -K3(1.0)(u, one_, one_, None).item() == pytest.approx(0.39346934, abs=1e-8)


GPO = [Logistic(1.0), Hinge(1.0), Squared(1.0), Exponential(1.0), TruncatedQuadratic(1.0), Savage(1.0)]


def test_gpo_family_at_the_anchor():
    zero, one_ = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    values = [float(w.potential(zero, one_, one_, None)) for w in GPO]
    assert values == pytest.approx([math.log(2), 1, 1, 1, 1, 0.25])
    assert [float(w(zero, one_, one_, None)) for w in GPO] == pytest.approx([0.5, 1, 2, 1, 2, 0.25])


def test_token_unit_keeps_tokens_apart():
    assert token(grid(LOGP), mask())[0].tolist() == [-0.5, -1.0, 0.0]
