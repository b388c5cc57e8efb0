"""Reward models: a score per completion, learnt from preferences, rankings or ratings.

What these terms differentiate is the model's score r(x, y), not a log-likelihood; `gro reward-model` trains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, FromLoss, Term
from gro.objective.anchors import Margin, Partner, partner
from gro.objective.credit import EQUAL, Labels, NoBaseline, scored_rows
from gro.objective.groups import same_group, sum_over
from gro.objective.shares import per_group, per_pair
from gro.objective.units import score
from gro.objective.values import one
from gro.objective.weights import K2, Logistic
from gro.schema import NotNegative
from gro.types import Batch

Flipped = Annotated[float, Field(ge=0, lt=0.5)]


@algorithm
def bradley_terry(
    margin: float = 0.0, data_margin: NotNegative = 0.0, centring: NotNegative = 0.0, label_smoothing: Flipped = 0.0
) -> Algorithm:
    """A reward model of pairs: the chosen completion's score is above the rejected one's, −log σ(r₊ − r₋ − m).

    When: Pairs, to train a reward model for online runs. Only differences within a prompt are learnt, so that scores of
    different prompts have no common zero unless centring is set; and it is trusted only near the answers that the pairs
    are of.

    margin: by how much the chosen must win, in units of the score.
    data_margin: factor on the margins that the data give (Llama 2's).
    centring: strength of c(r₊ + r₋)², which fixes the scores' zero (Eisenstein et al. 2023).
    label_smoothing: the assumed share of flipped labels.
    """
    shifts = (partner, Margin(margin, data_margin)) if margin or data_margin else (partner,)
    preference = Term(
        unit=score, anchor=Anchor("zero", shifts), weight=Logistic(1.0, label_smoothing), share=per_pair, rows="paired"
    )
    centre = Term(
        unit=score,
        anchor=Anchor("zero", (Partner(-1.0),)),
        weight=K2(2 * centring),
        value=one,
        share=per_pair,
        rows="paired",
    )
    return Algorithm(
        name="bradley_terry",
        paper="https://arxiv.org/abs/2203.02155",
        equation="Ouyang et al. 2022, eq. 1",
        credit=Labels(),
        terms=(preference, centre) if centring else (preference,),
    )


@algorithm
def plackett_luce() -> Algorithm:
    """A reward model of rankings: each completion is the best of those ranked no higher, with softmax probability.

    When: Several completions of a prompt in order of quality, the whole order being sure. Mistakes far down the list
    count as much as those at the top; where only some comparisons can be trusted, all_pairs.
    """
    return Algorithm(
        name="plackett_luce",
        paper="https://doi.org/10.2307/2346567",
        equation="Plackett 1975; Rafailov et al. 2023, eq. 18",
        credit=NoBaseline(),
        terms=(FromLoss(Ranking(), unit=score, share=per_group),),
    )


@algorithm
def all_pairs() -> Algorithm:
    """A reward model of rankings or ratings: Bradley–Terry, averaged over all pairs of a prompt that are not tied.

    When: Several rated completions of a prompt, ties allowed. Prompts count alike, however many completions they have.
    Of ratings only the order is used, and not by how much one is better.
    """
    return Algorithm(
        name="all_pairs",
        paper="https://arxiv.org/abs/2203.02155",
        equation="Ouyang et al. 2022, eq. 1, over all K(K − 1)/2 pairs",
        credit=NoBaseline(),
        terms=(FromLoss(Pairs(), unit=score, share=per_group),),
    )


@dataclass(frozen=True)
class Ranking:
    """log Σ_j e^(r_j) − r_i over i itself and the completions ranked below it; ties are not compared."""

    def __call__(self, u_BX: Tensor, batch: Batch) -> Tensor:
        u_B = _scores(u_BX, batch)
        behind_BB = _beaten(batch) | torch.eye(len(u_B), dtype=torch.bool, device=u_B.device)
        return (u_B[None, :].masked_fill(~behind_BB, -torch.inf).logsumexp(1) - u_B)[:, None]


@dataclass(frozen=True)
class Pairs:
    """−log σ(r_i − r_j) over the completions j ranked below i, divided by the prompt's pairs."""

    def __call__(self, u_BX: Tensor, batch: Batch) -> Tensor:
        u_B, beaten_BB = _scores(u_BX, batch), _beaten(batch)
        pairs_B = sum_over(same_group(batch), beaten_BB.sum(1)).clamp(min=1)
        loss_BB = F.softplus(u_B[None, :] - u_B[:, None])
        return (torch.where(beaten_BB, loss_BB, 0.0).sum(1) / pairs_B)[:, None]


def _scores(u_BX: Tensor, batch: Batch) -> Tensor:
    """[B], 0 for rows that take no part: what they hold may be anything."""
    return u_BX[:, 0].masked_fill(~scored_rows(batch), 0.0)


def _beaten(batch: Batch) -> Tensor:
    """bool [B, B]: j is in i's group and has a lower reward."""
    assert batch.reward_B is not None
    scored_B = scored_rows(batch)
    reward_B = batch.reward_B.nan_to_num(0.0)
    both_BB = same_group(batch) & scored_B[:, None] & scored_B[None, :]
    near = EQUAL * reward_B.abs().clamp(min=1)
    return both_BB & (reward_B[:, None] - reward_B[None, :] > near[:, None])
