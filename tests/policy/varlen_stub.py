"""What stands in for the CUDA kernel where there is none: its documentation, segment by segment, in plain PyTorch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_SIGNATURE = inspect.signature(varlen_attn)


def varlen_by_documentation(*arguments: Any, **named: Any) -> Tensor:
    """Takes what the installed `varlen_attn` takes.

    A query of a sequence with n queries and m keys stands at place i + m − n among the keys; it sees those from `left`
    before it to `right` behind it, where −1 is without limit.  Query head h reads key head h // (heads / key heads).
    """
    given = _SIGNATURE.bind(*arguments, **named)
    given.apply_defaults()
    query, key, value, starts_q, starts_k, max_q, max_k = given.args
    scale, (left, right) = given.kwargs["scale"], given.kwargs["window_size"]
    for unused in ("return_aux", "seqused_k", "block_table"):
        assert given.kwargs[unused] is None
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert type(max_q) is type(max_k) is int
    assert query.dtype == key.dtype == value.dtype
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    assert query.shape[-1] % 8 == 0
    assert (starts_q[-1], starts_k[-1]) == (len(query), len(key))
    repeat = query.shape[1] // key.shape[1]
    assert given.kwargs["enable_gqa"] == (repeat > 1)
    outputs = []
    for i in range(len(starts_q) - 1):
        q = query[starts_q[i] : starts_q[i + 1]].transpose(0, 1)
        k, v = (x[starts_k[i] : starts_k[i + 1]].transpose(0, 1).repeat_interleave(repeat, 0) for x in (key, value))
        n, m = q.shape[1], k.shape[1]
        assert n <= max_q
        assert m <= max_k
        back = (torch.arange(n)[:, None] + m - n) - torch.arange(m)
        keep = torch.ones_like(back, dtype=torch.bool)
        if left >= 0:
            keep &= back <= left
        if right >= 0:
            keep &= back >= -right
        score = (scale * q @ k.transpose(-1, -2)).masked_fill(~keep, -torch.inf)
        outputs.append((score.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)
