"""Preferences among the policy's own completions, or between those and demonstrations, round after round."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gro.algorithms.preference import compared
from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.credit import Labels, LeaveOneOut, Versus
from gro.objective.shares import per_pair
from gro.objective.units import total
from gro.objective.values import one
from gro.objective.weights import Ipo, Logistic, Regression
from gro.schema import Positive

Opponent = Literal["old", "ref"]


@algorithm
def rebel(eta: Positive = 1.0) -> Algorithm:
    """Regressing relative rewards: how far one sample's log-ratio is ahead predicts how far its reward is.

    Two samples of equal reward are left out, where the paper would hold their log-ratios together.

    When: The policy's own answers with graded rewards, in pairs: how much better the better one is counts, where dpo
    sees only which. η has to fit the scale of the rewards, and with a squared error one wild reward moves much.

    eta: step size; the larger, the further the policy moves from the one that sampled.
    """
    return Algorithm(
        name="rebel",
        paper="https://arxiv.org/abs/2404.16767",
        equation="Gao et al. 2024, eq. 9",
        credit=LeaveOneOut(),
        terms=(replace(compared(Regression(eta), base="old"), value=one),),
    )


@algorithm
def spin(beta: Positive = 0.1, base: Opponent = "old") -> Algorithm:
    """Self-play fine-tuning: demonstrations against the policy's own samples of the same prompts, by DPO's loss.

    When: Demonstrations and no preferences, after sft has stopped helping: the policy's own samples stand in for the
    rejected. It ends where samples and demonstrations cannot be told apart, and takes every sample for worse, the
    better ones too.

    beta: strength of the KL constraint, the paper's λ.
    base: old, the policy at the start of the step; ref, the one that the run started from.
    """
    return Algorithm(
        name="spin",
        paper="https://arxiv.org/abs/2401.01335",
        equation="Chen et al. 2024, eq. 4.7",
        credit=Versus(),
        terms=(replace(compared(Logistic(beta), base=base), rows="versus"),),
    )


@algorithm
def sppo(beta: Positive = 0.1, base: Opponent = "ref") -> Algorithm:
    """Self-play preference optimization, hard labels: winners shall come to a log-ratio of 1/(2β), losers to −1/(2β).

    When: The policy's own answers ranked by a reward, round after round. Winner and loser each have a target, so that
    the winner's likelihood is held up where dpo may let it fall. A narrow win counts like a clear one.

    beta: 1/η of the paper.
    base: ref, the policy that the run started from; old, the one at the start of the step.
    """
    regression = Term(unit=total, anchor=Anchor(base), weight=Ipo(beta), share=per_pair, rows="paired")
    return Algorithm(
        name="sppo",
        paper="https://arxiv.org/abs/2405.00675",
        equation="Wu et al. 2024, eq. 4.7",
        credit=Labels(),
        terms=(regression,),
    )
