"""What is logged of an update.  Names are TRL's, because users come from there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor

from gro.objective import Algorithm, Term
from gro.objective.credit import EQUAL
from gro.objective.units import average
from gro.objective.weights import ClippedRatio
from gro.rewards.ranges import ScoreRange
from gro.types import ROLES, Batch, Group

APPROXKL = "policy/approxkl_avg"
"""KL(old‖θ) per token before an update, on samples of old."""


def observe(logp_BT: Tensor, entropy_BT: Tensor | None, c_BT: Tensor, batch: Batch) -> dict[str, float]:
    """What one update's log-probs and coefficients show.  `batch` holds the old log-probs."""
    mask_BT = batch.mask_BT
    if batch.role_B is not None:  # completions of other prompts say nothing of the policy
        mask_BT = mask_BT & (batch.role_B != ROLES.index("mismatch"))[:, None]
    samples_BT = mask_BT & batch.samples_B[:, None]
    metrics: dict[str, float] = {}
    if entropy_BT is not None and bool(mask_BT.any()):
        metrics["entropy"] = entropy_BT[mask_BT].mean().item()
    if batch.ref_BT is not None and bool(samples_BT.any()):
        metrics["kl"] = kl_to(batch.ref_BT, logp_BT, samples_BT)
    if batch.sampler_BT is not None:
        metrics |= gap(logp_BT, batch.sampler_BT, mask_BT)
    if batch.old_BT is not None and bool(samples_BT.any()):
        ratio = (logp_BT - batch.old_BT)[samples_BT].clamp(-20, 20).exp()
        metrics |= {"ratio/min": ratio.min().item(), "ratio/max": ratio.max().item()}
        metrics[APPROXKL] = kl_to(logp_BT, batch.old_BT, samples_BT)
    if batch.advantage_BX is not None:
        pushed_BT = samples_BT & (batch.advantage_BX != 0)
        if bool(pushed_BT.any()):  # clipped, or separated beyond rounding
            metrics["inactive_ratio"] = (c_BT[pushed_BT] == 0).float().mean().item()
    return metrics


