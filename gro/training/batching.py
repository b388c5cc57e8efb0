"""Groups → Batch, and the minibatches of an update."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gro.types import ROLES, Batch, Group, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Minibatch:
    """Groups and their completions as tensors: row r of `batch` is `rows_of(groups)[r]`."""

    groups: tuple[Group, ...]
    batch: Batch

    @property
    def rows_by_group(self) -> list[list[int]]:
        """Per group, its rows of the batch."""
        rows: list[list[int]] = [[] for _ in self.groups]
        for row, (g, _, _) in enumerate(rows_of(self.groups)):
            rows[g].append(row)
        return rows

    def epoch(self, number: int, parts: int, seed: int, step: int) -> Iterator[Minibatch]:
        """Pass `number` over the groups in `parts` minibatches, shuffled by (seed, step, number); no group is split.

        As many minibatches as groups where those are fewer: a source may find less to learn from than was asked for.
        """
        batch = replace(self.batch, epoch=number)
        parts = min(parts, len(self.groups))
        if parts == 1:
            yield Minibatch(self.groups, batch)
            return
        rows = self.rows_by_group
        order = list(range(len(self.groups)))
        random.Random(f"{seed}/{step}/{number}").shuffle(order)
        for part in range(parts):
            chosen = sorted(order[part::parts])
            index_R = torch.tensor([row for g in chosen for row in rows[g]], dtype=torch.int64)
            yield Minibatch(tuple(self.groups[g] for g in chosen), batch.rows(index_R))


def collate(groups: Sequence[Group], *, length_limit: int | None, device: torch.device | str = "cpu") -> Minibatch:
    """All completions of the groups as one batch, padded on the right to the longest."""
    rows = rows_of(groups)
    completions = [c for _, _, c in rows]
    B, T = len(rows), max((len(c.ids) for c in completions), default=0)
    mask_BT = torch.zeros(B, T, dtype=torch.bool)
    sampler_BT = torch.full((B, T), math.nan)
    for b, c in enumerate(completions):
        n = len(c.ids)
        mask_BT[b, :n] = torch.tensor(c.trained, dtype=torch.bool) if c.trained is not None else True
        if c.logp is not None:
            sampler_BT[b, :n] = torch.tensor(c.logp)

    def per_row(values: Sequence[float | None]) -> Tensor:
        return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)

    batch = Batch(
        mask_BT=mask_BT,
        group_B=torch.tensor([g for g, _, _ in rows], dtype=torch.int64),
        reward_B=per_row([c.reward for c in completions]),
        role_B=torch.tensor([ROLES.index(c.role) for c in completions], dtype=torch.int64),
        sampler_BT=sampler_BT,
        greedy_B=per_row([g.greedy_reward for _, g, _ in rows]),
        margin_B=per_row([g.margin for _, g, _ in rows]),
        temperature_B=torch.tensor([c.temperature for c in completions]),
        truncated_B=torch.tensor([c.finish == "length" for c in completions]),
        length_limit=length_limit,
    )
    return Minibatch(tuple(groups), to_device(batch, device))


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with all its tensors on this device."""
    tensors = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return replace(batch, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})
