"""Preferences without comparison: every completion has its own anchor, and pulls on its own."""

from __future__ import annotations

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.anchors import kl_estimate, midpoint, partner
from gro.objective.credit import GroupSoftmax, Labels
from gro.objective.shares import per_pair, per_sequence
from gro.objective.units import total
from gro.objective.values import Desirability, one
from gro.objective.weights import Bell, Logistic, Nca
from gro.schema import NotNegative, Positive

REFERENCE = Anchor("ref")


@algorithm
def kto(beta: Positive = 0.1, desirable: NotNegative = 1.0, undesirable: NotNegative = 1.0) -> Algorithm:
    """Kahneman–Tversky optimization: completions labelled good or bad, alone or in pairs, against a KL estimate.

    The estimate z0 is the mean log-ratio of completions that belong to another prompt, at least 0.

    When: Completions labelled good or bad, with no partner needed, also where one kind is rare (then desirable and
    undesirable). A completion of another prompt is scored beside each, for the KL estimate. Where there are pairs, dpo
    uses that they belong to one prompt.

    beta: sharpness of the value function around the anchor.
    desirable: weight λ_D of the good completions.
    undesirable: weight λ_U of the bad ones; λ_D·n_D should be 1 to 4/3 times λ_U·n_U.
    """
    labelled = Term(
        unit=total,
        anchor=Anchor("ref", (kl_estimate,)),
        weight=Bell(beta),
        value=Desirability(desirable, undesirable),
        share=per_sequence,
    )
    return Algorithm(
        name="kto",
        paper="https://arxiv.org/abs/2402.01306",
        equation="Ethayarajh et al. 2024, eq. 8",
        credit=Labels(),
        terms=(labelled,),
    )


@algorithm
def bco(beta: Positive = 0.1) -> Algorithm:
    """Binary classifier optimization: the log-ratio tells good completions from bad ones, as a classifier's logit.

    Its threshold δ is half-way between the two sides' mean log-ratios in the update (in the paper, a running mean).

    When: As kto, without the second scoring: the two sides' own mean is the threshold. Both kinds must be in every
    batch. Where good and bad answers belong to different prompts it may learn to tell the prompts apart; the paper's
    weights against that are not part of it here.

    beta: scale of the logit.
    """
    classified = Term(unit=total, anchor=Anchor("ref", (midpoint,)), weight=Logistic(beta), share=per_sequence)
    return Algorithm(
        name="bco",
        paper="https://arxiv.org/abs/2404.04656",
        equation="Jung et al. 2024, L_BCO",
        credit=Labels(),
        terms=(classified,),
    )


@algorithm
def apo_zero(beta: Positive = 0.1) -> Algorithm:
    """Anchored preference optimization, zero: the chosen's likelihood rises and the rejected one's falls.

    When: Pairs whose chosen completion is better than what the policy writes. Each completion has its own push, and the
    chosen's is always up, where dpo's difference leaves it free; on answers worse than the policy's own it teaches
    those.

    beta: sharpness around the reference.
    """
    return Algorithm(
        name="apo_zero",
        paper="https://arxiv.org/abs/2408.06266",
        equation="D'Oosterlinck et al. 2024, L_zero",
        credit=Labels(),
        terms=(Term(unit=total, anchor=REFERENCE, weight=Bell(beta), share=per_pair, rows="paired"),),
    )


@algorithm
def apo_down(beta: Positive = 0.1) -> Algorithm:
    """Anchored preference optimization, down: both likelihoods fall, the rejected one's faster.

    When: Pairs whose chosen completion is worse than what the policy writes, as from a weaker model. Both likelihoods
    fall, and what takes their place is for the policy to find: watch what it writes.

    beta: sharpness around the reference, and of the comparison.
    """
    falling = Term(
        unit=total,
        anchor=REFERENCE,
        weight=Bell(beta),
        value=Desirability(desirable=-1.0, undesirable=0.0),
        share=per_sequence,
        rows="chosen",
    )
    against = Term(unit=total, anchor=Anchor("ref", (partner,)), weight=Bell(beta), share=per_pair, rows="paired")
    return Algorithm(
        name="apo_down",
        paper="https://arxiv.org/abs/2408.06266",
        equation="D'Oosterlinck et al. 2024, L_down",
        credit=Labels(),
        terms=(falling, against),
    )


@algorithm
def nca(beta: Positive = 0.1, temperature: Positive | None = None) -> Algorithm:
    """Noise contrastive alignment: completions of high reward are told from the reference's own, one by one.

    When: Pairs, or with temperature any number of rated answers to a prompt, where the likelihood of good ones must not
    fall as it may under dpo. Completions are judged against the reference and not against each other, so that it
    separates close pairs less sharply.

    beta: scale of the log-ratio.
    temperature: α of the rewards' softmax over a prompt's completions, of which there may be any number; by default 0,
        the best of a pair.
    """
    rewarded = temperature is not None
    term = Term(
        unit=total,
        anchor=REFERENCE,
        weight=Nca(beta),
        value=one,
        share=per_sequence,
        rows="scored" if rewarded else "paired",
    )
    return Algorithm(
        name="nca",
        paper="https://arxiv.org/abs/2402.05369",
        equation="Chen et al. 2024, sec. 4",
        credit=GroupSoftmax(temperature) if rewarded else Labels(),
        terms=(term,),
    )
