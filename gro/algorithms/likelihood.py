"""Likelihood: imitation of demonstrations, and of what was sampled, by how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from gro.algorithms.group_relative import clipped
from gro.algorithms.registry import algorithm, build
from gro.objective import Algorithm, AnyTerm, Critic, Term
from gro.objective.credit import Gae, GroupMean, NoBaseline, Normalised
from gro.objective.gates import BestOfGroup, Gate, GroupFails, GroupSucceeds, RewardAbove
from gro.objective.shares import FixedLength, sequence_mean, token_mean
from gro.objective.values import exp, one
from gro.schema import Clip, Count, NotNegative, Positive, Share

Rate = Annotated[float, Field(gt=0, le=1)]
DEMONSTRATIONS = Term(value=one, share=token_mean, rows="targets")


def imitating(gate: Gate) -> Term:
    """Likelihood of the samples that a gate lets through."""
    return Term(value=one, share=token_mean, gate=gate)


@algorithm
def sft() -> Algorithm:
    """Supervised fine-tuning: the mean negative log-likelihood of the demonstrations' tokens.

    When: Demonstrations of what is wanted; the usual start before everything else. It learns all of them alike, good
    and bad, and nothing of what to avoid.
    """
    return Algorithm(
        name="sft",
        paper="https://arxiv.org/abs/2203.02155",
        equation="Ouyang et al. 2022, sec. 3.5",
        credit=NoBaseline(),
        terms=(DEMONSTRATIONS,),
    )


@algorithm
def best_of_n() -> Algorithm:
    """Imitation of each prompt's best completion, and of all that are equally good.

    When: Prompts with rewards that only order the answers, or as a simple method to compare others with. All samples
    but the best are thrown away, and where all are equally bad all are imitated; rft has a threshold instead.
    """
    return Algorithm(
        name="best_of_n",
        paper="https://arxiv.org/abs/2112.09332",
        equation="Nakano et al. 2021, sec. 3.2",
        credit=NoBaseline(),
        terms=(imitating(BestOfGroup()),),
    )


@algorithm
def rft(threshold: float = 0.5) -> Algorithm:
    """Rejection-sampling fine-tuning: imitation of the samples that are good enough.

    When: Prompts with checkable rewards and a policy that solves some of them. Nothing is pushed down, so it is hard to
    break; prompts that are never solved teach nothing, and those that are solved often count most.

    threshold: samples with a reward above it are imitated; with rewards of 0 and 1, the right ones.
    """
    return Algorithm(
        name="rft",
        paper="https://arxiv.org/abs/2308.01825",
        equation="Yuan et al. 2023, sec. 3.3",
        credit=NoBaseline(),
        terms=(imitating(RewardAbove((threshold,))),),
    )


@algorithm
def rest(
    thresholds: Sequence[float] = [0.5, 0.7, 0.9],
    inner: str = "sft",
    inner_parameters: Mapping[str, Any] = {},
) -> Algorithm:
    """Reinforced self-training: each step samples (Grow), each pass over the samples filters harder (Improve).

    Demonstrations among the data, the original ones, are learnt from without a filter.

    When: As rft, with graded rewards, where sampling is dear: one set of samples is learnt from several times, by ever
    stricter filters. There must be as many epochs as thresholds, and thresholds have to fit the reward's scale.

    thresholds: pass e learns from samples with a reward above the e-th of these numbers, which rise; the last stays.
    inner: the loss on what the filter leaves: the name of an algorithm, or path/to/file.py:function.
    inner_parameters: that algorithm's parameters.
    """
    gate = RewardAbove(tuple(map(float, thresholds)))
    learner = build(inner, **inner_parameters)
    filtered = tuple(_filtered(learner.name, term, gate) for term in learner.terms)
    return replace(
        learner,
        name="rest",
        paper="https://arxiv.org/abs/2308.08998",
        equation="Gulcehre et al. 2023, sec. 3",
        terms=(*filtered, DEMONSTRATIONS),
    )


def _filtered(name: str, term: AnyTerm, gate: Gate) -> Term:
    """The term on the samples that the gate lets through; what it learnt from demonstrations, it learns from those."""
    if not isinstance(term, Term) or term.gate is not None:
        raise ValueError(f"inner is {name}, which has a term that cannot be filtered: {term}")
    if term.rows not in ("scored", "targets"):
        raise ValueError(f"inner is {name}, which learns from pairs; a filter would leave single completions of them")
    return replace(term, rows="scored", gate=gate)


@algorithm
def awr(
    beta: Positive = 0.05,
    cap: Positive | None = 20.0,
    baseline: Literal["critic", "group"] = "critic",
    lam: Share = 0.95,
    value_coefficient: NotNegative = 1.0,
) -> Algorithm:
    """Advantage-weighted regression: imitation of samples, new or replayed, with weight exp(A/β).

    Advantages are taken before the critic learns from the batch, where the paper fits it first; the recipe's
    critic.warmup_steps let it learn alone at the beginning.

    When: Samples with rewards, new, replayed or on file: it needs no probabilities under which they were drawn. Nothing
    is pushed down, so it moves slowly and seldom breaks. β has to fit the scale of the rewards: too small and single
    samples decide, too large and it is plain imitation.

    beta: temperature; the smaller, the more only the best count.
    cap: the largest weight; null for no limit.
    baseline: critic, with TD(λ) returns; group, the mean reward of the prompt's completions.
    lam: of the critic's returns.
    value_coefficient: factor on the critic's loss.
    """
    critic = baseline == "critic"
    return Algorithm(
        name="awr",
        paper="https://arxiv.org/abs/1910.00177",
        equation="Peng et al. 2019, eq. 9",
        credit=Gae(lam=lam) if critic else GroupMean(),
        terms=(Term(value=exp(beta, cap), share=token_mean),),
        critic=Critic(value_coefficient) if critic else None,
    )


@algorithm
def marwil(beta: NotNegative = 1.0, rate: Rate = 0.01, value_coefficient: NotNegative = 1.0) -> Algorithm:
    """Monotonic advantage re-weighted imitation: of a fixed data set, with weight exp(βA/c), c the usual size of A.

    When: Completions with rewards on file, of mixed quality, and nothing sampled: imitation that prefers the better
    ones. Unlike awr's, its temperature does not depend on the rewards' scale. It stays near the data, and needs a
    critic that fits them.

    beta: 0 is plain cloning of the samples, for which there is no critic.
    rate: how much a new batch counts in c², the running mean of A².
    value_coefficient: factor on the critic's loss.
    """
    return Algorithm(
        name="marwil",
        paper="https://papers.nips.cc/paper/7866",
        equation="Wang et al. 2018, algorithm 1",
        credit=Normalised(Gae(lam=1.0), rate) if beta else NoBaseline(),
        terms=(Term(value=exp(1 / beta) if beta else one, share=token_mean),),
        critic=Critic(value_coefficient) if beta else None,
    )


@algorithm
def hpt(
    threshold: float = 0.0,
    clip: Clip = 0.2,
    clip_high: NotNegative | None = None,
    length: Count | None = None,
    rl: NotNegative = 1.0,
    sft: NotNegative = 1.0,
) -> Algorithm:
    """Hybrid post-training: where the policy fails a prompt, its demonstration is imitated; elsewhere Dr. GRPO's loss.

    When: Prompts with checkable rewards and a demonstration for each, where the policy alone solves too few. The switch
    is sharp and made anew for each prompt and step: with few samples it flickers, and a prompt on the border jumps
    between two losses of different size.

    threshold: a prompt is failed where the mean reward of its samples is not above this.
    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    length: what every sample's sum is divided by; by default the most tokens that a completion may have.
    rl, sft: factors on the samples' and on the demonstrations' loss.
    """
    reinforced = clipped(clip, clip_high, FixedLength(length))
    return Algorithm(
        name="hpt",
        paper="https://arxiv.org/abs/2509.04419",
        equation="Lv et al. 2025, sec. 4",
        credit=GroupMean(),
        terms=(
            replace(reinforced, gate=GroupSucceeds(threshold), scale=rl),
            Term(value=one, share=sequence_mean, rows="targets", gate=GroupFails(threshold), scale=sft),
        ),
    )
