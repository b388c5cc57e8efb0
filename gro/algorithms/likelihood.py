"""Likelihood: imitation of demonstrations."""

from __future__ import annotations

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Term
from gro.objective.credit import NoBaseline
from gro.objective.shares import token_mean
from gro.objective.values import one


@algorithm
def sft() -> Algorithm:
    """Supervised fine-tuning: the mean negative log-likelihood of the demonstrations' tokens."""
    return Algorithm(
        name="sft",
        paper="https://arxiv.org/abs/2203.02155",
        equation="Ouyang et al. 2022, sec. 3.5",
        credit=NoBaseline(),
        terms=(Term(value=one, share=token_mean, rows="targets"),),
    )
