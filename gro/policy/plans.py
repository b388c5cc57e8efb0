"""Who attends to whom in a packed stream: each completion to its prompt and to itself.

A plan is made once per forward pass and used by every layer.  `PartsPlan` covers the allowed pairs of the stream by
rectangles, chosen by a cost model: neighbouring small trees share one masked square; a large tree is cut into its
prompt, its completions among themselves, and *all* completions against the prompt in one unmasked rectangle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from gro.policy.attention import AttentionPlan
from gro.policy.parts import CpuFlash, Eager, MergedAttention, Part

CALL = 4_000
"""What one more kernel call costs, in elements of an attention matrix (measured, six heads of 64 on two cores)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the completions that follow it in the stream, by their numbers of tokens, none of them 0.

    >>> Tree(prompt=3, completions=(2, 3))    # p0 p1 p2 a0 a1 b0 b1 b2
    """

    prompt: int
    completions: tuple[int, ...]

    def __post_init__(self) -> None:
        # The CPU's flash kernel dies of a division by zero on an empty range.
        assert self.prompt > 0
        assert all(self.completions)

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.prompt + max(self.completions, default=0)


def plan_for(device: torch.device, trees: Sequence[Tree]) -> AttentionPlan:
    """The plan of this stream on this kind of device."""
    if device.type == "cuda":
        from gro.policy.varlen import VarlenPlan

        return VarlenPlan(trees, device)
    return PartsPlan(trees, device)


class PartsPlan:
    """Masked squares and rectangles, see the module.  Exact for windows, soft-caps and grouped queries."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self.trees = tuple(trees)
        self.device = device
        self._parts: dict[tuple[int | None, torch.dtype], tuple[Part, ...]] = {}

    def attend(
        self,
        module: nn.Module,
        query_bhnd: Tensor,
        key_bknd: Tensor,
        value_bknd: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        query, key, value = _one_dtype(query_bhnd, key_bknd, value_bknd)
        assert query.shape[0] == 1, "a packed stream has no batch dimension"
        flash = softcap is None and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
        kernel = CpuFlash(scaling) if flash else Eager(scaling, softcap)
        return MergedAttention.apply(query[0], key[0], value[0], self.parts(window, query.dtype), kernel)[None]

    def parts(self, window: int | None, dtype: torch.dtype) -> tuple[Part, ...]:
        """The rectangles for layers that see `window` positions back, the own included (None: all)."""
        if window is not None and window >= max(tree.longest for tree in self.trees):
            window = None
        if (window, dtype) not in self._parts:
            cover = _Cover(self.trees, window, dtype, self.device)
            self._parts[window, dtype] = tuple(cover.parts())
        return self._parts[window, dtype]


def _one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast rotary embeddings and norms may leave queries and keys in another dtype than values."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[-1].dtype
    return tuple(t.to(dtype) for t in tensors)


@dataclass(frozen=True, slots=True)
class _Cover:
    """Finds the rectangles."""

    trees: tuple[Tree, ...]
    window: int | None
    dtype: torch.dtype
    device: torch.device

    def parts(self) -> Iterable[Part]:
        starts = _starts([tree.tokens for tree in self.trees])
        single = [min(_square(tree.tokens), self._split_cost(tree)) for tree in self.trees]
        for first, last in _runs([tree.tokens for tree in self.trees], single):
            if last - first == 1 and single[first] < _square(self.trees[first].tokens):
                yield from self._split(starts[first], self.trees[first])
            else:
                blocks = [(starts[i], self.trees[i]) for i in range(first, last)]
                yield self._masked(blocks)

    def _split_cost(self, tree: Tree) -> float:
        own = sum(_band_cost(n) for n in tree.completions)
        return _band_cost(tree.prompt) + own + CALL + tree.prompt * sum(tree.completions)

    def _split(self, start: int, tree: Tree) -> Iterable[Part]:
        """A large tree: prompt, completions among themselves, completions against the prompt."""
        yield from self._band(start, tree.prompt)
        first = start + tree.prompt
        begins = [first + s for s in _starts(tree.completions)]
        for i, j in _runs(tree.completions, [_band_cost(n) for n in tree.completions]):
            if j - i == 1:
                yield from self._band(begins[i], tree.completions[i])
            else:
                yield self._masked([(begins[c], Tree(tree.completions[c], ())) for c in range(i, j)])
        if self.window is None:
            if tree.completions:
                yield Part(slice(first, start + tree.tokens), slice(start, first), None, merge=True)
            return
        for begin, n in zip(begins, tree.completions, strict=True):
            yield from self._window_into_prompt(begin, n, start, tree.prompt)

    def _band(self, start: int, n: int) -> Iterable[Part]:
        """A causal sequence, in strips of queries, so that what lies above the diagonal is mostly not computed."""
        strips = _strips(n)
        for i in range(strips):
            low, high = n * i // strips, n * (i + 1) // strips
            left = 0 if self.window is None else max(0, low - self.window + 1)
            distance = self._range(low, high)[:, None] - self._range(left, high)
            rows, keys = slice(start + low, start + high), slice(start + left, start + high)
            yield Part(rows, keys, self._bias(distance), merge=False)

    def _window_into_prompt(self, begin: int, n: int, start: int, prompt: int) -> Iterable[Part]:
        """The queries of a completion that still see the prompt's end, against the keys that any of them sees."""
        assert self.window is not None
        seeing = min(n, self.window - 1)
        if not seeing:
            return
        left = max(0, prompt - self.window + 1)
        distance = self._range(prompt, prompt + seeing)[:, None] - self._range(left, prompt)
        yield Part(slice(begin, begin + seeing), slice(start + left, start + prompt), self._bias(distance), merge=True)

    def _masked(self, blocks: Sequence[tuple[int, Tree]]) -> Part:
        """Neighbouring trees in one masked square."""
        tree, branch, position = [], [], []
        for t, (_, block) in enumerate(blocks):
            for b, n in enumerate((block.prompt, *block.completions)):
                first = block.prompt if b else 0
                tree += [t] * n
                branch += [b] * n
                position += range(first, first + n)
        tree_N, branch_N, position_N = torch.tensor([tree, branch, position], device=self.device)
        related = (tree_N[:, None] == tree_N) & ((branch_N[:, None] == branch_N) | (branch_N == 0))
        # A pair from different branches is never allowed: a negative distance says so.
        distance = torch.where(related, position_N[:, None] - position_N, -1)
        here = slice(blocks[0][0], blocks[-1][0] + blocks[-1][1].tokens)
        return Part(here, here, self._bias(distance), merge=False)

    def _range(self, low: int, high: int) -> Tensor:
        return torch.arange(low, high, device=self.device)

    def _bias(self, distance: Tensor) -> Tensor | None:
        """Allowed are distances from 0 to less than the window."""
        allowed = distance >= 0
        if self.window is not None:
            allowed &= distance < self.window
        if bool(allowed.all()):
            return None
        bias = torch.zeros(distance.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(~allowed, float("-inf"))


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))[:-1]


def _square(n: int) -> float:
    return CALL + n * n


def _strips(n: int) -> int:
    # Minimises strips · CALL + n² (1 + 1/strips) / 2.
    return max(1, round(n / (2 * CALL) ** 0.5))


def _band_cost(n: int) -> float:
    strips = _strips(n)
    return strips * CALL + n * n * (1 + 1 / strips) / 2


def _runs(lengths: Sequence[int], single: Sequence[float]) -> list[tuple[int, int]]:
    """The cheapest cut of a sequence into runs [i, j): a run of several is one masked square, of one costs `single`."""
    best = [0.0]
    cut = [0]
    for j in range(1, len(lengths) + 1):
        cost, where = best[j - 1] + single[j - 1], j - 1
        total, apart = lengths[j - 1], single[j - 1]
        for i in range(j - 2, -1, -1):
            total += lengths[i]
            apart += single[i]
            if total * total > apart:
                break
            if best[i] + _square(total) < cost:
                cost, where = best[i] + _square(total), i
        best.append(cost)
        cut.append(where)
    runs = []
    j = len(lengths)
    while j:
        runs.append((cut[j], j))
        j = cut[j]
    return runs[::-1]
