"""Checks that only the completions count: not how they are cut, ordered, padded, or what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from gro.conformance.check import SAMPLE, Measurement, Subject, check, claim, measure
from gro.conformance.updates import with_garbage
from gro.objective import counts, select
from gro.objective.credit import scored_rows
from gro.types import ROLES, Batch

ROUNDING = 1e-12


def rewritten(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """`change` applied to every [B, T] tensor but the advantage."""
    shape = batch.mask_BT.shape
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name.endswith("_BT")}
    return replace(batch, **{n: change(t) for n, t in tensors.items() if t is not None and t.shape == shape})


def _in_parts(subject: Subject, part_B: Tensor, where: str) -> Iterator[Measurement]:
    """The update's parts, each with the denominators of the whole, against the whole."""
    logp_BT, batch = subject.update()
    whole_BT = subject.pulls(logp_BT, batch)
    indices = [torch.nonzero(part_B == p)[:, 0] for p in part_B.unique()]
    numbers = [counts(batch.rows(index_R), subject.algorithm) for index_R in indices]
    total = tuple(map(math.fsum, zip(*numbers, strict=True)))
    expected = counts(batch, subject.algorithm)
    yield claim(total == expected, where, f"the parts' counts add up to {total}, the whole update's are {expected}")
    value = torch.zeros((), dtype=torch.float64)
    for index_R in indices:
        micro = replace(batch.rows(index_R), counts_K=total)
        yield measure(subject.pulls(logp_BT[index_R], micro), whole_BT[index_R], where, limit=ROUNDING)
        value += subject.value(logp_BT[index_R], micro)
    yield measure(value, subject.value(logp_BT, batch), where, limit=ROUNDING)


@check("A share must divide by the count it is given, never by what it sees; a shift must declare how far it looks.")
def micro_batches(subject: Subject) -> Iterator[Measurement]:
    """Micro-batches (of whole groups, where rows are compared) sum to the update."""
    if subject.algorithm.scope == "batch":
        return  # its coefficients are computed from the whole update
    group_B = subject.make(0)[1].group_B
    for parts in (2, 7):
        part_B = torch.randint(parts, (len(group_B),), generator=torch.Generator().manual_seed(parts))
        part_B = part_B[group_B] if subject.algorithm.scope == "group" else part_B
        yield from _in_parts(subject, part_B, f"{parts} micro-batches")


@check("A share's count must be a sum over rows, so that processes can add theirs.")
def processes(subject: Subject) -> Iterator[Measurement]:
    """Processes that share the prompts and add up their counts sum to the update."""
    if subject.algorithm.scope == "batch":
        return
    group_B = subject.make(0)[1].group_B
    for number in (2, 3):
        yield from _in_parts(subject, group_B * number // (int(group_B.max()) + 1), f"{number} processes")


@check("Nothing may depend on a row's index; compare rows by their group, `batch.group_B`.")
def order(subject: Subject) -> Iterator[Measurement]:
    """The order of rows in a group, and of groups in the update, means nothing."""
    logp_BT, batch = subject.make(1)
    whole_BT = subject.pulls(logp_BT, subject.credited(batch))
    random = torch.Generator().manual_seed(3)
    key_of_group = torch.randperm(int(batch.group_B.max()) + 1, generator=random)
    shuffled_B = torch.randperm(len(logp_BT), generator=random)
    order_B = shuffled_B[key_of_group[batch.group_B[shuffled_B]].argsort(stable=True)]
    moved = replace(batch.rows(order_B), group_B=key_of_group[batch.group_B[order_B]])
    found_BT = subject.pulls(logp_BT[order_B], subject.credited(moved))
    yield measure(found_BT, whole_BT[order_B], "rows and groups shuffled", limit=ROUNDING)


@check("Take sums and means over `batch.mask_BT` only, with where or masked_fill: 0 · NaN is NaN.")
def padding(subject: Subject) -> Iterator[Measurement]:
    """Padding, what stands in it, and tokens that carry no loss mean nothing."""
    logp_BT, batch = subject.make(2)
    credited = subject.credited(batch)
    whole_BT, whole = subject.pulls(logp_BT, credited), subject.value(logp_BT, credited)
    yield claim(not bool(whole_BT[~batch.mask_BT].any()), "seed 2", "tokens that carry no loss have coefficients")

    def padded(t_BT: Tensor) -> Tensor:  # two columns on the left, one in the middle, three on the right
        middle = t_BT.shape[1] // 2
        blank = torch.zeros_like(t_BT[:, :3])
        return torch.cat([blank[:, :2], t_BT[:, :middle], blank[:, :1], t_BT[:, middle:], blank], dim=1)

    wide = rewritten(batch, padded)
    filled = rewritten(wide, lambda t: t if t.dtype == torch.bool else with_garbage(t, wide.mask_BT))
    noisy_BT = with_garbage(padded(logp_BT), wide.mask_BT)
    for where, logp, changed in (("padded", padded(logp_BT), wide), ("padded with garbage", noisy_BT, filled)):
        changed = subject.credited(changed)
        yield measure(subject.pulls(logp, changed), padded(whole_BT), where, limit=ROUNDING)
        yield measure(subject.value(logp, changed), whole, where, limit=ROUNDING)


@check("Mask with where or masked_fill, by the rows that the term selects.")
def idle_rows(subject: Subject) -> Iterator[Measurement]:
    """Rows that take no part cannot spoil the others."""
    logp_BT, batch = subject.update()
    assert batch.role_B is not None
    active_B = scored_rows(batch)
    for term in subject.algorithm.terms:
        active_B = active_B | select(term.rows, batch) if term.reads else active_B
    if subject.algorithm.mismatches:
        active_B = active_B | (batch.role_B == ROLES.index("mismatch"))
    spoilt = rewritten(batch, lambda t: t if t.dtype == torch.bool else torch.where(active_B[:, None], t, torch.nan))
    found_BT = subject.pulls(logp_BT, subject.credited(spoilt))
    yield measure(found_BT, subject.pulls(logp_BT, batch), "NaN in rows without a reward", limit=0.0)


@check("A term of rows 'scored' must count and compare samples only: use the keep_B that it is given.")
def demonstrations(subject: Subject) -> Iterator[Measurement]:
    """Demonstrations in the batch leave the samples alone, unless the two are compared."""
    if subject.algorithm.beside or subject.algorithm.roles == {"targets"}:
        return
    logp_BT, batch = subject.make(0)
    assert batch.role_B is not None
    index_R = torch.nonzero(batch.role_B != ROLES.index("target"))[:, 0]
    alone = subject.credited(batch.rows(index_R))
    sample_R1 = (batch.role_B[index_R] == SAMPLE)[:, None]
    expected_RT = subject.pulls(logp_BT[index_R], alone).masked_fill(~sample_R1, 0.0)
    found_RT = subject.pulls(logp_BT, subject.credited(batch))[index_R].masked_fill(~sample_R1, 0.0)
    yield measure(found_RT, expected_RT, "with and without demonstrations", limit=ROUNDING)
