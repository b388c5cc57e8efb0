"""What several samples per prompt show: pass@k, accuracy, KL to the reference, length, diversity.

Samples of one prompt are no independent draws, so every interval is over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gro.evaluation import pass_at_k
from gro.evaluation.diversity import distinct, self_overlap, unique
from gro.evaluation.estimates import Estimate, ratio
from gro.policy.policy import Policy
from gro.training.batching import collate
from gro.training.prepare import Reference, score
from gro.types import Completion, Group

Metrics = dict[str, Estimate]
_DISTINCT = (1, 2, 3)


def powers(samples: int) -> tuple[int, ...]:
    """1, 2, 4, … and the number of samples itself.

    >>> powers(6)
    (1, 2, 4, 6)
    """
    return tuple(sorted({*(2**i for i in range(samples.bit_length())), samples}))


def rewards(groups: Sequence[Group], ks: Sequence[int], correct_from: float | None = None) -> Metrics:
    """The reward of the samples; where it is known which are correct, also their share, and pass@k.

    correct_from: an answer with at least this reward is correct; None: 1 where every reward is 0 or 1, else it is not
    known.  A sample whose reward failed is left out, and counted.
    """
    scored = [[c.reward for c in g.completions if c.reward is not None] for g in groups]
    found = {
        "samples/reward": ratio([sum(r) for r in scored], [float(len(r)) for r in scored]),
        "samples/failed": Estimate(float(sum(len(g.completions) for g in groups) - sum(map(len, scored)))),
    }
    if correct_from is None and all(value in (0.0, 1.0) for values in scored for value in values):
        correct_from = 1.0
    if correct_from is None:
        return found
    correct = [[value >= correct_from for value in values] for values in scored]
    found["samples/accuracy"] = ratio([float(sum(c)) for c in correct], [float(len(c)) for c in correct])
    return found | {f"pass@{k}": pass_at_k.estimate(correct, k) for k in ks}


def texts(groups: Sequence[Group]) -> Metrics:
    """Length in tokens with the end token, the share that stopped by itself, and how different the samples are.

    For distinct_n, self_overlap and unique see `gro.evaluation.diversity`: each is a mean over prompts, so that they
    are about the samples of one prompt and not about the prompts.
    """
    found = {
        "samples/mean_length": _per_sample(groups, lambda c: float(len(c.ids))),
        "samples/stopped": _per_sample(groups, lambda c: float(c.finish == "stop")),
    }
    said = [[_said(c) for c in g.completions] for g in groups]
    several = [samples for samples in said if len(samples) > 1]
    if not several:
        return found
    for n in _DISTINCT:
        counts = [distinct(samples, n) for samples in several]
        found[f"samples/distinct_{n}"] = _mean([different / total for different, total in counts if total])
    overlaps = [overlap for samples in several if (overlap := self_overlap(samples)) is not None]
    found["samples/self_overlap"] = _mean(overlaps)
    found["samples/unique"] = _mean([unique(samples) / len(samples) for samples in several])
    return found


def divergence(policy: Policy, reference: Reference, groups: Sequence[Group], tokens_per_micro: int) -> Metrics:
    """KL(policy, reference) on the policy's own samples, in nats.

    u is a token's log-ratio.  k1 is u: unbiased.  k3 is e^−u − 1 + u: unbiased too, never negative, and of less
    variance where the two are near (http://joschu.net/blog/kl-approx.html).  `kl` is per token, `sequence_kl` the sum
    over a sample's tokens, which estimates the divergence of whole answers.  Both are of the distributions at the
    samples' temperature; restricted by top_k or top_p, samples are not the policy's own, and neither is unbiased.
    """
    mask_BT = collate(groups, length_limit=None).batch.mask_BT
    ours_BT, theirs_BT = score(policy, groups, tokens_per_micro), reference.score(groups, tokens_per_micro)
    u_BT = (ours_BT - theirs_BT).double().cpu().masked_fill(~mask_BT, 0.0)
    sizes = [len(g.completions) for g in groups]
    tokens = _by_group(mask_BT.double().sum(1), sizes)
    found: Metrics = {}
    for name, value_BT in (("", torch.expm1(-u_BT) + u_BT), ("_k1", u_BT)):
        total = _by_group(value_BT.sum(1), sizes)
        found[f"samples/kl{name}"] = ratio(total, tokens)
        found[f"samples/sequence_kl{name}"] = ratio(total, [float(n) for n in sizes])
    return found


def _by_group(value_B: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    return [part.sum().item() for part in value_B.split(list(sizes))]


def _per_sample(groups: Sequence[Group], value: Callable[[Completion], float]) -> Estimate:
    return ratio([sum(map(value, g.completions)) for g in groups], [float(len(g.completions)) for g in groups])


def _mean(values: Sequence[float]) -> Estimate:
    return ratio(values, [1.0] * len(values))


def _said(completion: Completion) -> tuple[int, ...]:
    """Without the end token, which all answers share."""
    return completion.ids[:-1] if completion.finish == "stop" else completion.ids
