"""Policy gradients: sampled completions, weighted by how much better than expected they were."""

from __future__ import annotations

from typing import Literal

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.credit import GroupZScore, LeaveOneOut, MovingAverage
from gro.objective.shares import per_sequence, sequence_mean
from gro.objective.units import total
from gro.objective.values import one
from gro.objective.weights import K2, K3, ClippedRatio, Ratio, RatioK3
from gro.schema import Index, NotNegative

Kl = Literal["k3", "k2", "rk3"]


@algorithm
def reinforce(kl: NotNegative = 0.0, off_policy: bool = False) -> Algorithm:
    """REINFORCE with a moving-average baseline: the mean reward of earlier steps.

    kl: strength of the KL penalty k1 in the token rewards.
    off_policy: weigh by the ratio to the old policy, for several updates per batch.
    """
    plain = Term(share=per_sequence)
    ratio = Term(anchor=Anchor("old"), weight=Ratio(), share=per_sequence)
    return Algorithm(
        name="reinforce",
        paper="https://doi.org/10.1007/BF00992696",
        equation="Williams 1992, sec. 4",
        credit=MovingAverage(kl=kl),
        terms=(ratio if off_policy else plain,),
    )


@algorithm
def rloo(kl: NotNegative = 0.05, clip: NotNegative = 0.0) -> Algorithm:
    """REINFORCE leave-one-out: each completion's baseline is the mean reward of its group's others.

    kl: strength of the KL penalty, taken off the sequence's reward *before* the baseline.
    clip: 0 for the paper's plain gradient (one update per batch); ε for PPO's clip on the *sequence* ratio (TRL's).
    """
    plain = Term(share=per_sequence)
    clipped = Term(unit=total, anchor=Anchor("old"), weight=ClippedRatio(clip, clip), share=per_sequence)
    return Algorithm(
        name="rloo",
        paper="https://arxiv.org/abs/2402.14740",
        equation="Ahmadian et al. 2024, eq. 7",
        credit=LeaveOneOut(kl=kl),
        terms=(clipped if clip else plain,),
    )


@algorithm
def grpo(
    clip: NotNegative = 0.2,
    clip_high: NotNegative | None = None,
    beta: NotNegative = 0.04,
    kl: Kl = "k3",
    ddof: Index = 0,
    eps: NotNegative = 1e-6,
) -> Algorithm:
    """Group relative policy optimization: rewards z-scored in their group, PPO's clip, a KL term in the loss.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    beta: strength of the KL term; 0 leaves it out, and with it the reference.
    kl: k3, the paper's, whose gradient is the *forward* KL's; k2, the reverse KL's state by state; rk3, the ratio
        times k3, exactly the reverse KL's also off-policy.
    ddof, eps: of the standard deviation (libraries differ: 0 in the paper, 1 in TRL).
    """
    pulls = {
        "k3": Term(anchor=Anchor("ref"), weight=K3(beta), value=one, share=sequence_mean),
        "k2": Term(anchor=Anchor("ref"), weight=K2(beta), value=one, share=sequence_mean),
        "rk3": Term(anchor=Anchor("old"), second=Anchor("ref"), weight=RatioK3(beta), value=one, share=sequence_mean),
    }
    if kl not in pulls:
        raise ValueError(f"kl is {kl!r}; it can be {', '.join(pulls)}")
    clipped = Term(
        anchor=Anchor("old"),
        weight=ClippedRatio(clip, clip if clip_high is None else clip_high),
        share=sequence_mean,
    )
    return Algorithm(
        name="grpo",
        paper="https://arxiv.org/abs/2402.03300",
        equation="Shao et al. 2024, eq. 3 and 4",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(clipped, pulls[kl]) if beta else (clipped,),
    )
