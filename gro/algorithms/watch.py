"""Which metrics show how an algorithm's run goes, read off its slots; names are those that runs record."""

from __future__ import annotations

from collections.abc import Iterator

from gro.objective import Algorithm, Term
from gro.objective.credit import AdaptiveKl, Labels, Normalised
from gro.objective.weights import ClippedRatio, Hinge, Separation, TruncatedQuadratic


def watch(algorithm: Algorithm) -> tuple[tuple[str, str], ...]:
    """(metric, what it shows), the most telling first."""
    if algorithm.scores:
        return tuple(_of_scores(algorithm))
    parts = (_of_pairs, _of_files, _of_samples, _of_ratios, _of_pushes, _of_kl, _of_critic, _of_steps)
    return tuple((metric, why) for part in parts for metric, why in part(algorithm))


def filed(algorithm: Algorithm) -> bool:
    """Whether it is made for completions on file: labelled, in pairs, or rated by what keeps up with no new samples."""
    fitted_once = algorithm.critic is not None and algorithm.critic.frozen
    return isinstance(algorithm.credit, Labels | Normalised) or fitted_once


def _of_scores(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    yield "eval_accuracy", "held-out pairs that the scores order rightly, if there is an `eval` section: what counts"
    if "paired" in algorithm.roles:
        yield "rewards/accuracies", "the same on the step's pairs; far above the held-out ones, it learns them by heart"
        yield "rewards/margins", "by how much the chosen's score is ahead; it grows on after accuracy has stopped"
    yield "loss", "what equal scores would give is no better than guessing: log 2 for a pair"


def _of_pairs(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if "paired" not in algorithm.roles:
        return
    yield "rewards/accuracies", "pairs in which the chosen is ahead; at 1 on the training pairs there is little left"
    yield "rewards/margins", "by how much it is ahead; growing without end, the policy runs away from where it began"
    yield "logps/chosen", "the chosen's log-likelihood; where it falls, the policy moves to answers that nobody wrote"


def _of_files(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if algorithm.roles <= {"targets"}:
        yield "loss", "nats per token"
        yield "eval_loss", "the same of held-out demonstrations; rising again, the data are learnt by heart"
    if "versus" in algorithm.roles:
        yield (
            "loss",
            (
                "log 2 where samples and demonstrations are equally far from the base: with base old every step begins "
                "there, and its later passes show how easily they are still told apart"
            ),
        )
    if isinstance(algorithm.credit, Labels) and "scored" in algorithm.roles:
        yield "loss", "falls as the good completions come above their anchor and the bad ones below"
        yield "eval_loss_desirable", "nats per token of held-out good completions: should not rise"
        yield "eval_loss_undesirable", "the same of bad ones: should rise"
    elif filed(algorithm) and "scored" in algorithm.roles:
        yield "loss", "of the weighted likelihood; what counts is the reward of held-out answers, `eval_reward`"


def _of_samples(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if filed(algorithm) or not algorithm.rewarded:
        return
    yield "reward", "the mean of the policy's own answers; held-out `eval_reward` tells whether it generalises"
    if algorithm.compares and algorithm.credit.group_size > 1:
        yield "frac_reward_zero_std", "prompts whose answers are all equally good, which teach nothing"
    yield "entropy", "a fall towards 0: answers to a prompt become all alike, and nothing new is found"
    yield "completions/mean_length", "a drift to longer answers is often what the reward or the normaliser pays for"
    yield "completions/clipped_ratio", "answers cut off at `max_new_tokens`: the reward sees unfinished ones"


def _of_ratios(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if any(isinstance(t.weight, ClippedRatio) for t in _terms(algorithm)):
        yield "clip_ratio/region_mean", "what has left the clip's range and is no longer pushed; if much, fewer passes"
    if any("r" in t.weight.symbol and t.rows == "scored" for t in _terms(algorithm)) and "old" in algorithm.reads:
        yield "ratio/max", "the largest ratio to the policy that sampled: how stale a batch has become"
        yield "policy/approxkl_avg", "the KL per token since the batch was sampled; fewer passes keep it down"


def _of_pushes(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if any(isinstance(t.weight, Separation | Hinge | TruncatedQuadratic) for t in _terms(algorithm)):
        yield "inactive_ratio", "what is separated already and no longer pushed; near 1 there is nothing left to learn"


def _of_kl(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if "ref" in algorithm.reads and not filed(algorithm):
        yield "kl", "per token, to the policy that the run began with: what was paid for the reward"
    if isinstance(algorithm.credit, AdaptiveKl):
        yield "kl_coefficient", "the strength of the penalty; at one end for long, its target cannot be kept"
    if algorithm.adapts:
        yield "kl_scale", "the factor on the penalty; doubling or halving on and on, its target cannot be kept"
        yield "policy/kl", "the KL of a whole step, which the target is for"


def _of_critic(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if algorithm.critic is None:
        return
    yield "critic/explained_variance", "1 is a perfect critic; at 0 or below it is no baseline, and wants more warm-up"
    if algorithm.critic.clip is not None:
        yield "critic/clip_fraction", "values past their clip: much of it, and the critic is held back"


def _of_steps(algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    if algorithm.step is not None:
        yield "trust_region/accepted", "0 for a step that was not taken: no length improved at the allowed KL"
        yield "trust_region/kl", "what the step cost; about delta where the estimate is good"
        yield "trust_region/cg_residual", "how well the direction was solved for; if large, more cg_steps or damping"
    if algorithm.max_kl is not None:
        yield "epochs_done", "passes that were made before max_kl ended them"


def _terms(algorithm: Algorithm) -> Iterator[Term]:
    return (term for term in algorithm.terms if isinstance(term, Term))
