"""Preferences: of two completions one was preferred."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.anchors import Margin, partner
from gro.objective.credit import Labels
from gro.objective.shares import per_pair
from gro.objective.units import total
from gro.objective.weights import Logistic
from gro.schema import Positive

Flipped = Annotated[float, Field(ge=0, lt=0.5)]


@algorithm
def dpo(beta: Positive = 0.1, label_smoothing: Flipped = 0.0, margin: float = 0.0) -> Algorithm:
    """Direct preference optimization: each completion's anchor is the reference plus its partner's log-ratio.

    beta: strength of the implicit KL constraint.
    label_smoothing: the assumed share of flipped labels (conservative DPO).
    margin: by how much, in units of the implicit reward, the chosen must win.
    """
    weight = Logistic(beta, label_smoothing)
    shifts = (partner, Margin(margin / beta)) if margin else (partner,)
    preference = Term(
        unit=total,
        anchor=Anchor("ref", shifts),
        weight=weight,
        share=per_pair,
        rows="paired",
    )
    return Algorithm(
        name="dpo",
        paper="https://arxiv.org/abs/2305.18290",
        equation="Rafailov et al. 2023, eq. 7",
        credit=Labels(),
        terms=(preference,),
    )
