"""REINFORCE and its baselines: sampled completions, weighted by how much better than expected they were."""

from __future__ import annotations

from gro.algorithms.group_relative import clipped, pull
from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor, Term
from gro.objective.credit import Greedy, LeaveOneOut, MovingAverage, TokenZScore
from gro.objective.shares import per_sequence, token_mean
from gro.objective.units import total
from gro.objective.weights import ClippedRatio, Ratio
from gro.schema import Clip, NotNegative


@algorithm
def reinforce(kl: NotNegative = 0.0, off_policy: bool = False) -> Algorithm:
    """REINFORCE with a moving-average baseline: the mean reward of earlier steps.

    When: Prompts with any reward; one answer to each is enough. The plain method, to understand others by: its baseline
    knows nothing of the prompt, so that easy and hard ones add noise, which rloo takes out with groups. One update per
    batch unless off_policy is set.

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
def rloo(kl: NotNegative = 0.05, clip: Clip = 0.0) -> Algorithm:
    """REINFORCE leave-one-out: each completion's baseline is the mean reward of its group's others.

    When: Prompts with rewards and at least two answers to each: an unbiased baseline without a critic, and the size of
    rewards counts, which grpo divides away. All tokens of an answer share one advantage. One update per batch unless
    clip is set.

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
def ppo_sequence(clip: Clip = 0.2, clip_high: NotNegative | None = None, kl: NotNegative = 0.05) -> Algorithm:
    """PPO on whole completions: the clip acts on the ratio of a completion's probabilities, with rloo's advantage.

    The survey's Protocol 4, with its slips put right: one ratio for each completion instead of their mean, the
    reward less β log π/π_ref, and the minimum of the gains, not of the losses.

    When: As rloo, with several updates per batch. The ratio of a whole answer multiplies up over its tokens and leaves
    the range after a small step once answers are long; then gspo's mean over tokens or the tokens' own ratios of grpo.

    clip, clip_high: a completion's ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    kl: strength of the KL penalty, taken off the completion's reward before the baseline.
    """
    weight = ClippedRatio(clip, clip if clip_high is None else clip_high)
    return Algorithm(
        name="ppo_sequence",
        paper="https://arxiv.org/abs/1707.06347",
        equation="Schulman et al. 2017, eq. 7, the completion being the action",
        credit=LeaveOneOut(kl=kl),
        terms=(Term(unit=total, anchor=Anchor("old"), weight=weight, share=per_sequence),),
    )


@algorithm
def reinforce_pp(clip: Clip = 0.2, clip_high: NotNegative | None = None, kl: NotNegative = 0.01) -> Algorithm:
    """REINFORCE++: every token's reward-to-go, z-scored over all completion tokens of the batch, and PPO's clip.

    When: Prompts with rewards and one answer to each: several updates per batch with neither groups nor a critic. The
    baseline is that of the batch, so that how hard a prompt is stays in the advantage, and a small batch is a noisy
    baseline.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    kl: strength of the KL penalty k1 in the token rewards.
    """
    return Algorithm(
        name="reinforce_pp",
        paper="https://arxiv.org/abs/2501.03262",
        equation="Hu et al. 2025, eq. 4 to 7",
        credit=TokenZScore(kl=kl),
        terms=(clipped(clip, clip_high, token_mean),),
    )


@algorithm
def reinforce_pp_baseline(
    clip: Clip = 0.2, clip_high: NotNegative | None = None, beta: NotNegative = 0.01
) -> Algorithm:
    """REINFORCE++ with the group's mean reward as baseline, before the z-score over the batch's tokens.

    When: Prompts with rewards and several answers to each. The scale is the batch's and not each group's, so that a
    group of nearly equal rewards is not blown up as in grpo. Groups of equal rewards still teach nothing.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    beta: strength of the KL term k2 in the loss; 0 leaves it out, and with it the reference.
    """
    return Algorithm(
        name="reinforce_pp_baseline",
        paper="https://arxiv.org/abs/2501.03262",
        equation="Hu et al. 2025, sec. 3",
        credit=TokenZScore(kl=0.0, group_baseline=True),
        terms=(clipped(clip, clip_high, token_mean), *pull("k2", beta, token_mean)),
    )


@algorithm
def remax(kl: NotNegative = 0.0, immediate: bool = False) -> Algorithm:
    """ReMax: each prompt's baseline is the reward of its greedy completion.

    When: Prompts with rewards, where groups are too dear: a sample and a greedy answer to each, no critic. Samples that
    are as good as the greedy answer teach nothing, and a greedy answer unlike the samples is a poor baseline. One
    update per batch.

    kl: strength of the KL penalty k1 of the sample; the greedy completion has none.
    immediate: each token is charged its own penalty only (the authors' code), not all from it to the end.
    """
    return Algorithm(
        name="remax",
        paper="https://arxiv.org/abs/2310.10505",
        equation="Li et al. 2023, eq. 6",
        credit=Greedy(kl=kl, immediate=immediate),
        terms=(Term(share=per_sequence),),
    )
