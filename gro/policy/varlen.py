"""A packed stream's attention on CUDA: one variable-length call over gathered keys and values.

Each prompt and each completion is one sequence of queries.  A prompt's keys are its own; a completion's are its
prompt's followed by its own, gathered into a longer stream.  The kernel aligns causality and windows to the *last*
key, which is then each query's own position in its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from gro.policy.plans import PartsPlan, Tree

_DTYPES = (torch.bfloat16, torch.float16)
_MAX_HEAD = 256
"""What the kernel takes; head sizes are multiples of 8."""
_WIDE_HEAD = 192
"""Beyond this the kernel's backward pass does not run on every card."""
_FIRST = (8, 0)
"""The compute capability from which the kernel runs (Ampere)."""
_RUN_WIDE = ((8, 0), (9, 0), (10, 0))
"""Those whose shared memory holds the backward pass of wide heads."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Where the sequences of a stream begin, and which positions their keys come from."""

    starts_q: tuple[int, ...]
    """Of the queries of each segment, and the end: segments + 1 numbers."""
    starts_k: tuple[int, ...]
    keys: tuple[int, ...]
    """For each gathered key its position in the stream."""

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Gather:
        """
        >>> Gather.of([Tree(2, (1, 3))])
        Gather(starts_q=(0, 2, 3, 6), starts_k=(0, 2, 5, 10), keys=(0, 1, 0, 1, 2, 0, 1, 3, 4, 5))
        """
        lengths_q: list[int] = []
        lengths_k: list[int] = []
        keys: list[int] = []
        position = 0
        for tree in trees:
            prompt = range(position, position + tree.prompt)
            position += tree.prompt
            keys += prompt
            lengths_q.append(tree.prompt)
            lengths_k.append(tree.prompt)
            for n in tree.completions:
                keys += prompt
                keys += range(position, position + n)
                position += n
                lengths_q.append(n)
                lengths_k.append(tree.prompt + n)
        return cls((0, *accumulate(lengths_q)), (0, *accumulate(lengths_k)), tuple(keys))


@cache
def widest_head(device: torch.device) -> int:
    """The largest head size that the kernel takes on this device, forward and backward; 0: it does not run there."""
    if device.type != "cuda":
        return _MAX_HEAD  # of a stand-in
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or capability < _FIRST:
        return 0
    return _MAX_HEAD if capability in _RUN_WIDE else _WIDE_HEAD


class VarlenPlan:
    """One `varlen_attn` per layer; what that kernel cannot do (fp32, soft-caps, very wide heads, cards before Ampere)
    goes by parts, which are plain tensor operations and run on any device."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        gather = Gather.of(trees)
        self._parts = PartsPlan(trees, device)
        self._keys = torch.tensor(gather.keys, dtype=torch.int64, device=device)
        self._starts_q = torch.tensor(gather.starts_q, dtype=torch.int32, device=device)
        self._starts_k = torch.tensor(gather.starts_k, dtype=torch.int32, device=device)
        # Plain numbers: reading them back from the device would wait for it.
        self._longest_q = _longest(gather.starts_q)
        self._longest_k = _longest(gather.starts_k)

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
        device = value_bknd.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value_bknd.dtype
        head = query_bhnd.shape[-1]
        fits = head == value_bknd.shape[-1] and head % 8 == 0 and head <= widest_head(query_bhnd.device)
        if softcap is not None or dtype not in _DTYPES or not fits:
            return self._parts.attend(
                module, query_bhnd, key_bknd, value_bknd, scaling=scaling, softcap=softcap, window=window
            )
        query_nhd, key_nkd, value_nkd = (t[0].transpose(0, 1).to(dtype) for t in (query_bhnd, key_bknd, value_bknd))
        # A window of w positions counts the query's own: w − 1 to its left.  Exactly (−1, 0) is causal to the kernel,
        # and (left, 0) a causal window.
        left = -1 if window is None or window >= self._longest_k else window - 1
        out_nhd = varlen_attn(
            query_nhd.contiguous(),
            key_nkd[self._keys].contiguous(),
            value_nkd[self._keys].contiguous(),
            self._starts_q,
            self._starts_k,
            self._longest_q,
            self._longest_k,
            scale=scaling,
            window_size=(left, 0),
            enable_gqa=query_nhd.shape[1] != key_nkd.shape[1],
        )
        assert isinstance(out_nhd, Tensor)
        return out_nhd[None]


def _longest(starts: Sequence[int]) -> int:
    return max(b - a for a, b in pairwise(starts))
