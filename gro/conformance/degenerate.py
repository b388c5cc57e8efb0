"""Checks on updates from which little or nothing can be learnt, and at the first step of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gro.conformance.batching import rewritten
from gro.conformance.check import SAMPLE, Measurement, Subject, check, claim
from gro.conformance.updates import cast
from gro.objective import FromLoss, Term
from gro.types import Batch

Spoil = Callable[[Tensor, Batch], tuple[Tensor, Batch]]


def all_rewards_equal(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=torch.where(batch.reward_B.isnan(), batch.reward_B, 0.1))


def rewards_nearly_equal(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    logp_BT, batch = all_rewards_equal(logp_BT, batch)
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=batch.reward_B + 1e-9 * torch.arange(len(batch.reward_B)))


def all_rewards_failed(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=torch.full_like(batch.reward_B, torch.nan))


def nothing_trained(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT, replace(batch, mask_BT=torch.zeros_like(batch.mask_BT))


def one_group_untrained(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT, replace(batch, mask_BT=batch.mask_BT & (batch.group_B != 0)[:, None])


def no_tokens(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT[:, :0], rewritten(batch, lambda t: t[:, :0])


def completions_of_one_token(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    first = rewritten(batch, lambda t: t.nan_to_num(0, 0, 0)[:, :1] if t.dtype != torch.bool else t[:, :1])
    return logp_BT[:, :1].nan_to_num(-1, -1, -1), replace(first, mask_BT=torch.ones_like(first.mask_BT))


def identical_completions(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT[:1].expand_as(logp_BT), rewritten(batch, lambda t: t[:1].expand_as(t))


def certain_tokens(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Log-probs of 0."""
    return torch.zeros_like(logp_BT), batch


