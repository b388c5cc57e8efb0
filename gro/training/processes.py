"""Several processes that learn as one: each holds its own groups and a replica of the weights.

What is summed over processes are counts, before the backward pass, and gradients, after it: gradients are sums over
global counts, so they add up and are never averaged.  What looks across groups (credit, anchors over the update) sees
the rows of all processes, gathered: a few numbers per token.

Which groups each process holds is settled before: sources, and the shapes around them (`shaping.py`), know their own.
Processes exist where `torch.distributed` was initialised, as under torchrun; alone, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from gro.types import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """The rows of all processes, in the order of their ranks."""

    batch: Batch
    more: tuple[Tensor, ...]
    """What was gathered besides the batch, [B, X] each."""
    mine: slice
    """Which rows are this process's."""
    width: int
    """T of this process's tensors; `batch` is padded to the longest of all."""

    def own(self, quantity_BX: Tensor) -> Tensor:
        """This process's rows of a quantity of all."""
        return quantity_BX[self.mine] if quantity_BX.shape[1] == 1 else quantity_BX[self.mine, : self.width]


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that share an update, and which of them this is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of `torch.distributed` where it was initialised, else this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def total(self, numbers: Sequence[float]) -> tuple[float, ...]:
        """Each number summed over processes."""
        if self.size == 1:
            return tuple(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if self.size == 1:
            return number
        smallest = torch.tensor(number, device=_device())
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up every parameter's gradient, in place; one that no process has stays None."""
        if self.size == 1:
            return
        parameters = list(parameters)
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=_device())
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        for parameter, somewhere in zip(parameters, present.tolist(), strict=True):
            if somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def gather(self, batch: Batch, *more_BX: Tensor) -> Together:
        """The batches of all processes as one; groups keep apart.  `more_BX` is gathered beside them."""
        width = batch.mask_BT.shape[1]
        if self.size == 1:
            return Together(batch, more_BX, slice(None), width)
        tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
        tensors |= {str(i): quantity_BX for i, quantity_BX in enumerate(more_BX)}
        parts: list[dict[str, Tensor]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
        assert all(part.keys() == tensors.keys() for part in parts), "processes prepare the same quantities"
        before = 0
        for part in parts:
            groups = int(part["group_B"].max()) + 1 if len(part["group_B"]) else 0
            part["group_B"] = part["group_B"] + before
            before += groups
        whole = {name: _stack([part[name] for part in parts]).to(tensors[name].device) for name in tensors}
        more = tuple(whole.pop(str(i)) for i in range(len(more_BX)))
        start = sum(len(part["group_B"]) for part in parts[: self.rank])
        return Together(replace(batch, **whole), more, slice(start, start + len(batch.group_B)), width)


ALONE = Processes()


def _device() -> torch.device:
    """Where small numbers are summed: what the backend can reach."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _stack(parts: list[Tensor]) -> Tensor:
    """Rows of all parts, padded on the right with zeros to the widest."""
    if parts[0].ndim == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