def describe_clipping(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
    """Of what clipped ratios push (tokens, or completions as a whole): the shares past the lower and upper bound."""
    low, high = [], []
    for term in algorithm.terms:
        if isinstance(term, Term) and isinstance(term.weight, ClippedRatio):
            part = term.parts(logp_BT, batch)
            ratio_BX = part.u_BX.clamp(-20, 20).exp()
            inside_BX = batch.mask_BT if ratio_BX.shape[1] > 1 else batch.mask_BT.any(1, keepdim=True)
            inside_BX = inside_BX & part.keep_B[:, None]
            low.append(((part.v_BX < 0) & (ratio_BX < 1 - term.weight.low))[inside_BX])
            high.append(((part.v_BX > 0) & (ratio_BX > 1 + term.weight.high))[inside_BX])
    if not sum(past.numel() for past in low):
        return {}
    shares = {"low": torch.cat(low).double().mean().item(), "high": torch.cat(high).double().mean().item()}
    shares["region"] = shares["low"] + shares["high"]
    return {f"clip_ratio/{name}_mean": share for name, share in shares.items()}


def length_correlation(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
    """Pearson's, over the samples, of a completion's average log-prob with its length.

    Only where a term compares completions by averages without a base: longer ones then have higher averages because
    they are more predictable, and not because they are better.
    """
    if not any(isinstance(t, Term) and _by_bare_averages(t) for t in algorithm.terms):
        return {}
    rows_B = batch.samples_B & batch.mask_BT.any(1)
    length_B = batch.mask_BT.sum(1)[rows_B].double()
    average_B = average(logp_BT, batch.mask_BT)[rows_B, 0].double()
    if len(length_B) < 2 or bool((length_B == length_B[0]).all()) or bool((average_B == average_B[0]).all()):
        return {}
    return {"length_correlation": torch.corrcoef(torch.stack([average_B, length_B]))[0, 1].item()}


def _by_bare_averages(term: Term) -> bool:
    return (term.measure or term.unit) == average and term.anchor.base == "zero" and bool(term.anchor.shifts)


def kl_to(base_BT: Tensor, logp_BT: Tensor, mask_BT: Tensor) -> float:
    """k3, the low-variance and never negative estimate of KL(policy‖base) per token, on the policy's samples.

    With the current policy as `base_BT` and the old one, whose samples they are, in its place: KL(old‖θ).
    """
    u = (logp_BT - base_BT)[mask_BT].clamp(-20, 20)
    return (torch.expm1(-u) + u).mean().item()


def k1_to(base_BT: Tensor, logp_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """k1, the mean log-ratio per token on the policy's own samples: an estimate of KL(policy‖base) that is right on
    average, and below 0 only by chance.  Its standard error is that of completions, which are independent.

    Σᵢ sᵢ / Σᵢ nᵢ of the completions' sums s and lengths n; empty with fewer than 2 of them.
    """
    rows_B = mask_BT.any(1)
    n_B = mask_BT.sum(1)[rows_B].double()
    if len(n_B) < 2:
        return {}
    s_B = (logp_BT - base_BT).masked_fill(~mask_BT, 0.0).double().sum(1)[rows_B]
    mean = s_B.sum() / n_B.sum()
    squares = (s_B - mean * n_B).square().sum() * len(n_B) / (len(n_B) - 1)
    return {"kl/k1": mean.item(), "kl/k1_error": (squares.sqrt() / n_B.sum()).item()}


def gap(logp_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """Trainer against sampler, per token: the same policy, so any difference is an error of one of them."""
    difference = (logp_BT - sampler_BT)[mask_BT & ~sampler_BT.isnan()]
    if not difference.numel():
        return {}
    size = difference.abs().double()
    ratio = difference.clamp(-20, 20).exp()
    return {
        "sampling/sampling_logp_difference/mean": size.mean().item(),
        "sampling/sampling_logp_difference/p99.9": size.quantile(0.999).item() if size.numel() < 10**7 else math.nan,
        "sampling/sampling_logp_difference/max": size.max().item(),
        "sampling/outside": ((ratio - 1).abs() > 0.1).float().mean().item(),
    }


def alike(rewards: Sequence[float]) -> bool:
    """Whether rewards (at least one) count as equal, by the rule of the credits."""
    return max(rewards) - min(rewards) <= EQUAL * max(1.0, *map(abs, rewards))


def describe_rollouts(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards and lengths of the completions learnt from."""
    samples = [[c for c in g.completions if c.role == "sample"] for g in groups]
    scored = [[c.reward for c in cs if c.reward is not None] for cs in samples]
    rewards = [r for rs in scored for r in rs]
    metrics: dict[str, float] = {}
    drawn = [c for cs in samples for c in cs if c.finish != "given"]
    if drawn:
        metrics |= _statistics("reward", rewards)
        several = [rs for rs in scored if len(rs) > 1]
        if several:
            metrics["frac_reward_zero_std"] = sum(map(alike, several)) / len(several)
        # Without a part that is None no reward was asked for, or people have skipped it.
        failed = sum(c.reward is None and None in c.rewards.values() for c in drawn)
        metrics["rewards/failed"] = float(failed)
        for name in sorted({name for c in drawn for name in c.rewards}):
            parts = [v for c in drawn if (v := c.rewards.get(name)) is not None]
            metrics |= {f"rewards/{name}/{k}": v for k, v in _statistics("", parts).items()}
        metrics["completions/clipped_ratio"] = sum(c.finish == "length" for c in drawn) / len(drawn)
        if alone := sum(len(rs) == 1 for rs in scored):
            metrics["groups/alone"] = float(alone)  # one reward, which nothing can be compared with
    untrained = sum(not c.ids or (c.trained is not None and not any(c.trained)) for g in groups for c in g.completions)
    if untrained:
        metrics["completions/untrained"] = float(untrained)
    lengths = [len(c.ids) for g in groups for c in g.completions if c.role != "mismatch"]
    if lengths:
        metrics |= {
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/min_length": float(min(lengths)),
            "completions/max_length": float(max(lengths)),
        }
    return metrics


def outside_ranges(groups: Sequence[Group], ranges: Mapping[str, ScoreRange]) -> dict[str, float]:
    """Of each reward that is a trained model: how many samples have a score outside that of its own rows."""
    parts = [c.rewards for g in groups for c in g.completions if c.role == "sample"]
    scores = {name: [score for part in parts if (score := part.get(name)) is not None] for name in ranges}
    return {f"rewards/{name}/outside": ranges[name].share_outside(found) for name, found in scores.items() if found}


def describe_duplicates(groups: Sequence[Group]) -> dict[str, float]:
    """How many pairs of sampled answers to a prompt are the same, and how many there should be.

    Two independent samples are the same with probability Σ_y p(y)², whose estimate from the samples themselves is the
    mean of their p(y): so a peaked policy or a low temperature explains its duplicates, and shared noise does not.
    The error is that of the difference, over prompts.
    """
    found: list[tuple[float, float]] = []
    for group in groups:
        drawn = [c for c in group.completions if c.role == "sample" and c.finish != "given" and c.logp is not None]
        if len(drawn) > 1:
            same = sum(n * (n - 1) for n in Counter(c.ids for c in drawn).values())
            expected = math.fsum(math.exp(min(math.fsum(c.logp or ()), 0.0)) for c in drawn) / len(drawn)
            found.append((same / (len(drawn) * (len(drawn) - 1)), expected))
    if len(found) < 2:
        return {}
    share, expected = (fmean(part) for part in zip(*found, strict=True))
    error = stdev(s - e for s, e in found) / math.sqrt(len(found))
    return {"duplicates/share": share, "duplicates/expected": expected, "duplicates/error": error}


def describe_pairs(logp_BT: Tensor, batch: Batch, beta: float) -> dict[str, float]:
    """Implicit rewards of preference pairs, as TRL names them.  `batch` holds the reference and the advantage."""
    assert batch.advantage_BX is not None
    base_BT = batch.ref_BT if batch.ref_BT is not None else torch.zeros_like(logp_BT)
    reward_B = beta * (logp_BT - base_BT).masked_fill(~batch.mask_BT, 0.0).sum(1)
    total_B = logp_BT.masked_fill(~batch.mask_BT, 0.0).sum(1)
    chosen_B, rejected_B = batch.advantage_BX[:, 0] > 0, batch.advantage_BX[:, 0] < 0
    if not bool(chosen_B.any()) or int(chosen_B.sum()) != int(rejected_B.sum()):
        return {}
    margin = reward_B[chosen_B] - reward_B[rejected_B]
    return {
        "rewards/chosen": reward_B[chosen_B].mean().item(),
        "rewards/rejected": reward_B[rejected_B].mean().item(),
        "rewards/margins": margin.mean().item(),
        "rewards/accuracies": (margin > 0).float().mean().item(),
        "logps/chosen": total_B[chosen_B].mean().item(),
        "logps/rejected": total_B[rejected_B].mean().item(),
    }


def _statistics(name: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
    return {name: mean, f"{name}_std": std} if name else {"mean": mean, "std": std}
