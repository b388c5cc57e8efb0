"""Groups → packs: what one forward pass sees.

The normal layout is one stream of tokens per pack: each prompt once, then its completions, whose positions all
restart after the prompt.

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2 | q0 q1 | c0        (the last token of a completion predicts nothing
    positions   0  1  2    3  4    3  4  5    0  1    2         that is scored, so it is not run at all)

Attention keeps the branches apart (`gro.policy.plans`), so the numbers are those of plain rows.  Architectures whose
attention cannot be replaced get plain rows, padded on the right: a causal model never looks there.

    R  rows (completions) of a pack     S, N  rows and columns of its token matrix     M  scored tokens of a pack
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gro.policy.plans import Tree, plan_for
from gro.types import Completion, Group, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """One micro-batch of token ids and where its scored tokens are.  Subclasses know how a model is to read it.

    Only tokens that carry loss (`Completion.trained`) are scored; the others are context.
    """

    rows: tuple[int, ...]
    """R indices into `rows_of(groups)`, ascending."""
    width: int
    """T of `logp_RT`: the longest completion of *all* groups packed together, so that it aligns with their batch."""
    partial: bool
    """Some group of this pack continues in another pack: anchors that look across rows cannot be computed from it."""
    input_ids_SN: Tensor
    position_ids_SN: Tensor
    source_M: Tensor
    """int64 [M]: index into the flattened [S·N] hidden states of the position that predicts each scored token."""
    target_M: Tensor
    """int64 [M]: the scored token's id."""
    row_M: Tensor
    """int64 [M]: its row in this pack, 0 ≤ row < R."""
    column_M: Tensor
    """int64 [M]: its column, the index inside its completion."""
    temperature_M: Tensor
    """float32 [M]: the temperature at which it is scored."""

    @property
    def rows_R(self) -> Tensor:
        """`rows` as an int64 tensor, to index a batch with."""
        return torch.tensor(self.rows, dtype=torch.int64)

    @property
    def tokens(self) -> int:
        """How many token positions the model runs, padding included."""
        return self.input_ids_SN.numel()

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """The keyword arguments of the model's forward pass, except those that every pass has."""
        raise NotImplementedError

    def scatter(self, value_M: Tensor) -> Tensor:
        """[M] → [R, T]; 0 where nothing is scored.  Differentiable."""
        out_RT = value_M.new_zeros(len(self.rows), self.width)
        device = value_M.device
        return out_RT.index_put((self.row_M.to(device), self.column_M.to(device)), value_M)


@dataclass(frozen=True, slots=True, eq=False)
class SharedPack(Pack):
    """One stream [1, N]: every prompt once, followed by its completions."""

    trees: tuple[Tree, ...]
    """The stream's segments in order; their lengths add up to N."""

    def inputs(self, device: torch.device) -> dict[str, Any]:
        return {
            "input_ids": self.input_ids_SN.to(device),
            "position_ids": self.position_ids_SN.to(device),
            "attention_plan": plan_for(device, self.trees),
        }


@dataclass(frozen=True, slots=True, eq=False)
class RowsPack(Pack):
    """Plain rows [R, N], prompt and completion side by side, padded on the right with a token nobody looks at."""

    def inputs(self, device: torch.device) -> dict[str, Any]:
        # Positions are left to the model: they are its default, and some architectures take none.
        return {"input_ids": self.input_ids_SN.to(device)}


@dataclass(frozen=True, slots=True)
class _Item:
    """A group, or the part of it that fits into one pack."""

    prompt: Prompt
    rows: tuple[int, ...]
    completions: tuple[Completion, ...]
    partial: bool = False

    @property
    def run(self) -> tuple[int, ...]:
        """Per completion, how many of its tokens are run: all that stand before its last scored token."""
        return tuple(_tokens_run(c) for c in self.completions)

    @property
    def longest(self) -> int:
        return len(self.prompt.ids) + max(self.run, default=0)


def _tokens_run(completion: Completion) -> int:
    if completion.trained is None:
        return max(len(completion.ids) - 1, 0)
    return max((column for column, trained in enumerate(completion.trained) if trained), default=0)


def pack(
    groups: Sequence[Group],
    tokens_per_micro: int,
    *,
    shared: bool = True,
    width: int | None = None,
    alone_above: int | None = None,
) -> list[Pack]:
    """Distributes groups over packs of at most `tokens_per_micro` tokens by first-fit decreasing.

    The result does not depend on the budget except in which rows share a pack.  A group that fits is never split; a
    larger one is, and its prompt repeated.  A single row larger than the budget has a pack of its own.

    Args:
        groups: what to pack; row r of a pack is `rows_of(groups)[pack.rows[r]]`.
        tokens_per_micro: budget in positions that the model runs (padding counts).
        shared: prompts once (`SharedPack`) or plain rows (`RowsPack`).
        width: T of `Pack.scatter`; None: the longest completion of these groups.
        alone_above: rows longer than this have a pack of their own, for models whose rotary scaling depends on the
            longest row of a forward pass.
    """
    if tokens_per_micro < 1:
        raise ValueError(f"tokens_per_micro must be at least 1, got {tokens_per_micro}")
    longest = max((len(c.ids) for group in groups for c in group.completions), default=0)
    width = longest if width is None else width
    if width < longest:
        raise ValueError(f"width {width} is less than the longest completion, {longest} tokens")
    cost = _shared_cost if shared else _rows_cost
    build = _shared_pack if shared else _rows_pack
    items = [part for item in _items(groups) for part in _split(item, tokens_per_micro, cost, alone_above)]
    bins = _first_fit(items, tokens_per_micro, cost, alone_above)
    return [build(contents, width) for contents in bins]


