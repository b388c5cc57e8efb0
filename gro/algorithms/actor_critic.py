"""Policy gradients whose advantage comes from a critic: PPO and its kin, TRPO, A-LoL."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gro.algorithms.group_relative import clipped
from gro.algorithms.registry import algorithm
from gro.objective import Adapt, Algorithm, Anchor, AnyTerm, Critic, EntropyBonus, Term, TrustRegion
from gro.objective.credit import AdaptiveKl, Credit, Gae, GroupMean, StateValue
from gro.objective.shares import per_sequence, token_mean
from gro.objective.units import token, total
from gro.objective.values import above, one, relu
from gro.objective.weights import Ratio, SampledEntropy, Stay, TruncatedRatio
from gro.schema import Clip, Count, NotNegative, Positive, Share

Estimate = Literal["exact", "sampled"]


def bonus(entropy: float, estimate: Estimate) -> tuple[AnyTerm, ...]:
    """The entropy bonus, from the whole distribution or from the tokens that were sampled; none where it is 0."""
    sampled = Term(second=Anchor("old"), weight=SampledEntropy(entropy), value=one, share=token_mean)
    terms: dict[str, AnyTerm] = {"exact": EntropyBonus(entropy), "sampled": sampled}
    return (terms[estimate],) if entropy else ()


@algorithm
def ppo(
    clip: Clip = 0.2,
    clip_high: NotNegative | None = None,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    kl: NotNegative = 0.05,
    kl_target: Positive | None = None,
    kl_horizon: Positive = 10_000.0,
    entropy: NotNegative = 0.0,
    entropy_estimate: Estimate = "exact",
    value_coefficient: NotNegative = 0.1,
    value_clip: Positive | None = 0.2,
    whiten: bool = False,
    max_kl: Positive | None = None,
) -> Algorithm:
    """Proximal policy optimization: a critic's advantages, the clipped ratio, a KL penalty in the reward.

    When: Prompts with rewards, several updates per batch, and answers in which it matters which token earned the
    reward: one answer per prompt is enough, since the critic is the baseline. It costs a second model, a second
    learning rate and steps in which the critic is still wrong; with one reward at the end and cheap sampling, rloo and
    grpo do without.

    clip, clip_high: the ratio may move in [1 − clip, 1 + clip_high]; clip_high defaults to clip.
    gamma, lam: of generalised advantage estimation.
    kl: strength of the KL penalty k1 in the token rewards; 0 leaves it out.
    kl_target, kl_horizon: nats per completion that the strength of the penalty is moved towards from step to step
        (Ziegler et al. 2019), and in how many completions; without a target it stays as it is.
    entropy: strength of the entropy bonus.
    entropy_estimate: exact, from the whole distribution at each token; sampled, from the tokens' own log-probs.
    value_coefficient: factor on the critic's loss.
    value_clip: how far from its old value the critic may be drawn; null for no limit.
    whiten: z-score the advantages over the batch's tokens.
    max_kl: the passes over a batch end once the mean KL(old‖θ) per token is above this; usual is 1.5 times the KL that
        is wanted.
    """
    credit: Credit = Gae(gamma=gamma, lam=lam, kl=kl, whiten=whiten)
    return Algorithm(
        name="ppo",
        paper="https://arxiv.org/abs/1707.06347",
        equation="Schulman et al. 2017, eq. 7 and 9",
        credit=credit if kl_target is None else AdaptiveKl(credit, kl_target, kl_horizon),
        terms=(clipped(clip, clip_high, token_mean), *bonus(entropy, entropy_estimate)),
        critic=Critic(value_coefficient, value_clip),
        max_kl=max_kl,
    )


@algorithm
def ppo_penalty(
    beta: Positive = 1.0,
    target: Positive = 0.01,
    adaptive: bool = True,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    value_coefficient: NotNegative = 0.1,
    value_clip: Positive | None = 0.2,
) -> Algorithm:
    """PPO with a penalty on KL(old‖θ) in the place of the clip.

    When: As ppo, where the KL that a step may cost is easier to name than a range of ratios. The strength follows what
    the last steps cost, so that the first may go too far or hardly anywhere; the paper found the clip to do better on
    its tasks.

    beta: strength of the penalty at the first step.
    target: nats per token that a step should come to.
    adaptive: double the strength after a step above 1.5 times the target, halve it after one below target/1.5.
    gamma, lam: of generalised advantage estimation.
    value_coefficient, value_clip: of the critic's loss, as in ppo.
    """
    old = Anchor("old")
    penalty = Term(anchor=old, weight=Stay(beta), value=one, adapt=Adapt(target) if adaptive else None)
    return Algorithm(
        name="ppo_penalty",
        paper="https://arxiv.org/abs/1707.06347",
        equation="Schulman et al. 2017, eq. 8",
        credit=Gae(gamma=gamma, lam=lam),
        terms=(Term(anchor=old, weight=Ratio()), penalty),
        critic=Critic(value_coefficient, value_clip),
    )


@algorithm
def ppo_ptx(ptx: NotNegative = 27.8, clip: Clip = 0.2, kl: NotNegative = 0.02, lam: Share = 0.95) -> Algorithm:
    """PPO beside the likelihood of demonstrations or pretraining text, against what alignment costs elsewhere.

    Any other algorithm takes `ptx` too.

    When: As ppo, with demonstrations or plain text beside the prompts, where what was learnt before is lost as the
    reward rises. The two losses have no common unit: 27.8 belongs to the paper's model and batches, and ptx has to be
    tuned together with kl.

    ptx: factor on the mean log-likelihood of the demonstrations' tokens.
    clip: the ratio may move in [1 − clip, 1 + clip].
    kl: strength of the KL penalty k1 in the token rewards.
    lam: of generalised advantage estimation.
    """
    base = ppo(clip=clip, kl=kl, lam=lam)
    return replace(
        base,
        name="ppo_ptx",
        paper="https://arxiv.org/abs/2203.02155",
        equation="Ouyang et al. 2022, eq. 2",
        terms=(*base.terms, Term(value=one, share=token_mean, rows="targets", scale=ptx)),
    )


@algorithm
def trpo(
    delta: Positive = 0.01,
    damping: NotNegative = 0.1,
    cg_steps: Count = 10,
    backtrack: Share = 0.8,
    backtracks: Count = 10,
    baseline: Literal["critic", "group"] = "critic",
    gamma: Share = 1.0,
    lam: Share = 0.95,
    value_coefficient: NotNegative = 0.1,
    value_clip: Positive | None = 0.2,
) -> Algorithm:
    """Trust region policy optimization: the best step among those whose mean KL(old‖θ) is at most delta.

    When: Prompts with rewards, where the policy itself may move only so far in a step, whatever the loss: exact
    studies, small models. A step takes as many extra passes as cg_steps plus the lengths tried, and there is one per
    batch; ppo's clip is the cheap stand-in.

    delta: nats per token that a step may cost.  It alone sets the step's length: the policy reads none of the
        optimizer's settings.
    damping: added to the Fisher matrix, times the identity.
    cg_steps: of conjugate gradient, for the direction.
    backtrack, backtracks: a step that does not improve, or costs too much, is shortened by this factor; so many
        lengths are tried, and then none is taken.
    baseline: critic (generalised advantage estimation) or group (the mean reward of the prompt's completions).
    gamma, lam: of generalised advantage estimation.
    value_coefficient, value_clip: of the critic's loss, as in ppo.
    """
    critic = baseline == "critic"
    return Algorithm(
        name="trpo",
        paper="https://arxiv.org/abs/1502.05477",
        equation="Schulman et al. 2015, eq. 14 and appendix C",
        credit=Gae(gamma=gamma, lam=lam) if critic else GroupMean(),
        terms=(Term(anchor=Anchor("old"), weight=Ratio()),),
        critic=Critic(value_coefficient, value_clip) if critic else None,
        step=TrustRegion(delta, cg_steps, damping, backtrack, backtracks),
    )


@algorithm
def a_lol(
    variant: Literal["sequence", "token", "ref_free", "kl"] = "sequence",
    clip: Clip = 0.9,
    beta: NotNegative = 0.1,
    value_coefficient: NotNegative = 1.0,
) -> Algorithm:
    """Advantage-leftover-lunch: offline policy gradient on completions better than the reference's own average.

    The critic learns V(x) on the reference's samples before the policy moves, and then stays as it is.

    When: Completions with rewards of mixed quality, on file, when nothing is to be sampled. Only what is better than
    the reference's own average is learnt from: nothing is pushed down, and all that the worse part of the file could
    teach is thrown away. How good that average is depends on the critic's warm-up.

    variant: sequence, weighted by the completion's ratio to the reference; token, by each token's ratio; ref_free,
        not weighted; kl, not weighted, with a KL penalty to the reference instead.
    clip: a ratio counts as no less than 1 − clip and no more than 1 + clip, and is not differentiated.
    beta: strength of the penalty of variant kl.
    value_coefficient: factor on the critic's loss.
    """
    near, ref = TruncatedRatio(low=1 - clip, high=1 + clip), Anchor("ref")
    plain = Term(unit=total, value=relu, share=per_sequence)
    stay = Term(unit=total, anchor=ref, value=above(0.0), share=per_sequence, scale=-beta)
    terms: dict[str, tuple[Term, ...]] = {
        "sequence": (replace(plain, anchor=ref, weight=near),),
        "token": (replace(plain, unit=token, anchor=ref, weight=near),),
        "ref_free": (plain,),
        "kl": (plain, stay) if beta else (plain,),
    }
    return Algorithm(
        name="a_lol",
        paper="https://arxiv.org/abs/2305.14718",
        equation="Baheti et al. 2023, eq. 4 to 6",
        credit=StateValue(),
        terms=terms[variant],
        critic=Critic(value_coefficient, frozen=True),
    )
