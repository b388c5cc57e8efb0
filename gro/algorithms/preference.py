"""Preferences: of two completions of a prompt one was preferred, and each is compared with the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.anchors import Base, Margin, Partner, Shift, partner
from gro.objective.credit import Labels
from gro.objective.shares import per_pair, per_sequence
from gro.objective.units import Discounted, Unit, average, log_odds, total
from gro.objective.values import one
from gro.objective.weights import (
    BiasedLogistic,
    Exo,
    Exponential,
    Hinge,
    Ipo,
    Logistic,
    RobustLogistic,
    Savage,
    Squared,
    TruncatedQuadratic,
    Weight,
)
from gro.schema import NotNegative, Positive

Flipped = Annotated[float, Field(ge=0, lt=0.5)]
SomeFlipped = Annotated[float, Field(gt=0, lt=0.5)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Length = Literal["total", "average"]
Loss = Literal["logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage"]

LENGTHS: dict[str, Unit] = {"total": total, "average": average}


def compared(weight: Weight, *shifts: Shift, unit: Unit = total, base: Base = "ref", scale: float = 1.0) -> Term:
    """Both members of every pair, each against the other; further shifts come on top."""
    anchor = Anchor(base, (partner, *shifts))
    return Term(unit=unit, anchor=anchor, weight=weight, share=per_pair, rows="paired", scale=scale)


def by(margin: float, data_margin: float, beta: float) -> tuple[Shift, ...]:
    """The margin of a preference of strength β: the chosen must win by that much in units of the reward βu."""
    return (Margin(margin / beta, data_margin / beta),) if margin or data_margin else ()


def imitated(unit: Unit, scale: float, rows: Literal["chosen", "targets"] = "chosen") -> Term:
    """The mean negative log-likelihood of what is to be imitated."""
    return Term(unit=unit, value=one, share=per_sequence, rows=rows, scale=scale)


@algorithm
def dpo(
    beta: Positive = 0.1,
    label_smoothing: Flipped = 0.0,
    robust: bool = False,
    margin: float = 0.0,
    data_margin: float = 0.0,
    unit: Length = "total",
) -> Algorithm:
    """Direct preference optimization: each completion's anchor is the reference plus its partner's log-ratio.

    When: Pairs, on file or ranked among the policy's own answers, and a reference that could have written them. Only
    the difference counts: the likelihood of the chosen may fall as long as the rejected one's falls faster, and with
    sure labels nothing but β and the end of training stops it; ipo has a target instead.

    beta: strength of the implicit KL constraint.
    label_smoothing: the assumed share of flipped labels (conservative DPO).
    robust: correct for the flipped labels without bias, in place of smoothing them (robust DPO).
    margin: by how much, in units of the implicit reward, the chosen must win.
    data_margin: factor on the margins that the data give, which come on top.
    unit: total, the paper's; average, per token, so that length does not count.
    """
    weight = RobustLogistic(beta, label_smoothing) if robust else Logistic(beta, label_smoothing)
    return Algorithm(
        name="dpo",
        paper="https://arxiv.org/abs/2305.18290",
        equation="Rafailov et al. 2023, eq. 7",
        credit=Labels(),
        terms=(compared(weight, *by(margin, data_margin, beta), unit=LENGTHS[unit]),),
    )


@algorithm
def ipo(beta: Positive = 0.1, unit: Length = "total") -> Algorithm:
    """Identity preference optimization: the chosen shall win by exactly 1/(2β), however sure the labels are.

    When: As dpo, for labels so sure, or data passed over so often, that dpo would push without end. Pairs that are
    ahead of the target are pulled back too. With totals the target is the same for long and short answers; average
    makes it one per token.

    beta: strength of the KL constraint, the paper's τ.
    unit: total, the paper's; average, per token, as the authors' code and TRL have it.
    """
    return Algorithm(
        name="ipo",
        paper="https://arxiv.org/abs/2310.12036",
        equation="Azar et al. 2023, eq. 17",
        credit=Labels(),
        terms=(compared(Ipo(beta), unit=LENGTHS[unit]),),
    )


@algorithm
def gpo(loss: Loss = "logistic", beta: Positive = 0.1) -> Algorithm:
    """Generalized preference optimization: any convex f(βh) of the log-ratio h by which the chosen wins.

    How strongly it regularises is, near the reference, β·|f″(0)/f′(0)|.

    When: As dpo, to compare the shapes of the loss with all else equal. Hinge and truncated_quadratic stop at their
    margin, squared pulls back, exponential lets wrong labels count most, savage gives up pairs that are far on the
    wrong side.

    loss: logistic (DPO), hinge (SLiC), squared (IPO), exponential, truncated_quadratic or savage (which is not convex).
    beta: strength of the KL constraint.
    """
    losses: dict[str, Callable[[float], Weight]] = {
        "logistic": Logistic,
        "hinge": Hinge,
        "squared": Squared,
        "exponential": Exponential,
        "truncated_quadratic": TruncatedQuadratic,
        "savage": Savage,
    }
    return Algorithm(
        name="gpo",
        paper="https://arxiv.org/abs/2402.05749",
        equation="Tang et al. 2024, table 1",
        credit=Labels(),
        terms=(compared(losses[loss](beta)),),
    )


@algorithm
def exo(beta: Positive = 0.1, label_smoothing: SomeFlipped = 1e-3) -> Algorithm:
    """Efficient exact optimization: the KL of DPO with smoothed labels, the other way round.

    When: As dpo, where the policy should settle on the better answers rather than cover all that the labels allow. The
    push depends on label_smoothing through its logarithm, so that β and it are tuned together.

    beta: strength of the implicit KL constraint.
    label_smoothing: the assumed share of flipped labels; the divergence from a label that is sure would be infinite.
    """
    return Algorithm(
        name="exo",
        paper="https://arxiv.org/abs/2402.00856",
        equation="Ji et al. 2024, eq. 16",
        credit=Labels(),
        terms=(compared(Exo(beta, label_smoothing)),),
    )


@algorithm
def slic(
    delta: Positive = 1.0,
    imitation: NotNegative = 0.1,
    reference: Literal["chosen", "demonstration"] = "chosen",
) -> Algorithm:
    """Sequence likelihood calibration: the chosen must be ahead by δ in log-likelihood, and something is imitated.

    On a file of pairs this is its direct form; on pairs ranked among the policy's own samples, sample-and-rank.

    When: Pairs, without a reference in memory: a margin in nats, and imitation that holds the policy. Pairs beyond the
    margin teach nothing more. Totals are compared, so that a longer answer starts far behind a shorter one.

    delta: by how much the chosen must win.
    imitation: factor λ on the likelihood of what is imitated; 0 leaves it out.
    reference: chosen, the preferred completions are imitated; demonstration, those of the data set.
    """
    rows = "chosen" if reference == "chosen" else "targets"
    calibration = compared(Hinge(1 / delta), base="zero", scale=delta)  # δ·max(0, 1 − su/δ)
    return Algorithm(
        name="slic",
        paper="https://arxiv.org/abs/2305.10425",
        equation="Zhao et al. 2023, eq. 1",
        credit=Labels(),
        terms=(calibration, imitated(total, imitation, rows)) if imitation else (calibration,),
    )


@algorithm
def simpo(beta: Positive = 2.0, gamma: NotNegative = 1.0) -> Algorithm:
    """Simple preference optimization: average log-likelihoods against each other, without reference, with a margin.

    When: Pairs, without a reference in memory, where answers grow longer under dpo. Nothing holds the policy where it
    began, so it wants small learning rates and few passes; β and gamma are tuned for each data set.

    beta: scale of the reward, which is β times the average log-likelihood.
    gamma: by how much, in units of the reward, the chosen must win.
    """
    return Algorithm(
        name="simpo",
        paper="https://arxiv.org/abs/2405.14734",
        equation="Meng et al. 2024, eq. 6",
        credit=Labels(),
        terms=(compared(Logistic(beta), *by(gamma, 0.0, beta), unit=average, base="zero"),),
    )


@algorithm
def orpo(odds: NotNegative = 0.1) -> Algorithm:
    """Odds ratio preference optimization: imitation of the chosen, and its odds above the rejected one's; no reference.

    When: Pairs and a base model: imitation and preference in one stage, without a reference. Most of the gradient is
    imitation, so that the chosen answers have to be worth it; after sft that part is done already, and dpo is left.

    odds: factor λ on the odds ratio's loss; 0 leaves it out.
    """
    imitation = imitated(average, 1.0)
    ratio = compared(Logistic(1.0), unit=log_odds, base="zero", scale=odds)
    return Algorithm(
        name="orpo",
        paper="https://arxiv.org/abs/2403.07691",
        equation="Hong et al. 2024, eq. 6 and 7",
        credit=Labels(),
        terms=(imitation, ratio) if odds else (imitation,),
    )


@algorithm
def cpl(beta: Positive = 0.1, bias: Fraction = 0.5, gamma: Fraction = 1.0) -> Algorithm:
    """Contrastive preference learning: discounted log-likelihoods against each other, the rejected one's scaled by b.

    When: Pairs, without a reference in memory, where the chosen should stay likely: with bias below 1 lowering both is
    no way out. It comes from control, where steps are discounted; in text, gamma below 1 lets late tokens hardly count.

    beta: temperature of the regret, the paper's α.
    bias: b < 1 keeps the likelihood of what is in the data high; 1 is DPO without a reference.
    gamma: discount of later tokens.
    """
    preference = Term(
        unit=Discounted(gamma),
        anchor=Anchor("zero", (Partner(bias),)),
        weight=BiasedLogistic(beta, bias),
        share=per_pair,
        rows="paired",
    )
    return Algorithm(
        name="cpl",
        paper="https://arxiv.org/abs/2310.13639",
        equation="Hejna et al. 2024, eq. 5 with the bias λ",
        credit=Labels(),
        terms=(preference,),
    )
