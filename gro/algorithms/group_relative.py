"""Policy gradients whose baseline is the group: GRPO, and what was made of it."""

from __future__ import annotations

from typing import Literal

from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.credit import GroupMean, GroupZScore
from gro.objective.shares import FixedLength, Share, group_token_mean, per_sequence, sequence_mean, token_mean
from gro.objective.units import average, token
from gro.objective.values import one
from gro.objective.weights import K2, K3, ClippedRatio, RatioK3, SoftGate, TruncatedRatio
from gro.schema import Clip, Count, Ddof, NotNegative, Positive

Kl = Literal["k3", "k2", "rk3"]
Tokens = Literal["group", "batch"]


def clipped(clip: float, clip_high: float | None, share: Share, dual: float | None = None) -> Term:
    """PPO's clipped ratio to the old policy, token by token."""
    high = clip if clip_high is None else clip_high
    return Term(anchor=Anchor("old"), weight=ClippedRatio(clip, high, dual), share=share)


def pull(kl: str, beta: float, share: Share) -> tuple[Term, ...]:
    """The KL to the reference as a term of the loss; none where beta is 0."""
    terms = {
        "k3": Term(anchor=Anchor("ref"), weight=K3(beta), value=one, share=share),
        "k2": Term(anchor=Anchor("ref"), weight=K2(beta), value=one, share=share),
        "rk3": Term(anchor=Anchor("old"), second=Anchor("ref"), weight=RatioK3(beta), value=one, share=share),
    }
    return (terms[kl],) if beta else ()


def per_token(tokens: Tokens) -> Share:
    """DAPO's mean over tokens: of each group (the paper's) or of the whole batch (the libraries')."""
    return group_token_mean if tokens == "group" else token_mean


@algorithm
def grpo(
    clip: Clip = 0.2,
    clip_high: NotNegative | None = None,
    beta: NotNegative = 0.04,
    kl: Kl = "k3",
    ddof: Ddof = 0,
    eps: NotNegative = 1e-6,
) -> Algorithm:
    """Group relative policy optimization: rewards z-scored in their group, PPO's clip, a KL term in the loss.

    When: Prompts with a reward, several answers to each, and no memory for a critic. Dividing by the deviation lifts
    prompts that are nearly always right or nearly always wrong, and the mean over a completion makes the tokens of long
    answers count less; dr_grpo does neither. Groups of equal rewards teach nothing.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    beta: strength of the KL term; 0 leaves it out, and with it the reference.
    kl: k3, the paper's, whose gradient is the *forward* KL's; k2, the reverse KL's state by state; rk3, the ratio
        times k3, exactly the reverse KL's also off-policy.
    ddof, eps: of the standard deviation (libraries differ: 0 in the paper, 1 in TRL).
    """
    return Algorithm(
        name="grpo",
        paper="https://arxiv.org/abs/2402.03300",
        equation="Shao et al. 2024, eq. 3 and 4",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(clipped(clip, clip_high, sequence_mean), *pull(kl, beta, sequence_mean)),
    )


@algorithm
def dapo(
    clip: Clip = 0.2,
    clip_high: NotNegative = 0.28,
    tokens: Tokens = "group",
    ddof: Ddof = 0,
    eps: NotNegative = 1e-6,
) -> Algorithm:
    """Decoupled clip and dynamic sampling: GRPO with a higher upper clip, every token counting alike, without KL.

    Its resampling of prompts that are all right or all wrong is the source's; its overlong penalty is a reward.

    When: Prompts with checkable rewards, long answers, many steps. Nothing but the clip holds the policy near where it
    began. `resample` and the reward `overlong` belong to the paper's method; without them many groups teach nothing,
    and answers that are cut off are noise.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high].
    tokens: group, the mean over the tokens of each group (the paper's); batch, over all tokens (the libraries').
    ddof, eps: of the standard deviation.
    """
    return Algorithm(
        name="dapo",
        paper="https://arxiv.org/abs/2503.14476",
        equation="Yu et al. 2025, eq. 8",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(clipped(clip, clip_high, per_token(tokens)),),
    )


@algorithm
def dr_grpo(clip: Clip = 0.2, clip_high: NotNegative | None = None, length: Count | None = None) -> Algorithm:
    """GRPO done right: no division by the standard deviation or by the completion's own length, and no KL.

    When: As grpo, where the length of an answer and the spread of a prompt's rewards should not change how much a token
    counts. Steps shrink as most groups become all right or all wrong, and the learning rate depends on the most tokens
    that an answer may have.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    length: what every completion's sum is divided by; by default the most tokens that a completion may have.
    """
    return Algorithm(
        name="dr_grpo",
        paper="https://arxiv.org/abs/2503.20783",
        equation="Liu et al. 2025, sec. 3.2",
        credit=GroupMean(),
        terms=(clipped(clip, clip_high, FixedLength(length)),),
    )


