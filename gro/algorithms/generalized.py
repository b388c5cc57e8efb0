"""Generalized Reinforce Optimization itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.anchors import Shift, group_mean, opponents, opponents_soft
from gro.objective.credit import Credit, GroupMean, GroupSoftmax, GroupZScore, LeaveOneOut
from gro.objective.shares import Share, fixed_length, per_sequence, sequence_mean, token_mean
from gro.objective.units import Unit, average, token, total
from gro.objective.values import Exp, Expm1, Prospect, Value, identity, one
from gro.objective.weights import Corrected, One, Separation, Weight
from gro.schema import NotNegative, Positive

Baseline = Literal["softmax", "mean", "zscore", "leave_one_out"]
Valued = Literal["identity", "exp", "expm1", "prospect"]
Measured = Literal["token", "average", "total"]
Compared = Literal["zero", "old", "ref"]
Opposed = Literal["opponents_soft", "opponents", "group", "none"]
Shared = Literal["fixed_length", "sequence_mean", "token_mean", "per_sequence"]


@algorithm
def gro(
    credit: Baseline = "softmax",
    beta: Positive = 1.0,
    value: Valued = "identity",
    unit: Measured = "token",
    measure: Measured = "average",
    base: Compared = "zero",
    shift: Opposed = "opponents_soft",
    kappa: NotNegative = 10.0,
    margin: float = 0.0,
    share: Shared = "fixed_length",
    kl: NotNegative = 0.0,
    target_weight: NotNegative = 1.0,
) -> Algorithm:
    """Generalized Reinforce Optimization: advantage-weighted likelihood that separates a prompt's completions.

    A completion is pushed by its advantage, as long as it is not yet separated from those on the other side of the
    baseline.  Demonstrations in the batch are imitated, and never pushed down: exp(A/β) is 1 where there is no reward.
    Give a completion of the data a reward, and it is one of the samples.

    When: Prompts with rewards, demonstrations, rated files, or several of these in one batch, by one loss. Completions
    on the two sides of the baseline stop being pushed once they are separated, where a plain policy gradient goes on; κ
    says how sharply and has to be swept. One update per batch unless base is old.

    credit: softmax (G·softmax(R/β) − 1, the centred exponential), mean, zscore or leave_one_out, all of the group.
    beta: temperature of the softmax and of exponential values; scale it to the reward (1 for rewards in [0, 1]).
    value: identity, exp, expm1 or prospect of the advantage.
    unit: token, average or total: in which unit the log-likelihood is pushed.
    measure: average, total or token: in which unit completions are compared.
    base: zero, old (off-policy: the weight is multiplied by the ratio) or ref.
    shift: opponents_soft (pairwise), opponents (their mean), group (mean of the group), none.
    kappa: sharpness of the separation; towards 0 this is REINFORCE.
    margin: by how much, in the measure's unit, a completion must be separated.
    share: fixed_length, sequence_mean, token_mean or per_sequence.
    kl: strength of a KL penalty in the reward, before the baseline.
    target_weight: factor on the demonstrations' term; 0 leaves it out.
    """
    units: dict[str, Unit] = {"token": token, "average": average, "total": total}
    shares: dict[str, Share] = {
        "fixed_length": fixed_length,
        "sequence_mean": sequence_mean,
        "token_mean": token_mean,
        "per_sequence": per_sequence,
    }
    credits: dict[str, Credit] = {
        "softmax": GroupSoftmax(beta, kl=kl),
        "mean": GroupMean(kl=kl),
        "zscore": GroupZScore(kl=kl),
        "leave_one_out": LeaveOneOut(kl=kl),
    }
    values: dict[str, Value] = {
        "identity": identity,
        "exp": Exp(beta),
        "expm1": Expm1(beta),
        "prospect": Prospect(),
    }
    shifts: dict[str, tuple[Shift, ...]] = {
        "opponents_soft": (opponents_soft,),
        "opponents": (opponents,),
        "group": (group_mean,),
        "none": (),
    }
    if value == "exp" and kappa:
        raise ValueError("value exp pushes every completion up, so there is nothing to separate: use kappa 0")
    weight: Weight = Separation(kappa, margin) if kappa else One()
    samples = Term(
        unit=units[unit],
        measure=units[measure],
        anchor=Anchor(base, shifts[shift] if kappa else ()),
        weight=weight,
        value=values[value],
        share=shares[share],
    )
    if base == "old":
        samples = replace(samples, weight=Corrected(weight), second=Anchor("old"))
    targets = Term(unit=samples.unit, value=one, share=samples.share, rows="targets", scale=target_weight)
    return Algorithm(
        name="gro",
        paper="One Framework to Rule Them All: Unifying RL-Based and RL-Free Methods in RLHF",
        equation="eq. 35-37",
        credit=credits[credit],
        terms=(samples, targets) if target_weight else (samples,),
    )