def tokens_far_away(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Log-ratios of ±1000, alternating over rows and tokens."""
    sign_BT = 1 - 2 * ((torch.arange(logp_BT.shape[0])[:, None] + torch.arange(logp_BT.shape[1])) % 2)
    clean = rewritten(batch, lambda t: t if t.dtype == torch.bool else torch.full_like(t, -1.0))
    return (-1.0 + 1e3 * sign_BT).to(logp_BT), clean


def completions_far_away(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Whole completions at ±1000 per token."""
    logp_BT, batch = tokens_far_away(logp_BT, batch)
    sign_B1 = 1 - 2 * (torch.arange(len(logp_BT)) % 2)[:, None]
    return (1e3 * sign_B1).expand_as(logp_BT).to(logp_BT), batch


EQUAL: tuple[Spoil, ...] = (all_rewards_equal, rewards_nearly_equal)
EMPTY: tuple[Spoil, ...] = (nothing_trained, no_tokens)
OTHER: tuple[Spoil, ...] = (
    all_rewards_failed,
    one_group_untrained,
    completions_of_one_token,
    identical_completions,
    certain_tokens,
    tokens_far_away,
    completions_far_away,
)


def _spoilt(
    subject: Subject, spoils: tuple[Spoil, ...], dtypes: tuple[torch.dtype, ...]
) -> Iterator[tuple[str, Spoil, Tensor, Batch]]:
    """(what it is, how it was made, logp_BT, credited batch)."""
    for spoil in spoils:
        for dtype in dtypes:
            logp_BT, batch = spoil(*subject.make(0))
            where = f"{spoil.__name__.replace('_', ' ')}, {str(dtype).removeprefix('torch.')}"
            yield where, spoil, logp_BT.to(dtype), subject.credited(cast(batch, dtype))


@check("Mask before dividing, use safe_exp for exponentials, and define v(0) and every mean over nothing.")
def degenerate_updates(subject: Subject) -> Iterator[Measurement]:
    """Defined and finite on degenerate updates, and 0 where there is nothing to learn from."""
    for where, spoil, logp_BT, batch in _spoilt(subject, EQUAL + EMPTY + OTHER, (torch.float32,)):
        c_BT, value = subject.pulls(logp_BT, batch), subject.value(logp_BT, batch)
        bad = int((~c_BT.isfinite()).sum())
        yield claim(not bad, where, f"{bad} of {c_BT.numel()} coefficients are not finite")
        yield claim(bool(value.isfinite()), where, f"the value is {float(value)}")
        if spoil in EMPTY:
            yield claim(not bool(c_BT.any()), where, "coefficients where nothing carries loss")
            yield claim(float(value) == 0, where, f"a value of {float(value):g} where nothing carries loss")
        if spoil is all_rewards_failed and subject.algorithm.roles <= {"scored", "paired", "chosen", "targets"}:
            yield claim(not bool(_samples(c_BT, batch).any()), where, "samples without a reward have coefficients")


@check("A group's advantages must be exactly 0 where its rewards are equal: 0/0 and rounding noise make gradients.")
def equal_rewards(subject: Subject) -> Iterator[Measurement]:
    """Terms with v(0) = 0 do exactly nothing where all rewards of a prompt are equal: no rounding noise."""
    algorithm, zero = subject.algorithm, torch.zeros(1, 1, dtype=torch.float64)
    codes = any(isinstance(t, FromLoss) for t in algorithm.terms)  # whose v(0) nobody knows
    terms = tuple(t for t in algorithm.terms if isinstance(t, Term | FromLoss) and t.rows != "targets")
    resting = tuple(t for t in terms if isinstance(t, FromLoss) or not bool(t.value(zero).any()))
    if not resting:
        return
    alone = replace(subject, algorithm=replace(algorithm, terms=resting))
    spoilt = _spoilt(alone, EQUAL, (torch.float32, torch.float64))  # they round differently
    largest = {where: _samples(alone.pulls(logp, b), b).abs().max() for where, _, logp, b in spoilt}
    if any(largest.values()) and (codes or algorithm.credit.group_size == 1 or algorithm.credit.reads):
        return  # the baseline is not the group's, or the reward is more than what was given
    for where, size in largest.items():
        yield Measurement(float(size), 0.0, where, "samples have coefficients")


@check("A group credit refuses prompts with one completion by a ValueError; everything else must be finite.")
def groups_of_one(subject: Subject) -> Iterator[Measurement]:
    """A prompt with one completion is refused by a credit that compares groups, else defined."""
    logp_BT, batch = subject.make(0)
    lonely = replace(batch, group_B=torch.arange(len(logp_BT)))
    if subject.algorithm.credit.group_size > 1:
        try:
            subject.credited(lonely)
        except ValueError as error:
            refused = "completions per prompt" in str(error)
            yield claim(refused, "every row its own prompt", f"refused without saying why: {error}")
        else:
            yield claim(False, "every row its own prompt", "the credit compares a group, and accepts groups of one")
    else:
        c_BT = subject.pulls(logp_BT, subject.credited(lonely))
        yield claim(bool(c_BT.isfinite().all()), "every row its own prompt", "coefficients are not finite")


@check("Compute u as a difference of the same unit, and ratios and pulls from u alone: e^u, e^−u − 1, ….")
def first_step(subject: Subject) -> Iterator[Measurement]:
    """Where old and ref are the policy itself, u is exactly 0, ratios are 1, pulls and their values 0."""
    logp_BT, batch = subject.make(0)
    batch = subject.credited(replace(batch, old_BT=logp_BT, ref_BT=logp_BT))
    for k, term in enumerate(subject.algorithm.terms, 1):
        if not isinstance(term, Term) or term.anchor.base == "zero":
            continue
        if any(shift.scope == "row" for shift in term.anchor.shifts):  # a margin
            continue
        where = f"term {k}"
        part = term.parts(logp_BT, batch)
        yield Measurement(_largest(part.u_BX, part.keep_B, batch), 0.0, where, "u is not 0")
        for exact, name in ((1.0, "ratio"), (0.0, "pull")):
            error = _largest(part.w_BX - exact, part.keep_B, batch)
            if error < 1e-3:
                limit = 1e-15 if term.anchor.shifts else 0.0  # a mean over several opponents
                yield Measurement(error, limit, where, f"the {name} is not exactly {exact:g}")
                if not exact and part.potential_BX is not None:
                    size = _largest(part.potential_BX, part.keep_B, batch)
                    yield Measurement(size, 0.0, where, "its value is not exactly 0")


def _samples(quantity_BX: Tensor, batch: Batch) -> Tensor:
    assert batch.role_B is not None
    return quantity_BX[batch.role_B == SAMPLE]


def _largest(quantity_BX: Tensor, keep_B: Tensor, batch: Batch) -> float:
    """The largest size on rows that are kept, and their trained tokens."""
    kept_BX = keep_B[:, None] & (batch.mask_BT if quantity_BX.shape[1] > 1 else batch.mask_BT.any(1, keepdim=True))
    kept = quantity_BX[kept_BX]
    return float(kept.abs().nan_to_num(torch.inf, torch.inf).max()) if len(kept) else 0.0