def _items(groups: Sequence[Group]) -> Iterable[_Item]:
    first = 0
    for group in groups:
        count = len(group.completions)
        if count:
            yield _Item(group.prompt, tuple(range(first, first + count)), group.completions)
        first += count


_Cost = Callable[[Sequence[_Item]], int]


def _shared_cost(items: Sequence[_Item]) -> int:
    return sum(len(item.prompt.ids) + sum(item.run) for item in items)


def _rows_cost(items: Sequence[_Item]) -> int:
    return max(item.longest for item in items) * sum(len(item.rows) for item in items)


def _split(item: _Item, budget: int, cost: _Cost, alone_above: int | None) -> list[_Item]:
    """The item itself where it fits, else parts that each fit (or hold a single row)."""

    def part(members: Sequence[int], partial: bool) -> _Item:
        return _Item(
            item.prompt,
            tuple(item.rows[i] for i in members),
            tuple(item.completions[i] for i in members),
            partial,
        )

    def fits(members: Sequence[int]) -> bool:
        candidate = part(members, True)
        too_long = alone_above is not None and candidate.longest > alone_above
        return len(members) == 1 or (cost([candidate]) <= budget and not too_long)

    everything = range(len(item.rows))
    if fits(everything):
        return [item]
    parts: list[list[int]] = []
    for i in everything:
        if parts and fits([*parts[-1], i]):
            parts[-1].append(i)
        else:
            parts.append([i])
    return [part(members, True) for members in parts]


def _first_fit(items: Sequence[_Item], budget: int, cost: _Cost, alone_above: int | None) -> list[list[_Item]]:
    # Decreasing by the longest row keeps padding small where there is padding; by tokens fills bins best.
    order = sorted(items, key=lambda item: (cost([item]), item.longest, item.rows), reverse=True)
    bins: list[list[_Item]] = []
    for item in order:
        alone = alone_above is not None and item.longest > alone_above
        for contents in bins:
            crowded = alone_above is not None and contents[0].longest > alone_above
            if not alone and not crowded and cost([*contents, item]) <= budget:
                contents.append(item)
                break
        else:
            bins.append([item])
    for contents in bins:
        contents.sort(key=lambda item: item.rows)
    return sorted(bins, key=lambda contents: contents[0].rows)


class _Scored:
    """Collects the scored tokens of a pack, completion by completion."""

    def __init__(self) -> None:
        self.source: list[int] = []
        self.target: list[int] = []
        self.row: list[int] = []
        self.column: list[int] = []
        self.temperature: list[float] = []

    def add(self, row: int, completion: Completion, before: int, start: int) -> None:
        """`before`: index of the prompt's last position; `start`: index of the completion's first position."""
        trained = completion.trained
        columns = [c for c in range(len(completion.ids)) if trained is None or trained[c]]
        self.source += [before if c == 0 else start + c - 1 for c in columns]
        self.target += [completion.ids[c] for c in columns]
        self.row += [row] * len(columns)
        self.column += columns
        self.temperature += [completion.temperature] * len(columns)

    def tensors(self) -> dict[str, Any]:
        return {
            "source_M": torch.tensor(self.source, dtype=torch.int64),
            "target_M": torch.tensor(self.target, dtype=torch.int64),
            "row_M": torch.tensor(self.row, dtype=torch.int64),
            "column_M": torch.tensor(self.column, dtype=torch.int64),
            "temperature_M": torch.tensor(self.temperature, dtype=torch.float32),
        }


def _common(items: Sequence[_Item], width: int) -> dict[str, Any]:
    return {
        "rows": tuple(r for item in items for r in item.rows),
        "width": width,
        "partial": any(item.partial for item in items),
    }


def _shared_pack(items: Sequence[_Item], width: int) -> SharedPack:
    ids: list[int] = []
    positions: list[int] = []
    trees: list[Tree] = []
    scored = _Scored()
    row = 0
    for item in items:
        ids += item.prompt.ids
        positions += range(len(item.prompt.ids))
        before = len(ids) - 1
        for completion, run in zip(item.completions, item.run, strict=True):
            scored.add(row, completion, before, len(ids))
            ids += completion.ids[:run]
            positions += range(len(item.prompt.ids), len(item.prompt.ids) + run)
            row += 1
        trees.append(Tree(len(item.prompt.ids), tuple(run for run in item.run if run)))
    return SharedPack(
        **_common(items, width),
        input_ids_SN=torch.tensor([ids], dtype=torch.int64),
        position_ids_SN=torch.tensor([positions], dtype=torch.int64),
        **scored.tensors(),
        trees=tuple(trees),
    )


def _rows_pack(items: Sequence[_Item], width: int) -> RowsPack:
    length = max(item.longest for item in items)
    rows: list[list[int]] = []
    scored = _Scored()
    for item in items:
        prompt = len(item.prompt.ids)
        for completion, run in zip(item.completions, item.run, strict=True):
            start = len(rows) * length + prompt
            scored.add(len(rows), completion, start - 1, start)
            rows.append([*item.prompt.ids, *completion.ids[:run], *[0] * (length - prompt - run)])
    return RowsPack(
        **_common(items, width),
        input_ids_SN=torch.tensor(rows, dtype=torch.int64),
        position_ids_SN=torch.arange(length).expand(len(rows), length),
        **scored.tensors(),
    )