@algorithm
def bnpo(
    clip: Clip = 0.2,
    clip_high: NotNegative | None = None,
    beta: NotNegative = 0.0,
    kl: Kl = "k3",
    ddof: Ddof = 0,
    eps: NotNegative = 1e-6,
) -> Algorithm:
    """Batch-normalised GRPO, as TRL means it: the mean over all completion tokens of the batch.

    The paper of that name (Xiao et al. 2025, arXiv 2506.02864) is about something else: it divides the advantage by a
    Beta density that is fitted to the prompts' success rates.  That is not offered here.

    When: As grpo, to repeat a run of TRL with this loss type: all tokens of the batch count alike, so that long answers
    weigh more than short ones. dapo with tokens batch is the same mean with a higher upper clip.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    beta, kl: strength and kind of the KL term, as in grpo; 0 leaves it out.
    ddof, eps: of the standard deviation.
    """
    return Algorithm(
        name="bnpo",
        paper="https://huggingface.co/docs/trl/grpo_trainer",
        equation="TRL 1.16, loss_type bnpo",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(clipped(clip, clip_high, token_mean), *pull(kl, beta, token_mean)),
    )


@algorithm
def gspo(
    clip: Clip = 3e-4,
    clip_high: NotNegative = 4e-4,
    per_token: bool = False,
    ddof: Ddof = 0,
    eps: NotNegative = 1e-6,
) -> Algorithm:
    """Group sequence policy optimization: one ratio for a completion, the geometric mean of its tokens'.

    When: As grpo with several updates per batch, where the reward is of the whole answer and single tokens' ratios are
    noisy, as in mixtures of experts. The ratio is a mean over tokens, so that its bounds are hundreds of times narrower
    than grpo's and far more is clipped; they have to be set anew for answers of another length.

    clip, clip_high: the completion's ratio may move in [1 − clip, 1 + clip_high].
    per_token: GSPO-token, which weighs every token by the completion's ratio, so that tokens may have advantages of
        their own; with one advantage for a completion the gradient is the same.
    ddof, eps: of the standard deviation.
    """
    weight, old = ClippedRatio(clip, clip_high), Anchor("old")
    whole = Term(unit=average, anchor=old, weight=weight, share=per_sequence)
    tokens = Term(unit=token, measure=average, anchor=old, weight=weight, share=sequence_mean)
    return Algorithm(
        name="gspo",
        paper="https://arxiv.org/abs/2507.18071",
        equation="Zheng et al. 2025, eq. 5 and 13",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(tokens if per_token else whole,),
    )


@algorithm
def cispo(cap: Positive = 5.0, tokens: Tokens = "group", ddof: Ddof = 0, eps: NotNegative = 1e-6) -> Algorithm:
    """Clipped importance sampling: REINFORCE with the ratio cut off above, so that no token loses its gradient.

    When: As grpo with several updates per batch, where the clip would silence rare tokens whose probability changes
    most. Nothing stops an update from going on past the cap: on many passes over a batch the policy goes further than
    with grpo.

    cap: the largest ratio, itself and not what it exceeds 1 by; there is no smallest.
    tokens: group, the mean over the tokens of each group (the paper's); batch, over all tokens.
    ddof, eps: of the standard deviation.
    """
    truncated = Term(anchor=Anchor("old"), weight=TruncatedRatio(cap), share=per_token(tokens))
    return Algorithm(
        name="cispo",
        paper="https://arxiv.org/abs/2506.13585",
        equation="MiniMax 2025, eq. 4 and 5",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(truncated,),
    )


@algorithm
def sapo(positive: Positive = 1.0, negative: Positive = 1.05, ddof: Ddof = 0, eps: NotNegative = 1e-6) -> Algorithm:
    """Soft adaptive policy optimization: in the place of the clip, a gate that closes smoothly as the ratio leaves 1.

    When: As grpo with several updates per batch, where a clip's sudden end makes training jump. There is no range that
    can be read off: how far the policy may go is the gate's sharpness, and in the first update of a batch it is grpo
    without KL.

    positive, negative: how quickly it closes on completions better and worse than their group's mean.
    ddof, eps: of the standard deviation.
    """
    gated = Term(anchor=Anchor("old"), weight=SoftGate(positive, negative), share=sequence_mean)
    return Algorithm(
        name="sapo",
        paper="https://arxiv.org/abs/2511.20347",
        equation="Gao et al. 2025, eq. 5 to 7",
        credit=GroupZScore(ddof=ddof, eps=eps),
        terms=(gated,),
    )
