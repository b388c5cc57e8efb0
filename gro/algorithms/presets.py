"""GRPO as other libraries compute it by default: the same name, different objectives.

Read from their sources in August 2026.  Each holds for one optimizer step per batch of rollouts as well as for several;
what the libraries do beside the objective (dropping groups of equal rewards, corrections for the sampler) is theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gro.algorithms.group_relative import clipped, pull
from gro.algorithms.registry import algorithm
from gro.objective import Algorithm, Anchor
from gro.objective.credit import GroupMean, GroupZScore, KlAfterwards, LeaveOneOutZScore
from gro.objective.shares import Share, fixed_length, per_sequence, sequence_mean, token_mean
from gro.objective.units import average
from gro.objective.values import one
from gro.objective.weights import K3, SoftGate, TruncatedRatio
from gro.schema import Clip, NotNegative, Positive

Loss = Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]
Scale = Literal["group", "none"]


@algorithm
def grpo_trl(
    loss_type: Loss = "dapo",
    beta: NotNegative = 0.0,
    bias_correction: bool = True,
    epsilon: Clip = 0.2,
    epsilon_high: NotNegative | None = None,
    delta: Positive | None = None,
    sequence_level: bool = False,
    scale_rewards: Scale = "group",
) -> Algorithm:
    """GRPO as TRL 1.16 computes it: z-score with ddof 1 and ε 1e-4, the mean over the batch's tokens, no KL.

    The parameters are those of its GRPOConfig.

    When: To repeat or to compare with a run of TRL: its GRPOConfig's names and defaults. For a new run grpo, dapo and
    dr_grpo keep apart what loss_type joins. With the default beta nothing holds the policy near where it began.

    loss_type: dapo, and at one batch per step the same bnpo (1/N); grpo (1/(B·|y|)); dr_grpo (1/(B·L_max)); cispo,
        whose cap *is* epsilon_high; sapo.
    beta: strength of the KL term, the ratio times k3; 0 leaves it out.
    bias_correction: use_bias_correction_kl; without it the KL term is plain k3.
    epsilon, epsilon_high: the ratio may move in [1 − epsilon, 1 + epsilon_high]; epsilon_high defaults to epsilon.
    delta: the largest ratio of a completion that is worse than expected; null for no limit.
    sequence_level: importance_sampling_level sequence, with loss_type grpo: one ratio for a completion, as in gspo.
    scale_rewards: group divides by the standard deviation; none leaves it out.
    """
    shares: dict[str, Share] = {"grpo": sequence_mean, "sapo": sequence_mean, "dr_grpo": fixed_length}
    share = shares.get(loss_type, token_mean)
    high = epsilon if epsilon_high is None else epsilon_high
    policy = clipped(epsilon, high, share, delta)
    if loss_type == "cispo":
        policy = replace(policy, weight=TruncatedRatio(high))
    if loss_type == "sapo":
        policy = replace(policy, weight=SoftGate())
    if sequence_level:
        if loss_type != "grpo" or beta:
            raise ValueError(f"sequence_level goes with loss_type grpo and beta 0; found {loss_type} and {beta:g}")
        policy = replace(policy, unit=average, share=per_sequence)
    return Algorithm(
        name="grpo_trl",
        paper="https://huggingface.co/docs/trl/v1.16.0/grpo_trainer",
        equation="TRL 1.16, GRPOTrainer",
        credit=GroupZScore(ddof=1, eps=1e-4) if scale_rewards == "group" else GroupMean(),
        terms=(policy, *pull("rk3" if bias_correction else "k3", beta, share)),
    )


@algorithm
def grpo_verl(clip: Clip = 0.2, clip_high: NotNegative = 0.2, dual: Positive = 3.0, kl: NotNegative = 0.0) -> Algorithm:
    """GRPO as verl computes it: z-score with ddof 1 and ε 1e-6, dual clip at 3, the mean over all tokens, no KL.

    When: To repeat or to compare with a run of verl: its defaults with the estimator grpo. The dual clip matters only
    where a bad answer has become much more likely within a batch. For a new run grpo and dapo say more plainly what
    they compute.

    clip, clip_high: clip_ratio_low and clip_ratio_high.
    dual: clip_ratio_c: the largest ratio of a completion that is worse than expected.
    kl: kl_loss_coef where use_kl_loss is set: k3, cut off at 10.
    """
    policy = clipped(clip, clip_high, token_mean, dual)
    penalty = replace(policy, anchor=Anchor("ref"), weight=K3(kl, limit=10.0), value=one)
    return Algorithm(
        name="grpo_verl",
        paper="https://github.com/verl-project/verl",
        equation="verl, trainer/ppo/core_algos.py, August 2026",
        credit=GroupZScore(ddof=1, eps=1e-6),
        terms=(policy, penalty) if kl else (policy,),
    )


@algorithm
def grpo_openrlhf(clip: Clip = 0.2, kl: NotNegative = 0.01) -> Algorithm:
    """GRPO as OpenRLHF's group_norm computes it: z-score with ddof 1 and ε 1e-9, then k1 in the token rewards.

    When: To repeat or to compare with a run of OpenRLHF with the estimator group_norm. The KL penalty is charged to the
    tokens after the baseline, where rloo takes it off the reward before and grpo has it in the loss: the same number is
    another pull.

    clip: eps_clip.
    kl: algo.kl.init_coef: taken off *after* the baseline, token by token to the end, each k1 cut off at ±10.
    """
    return Algorithm(
        name="grpo_openrlhf",
        paper="https://github.com/OpenRLHF/OpenRLHF",
        equation="OpenRLHF, estimator group_norm, August 2026",
        credit=KlAfterwards(GroupZScore(ddof=1, eps=1e-9), kl, limit=10.0),
        terms=(clipped(clip, None, token_mean),),
    )


@algorithm
def grpo_open_instruct(
    clip: Clip = 0.2,
    clip_high: NotNegative = 0.272,
    beta: NotNegative = 0.05,
    normalization: Literal["centered", "standard"] = "centered",
) -> Algorithm:
    """GRPO as open-instruct computes it: rewards centred and not scaled, k3 in the loss, the mean over all tokens.

    When: To repeat or to compare with a run of open-instruct. By default it is nearer to dr_grpo than to grpo, since
    nothing is divided by the deviation, and beta weighs more against the smaller advantages.

    clip, clip_high: clip_lower and clip_higher.
    beta: of kl_estimator 2, which is k3; 0 leaves it out.
    normalization: advantage_normalization_type; standard divides by the standard deviation, with ddof 0 and ε 1e-8.
    """
    return Algorithm(
        name="grpo_open_instruct",
        paper="https://github.com/allenai/open-instruct",
        equation="open-instruct, grpo_utils.py and data_loader.py, August 2026",
        credit=GroupMean() if normalization == "centered" else GroupZScore(ddof=0, eps=1e-8),
        terms=(clipped(clip, clip_high, token_mean), *pull("k3", beta, token_mean)),
    )


@algorithm
def grpo_nemo_rl(clip: Clip = 0.2, clip_high: NotNegative = 0.2, kl: NotNegative = 0.01) -> Algorithm:
    """GRPO as NeMo-RL computes it: mean and deviation of the *others*, the reverse KL, the mean over all tokens.

    Its KL term is k3 times a ratio that is 1 but differentiated, whose gradient is that of k2.  It cuts k3 off at 10,
    which this does not.

    When: To repeat or to compare with a run of NeMo-RL. A single good answer among equal ones is not divided by
    anything, as the others do not differ, so that the sizes of advantages jump from group to group.

    clip, clip_high: ratio_clip_min and ratio_clip_max.
    kl: reference_policy_kl_penalty; 0 leaves it out.
    """
    return Algorithm(
        name="grpo_nemo_rl",
        paper="https://github.com/NVIDIA-NeMo/RL",
        equation="NeMo-RL, advantage_estimator.py and loss_functions.py, August 2026",
        credit=LeaveOneOutZScore(),
        terms=(clipped(clip, clip_high, token_mean), *pull("k2", kl, token_mean)),
    )
