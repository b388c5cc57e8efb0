"""Several processes that learn as one.

Every process has all groups of a step and the same batch of them; what is shared out is the work: passes through models
(`passes`), and the completions and rewards of a step (`gro.training.shared`).  A pass fills in its rows' numbers, and
`whole` adds up what the processes have filled in, which is exact, since each row is one process's and 0 in the others.
So credit, anchors over the update, metrics and decisions are computed from the same numbers everywhere, by the code
that computes them for one process.  Gradients are sums over global counts: they are added up and never averaged.

Processes exist where `torch.distributed` was initialised, as under torchrun; alone, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gro.errors import GroError
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.types import Group

T = TypeVar("T")

_BUCKET_BYTES = 64 << 20
"""Gradients are added up in pieces of about this size: one message for each parameter would mostly wait."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that share the work, and which of them this is."""

    rank: int = 0
    size: int = 1
    lockstep: bool = False
    """Weights are cut over the processes, so that each must take part in every pass of the others."""

    @classmethod
    def current(cls, *, lockstep: bool = False) -> Processes:
        """Those of `torch.distributed` where it was initialised, else this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), lockstep and dist.get_world_size() > 1)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def passes(
        self, policy: Policy, groups: Sequence[Group], tokens_per_micro: int, *, width: int | None = None
    ) -> list[tuple[Pack, bool]]:
        """This process's packs of these groups, each with whether it counts.

        Where there are few packs, they are smaller, so that every process has work.  In lockstep all processes make as
        many passes; those that do not count fill up.
        """
        if self.size == 1:
            return [(pack, True) for pack in policy.packs(groups, tokens_per_micro, width=width)]
        sizes = [len(g.prompt.ids) + sum(len(c.ids) for c in g.completions) for g in groups]
        enough = max(max(sizes, default=1), -(-sum(sizes) // self.size))
        packs = policy.packs(groups, min(tokens_per_micro, enough), width=width)
        packs = sorted(packs, key=lambda pack: -pack.tokens)  # so that those of one round are of like size
        mine = [(pack, True) for pack in packs[self.rank :: self.size]]
        rounds = -(-len(packs) // self.size)
        return mine + [(pack, False) for pack in packs[-1:]] * (rounds - len(mine)) if self.lockstep else mine

    def whole(self, *filled: Tensor) -> None:
        """Adds up, in place, tensors of which each process has filled in its rows and left 0 in the others'."""
        if self.size > 1:
            for tensor in filled:
                self.sum(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up every parameter's gradient, in place; one that no process has stays None.

        Gradients of weights that are cut over the processes were added up in the backward pass.
        """
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not whole:
            return
        present = torch.tensor([float(p.grad is not None) for p in whole], device=_device())
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        asked = [p for p, somewhere in zip(whole, present.tolist(), strict=True) if somewhere]
        for parameter in asked:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in asked if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, sums in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(sums.view_as(gradient))

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what is shared out: as equal as can be, in order."""
        start, stop = (len(items) * r // self.size for r in (self.rank, self.rank + 1))
        return items[start:stop]

    def join(self, part: Sequence[T]) -> list[T]:
        """The parts of all processes, in the order of their ranks.  Any plain objects."""
        if self.size == 1:
            return list(part)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(part))
        return [item for one in parts for item in one]

    def any(self, yes: bool) -> bool:
        """Whether one of the processes says yes: so that all decide alike."""
        return yes if self.size == 1 else any(self.join([yes]))

    def raise_together(self, fault: str | None) -> None:
        """Raises GroError in every process where one of them has found a fault."""
        for rank, found in enumerate(self.join([fault])):
            if found is not None:
                raise GroError(found if self.size == 1 else f"process {rank}: {found}")


ALONE = Processes()


def _device() -> torch.device:
    """Where small numbers are summed: what the backend can reach."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _buckets(gradients: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """In order, of one type and device each."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        other = bucket and (bucket[0].dtype, bucket[0].device) != (gradient.dtype, gradient.device)
        if bucket and (other or sum(g.nbytes for g in bucket) + gradient.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
