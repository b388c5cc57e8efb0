"""Attention as a list of rectangular parts, merged by log-sum-exp.

A *part* lets one range of queries attend to one range of keys, in full or under a mask.  Queries that are in several
parts get the softmax over all of them: with outputs oᵢ and log-sum-exps lᵢ, l = log Σ exp lᵢ and o = Σ exp(lᵢ − l) oᵢ.
Backward needs no more than that: given the *merged* output and log-sum-exp, each part's probabilities exp(s − l) and
row terms Σ o·do are those of the whole, so every part contributes its share of the gradient on its own (the identity
behind ring attention, Liu et al. 2023, https://arxiv.org/abs/2310.01889).  No keys are copied and no matrix is kept.

    K  key/value heads     r  queries' heads per key head (grouped queries)     n, m  queries, keys     d  head size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Part(NamedTuple):
    """Queries `queries` attend to keys `keys`.  Ranges are never empty, and every query sees at least one key."""

    queries: slice
    keys: slice
    bias: Tensor | None
    """[n, m] added to the scores: 0 where allowed, −inf elsewhere; None: everything is allowed."""
    merge: bool
    """An earlier part of the list had these queries: combine with it."""


class Kernel(Protocol):
    """Attention over one part, and its gradient given the output and log-sum-exp of the whole."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """q [K, r, n, d], k and v [K, r, m, d] → output [K, r, n, d], log-sum-exp [K, r, n]."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """→ gradients of q [K, r, n, d], k and v [K, r, m, d]."""
        ...


class CpuFlash(NamedTuple):
    """PyTorch's flash attention for CPUs.  Strided and broadcast operands are read in place."""

    scaling: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias, scale=self.scaling
        )

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=self.scaling
        )


class Eager(NamedTuple):
    """Matrix products and a softmax: any device and head size, and soft-caps."""

    scaling: float
    softcap: float | None = None

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        score = (q @ k.transpose(-1, -2)).to(_wide(q.dtype)) * self.scaling
        return score if self.softcap is None else torch.tanh(score / self.softcap) * self.softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        score = self._scores(q, k)
        if bias is not None:
            score = score + bias
        lse = score.logsumexp(-1)
        return (score - lse[..., None]).exp().to(v.dtype) @ v, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        score = self._scores(q, k)
        p = ((score if bias is None else score + bias) - lse[..., None]).exp()
        row = (grad * out).to(p.dtype).sum(-1, keepdim=True)
        grad_score = p * ((grad @ v.transpose(-1, -2)).to(p.dtype) - row)
        if self.softcap is not None:
            grad_score = grad_score * (1 - (score / self.softcap) ** 2)
        grad_score = (grad_score * self.scaling).to(q.dtype)
        return grad_score @ k, grad_score.transpose(-1, -2) @ q, p.to(grad.dtype).transpose(-1, -2) @ grad


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class MergedAttention(torch.autograd.Function):
    """`apply(q_hnd, k_knd, v_knd, parts, kernel)` → [n, heads, d].  Once differentiable."""

    @staticmethod
    def forward(ctx: Any, q_hnd: Tensor, k_knd: Tensor, v_knd: Tensor, parts: Sequence[Part], kernel: Kernel) -> Tensor:
        q, k, v = _heads(q_hnd, k_knd, v_knd)
        out_nhd = q_hnd.new_empty(q_hnd.shape[1], q_hnd.shape[0], v_knd.shape[-1])
        out = out_nhd.transpose(0, 1).unflatten(0, q.shape[:2])
        lse = q_hnd.new_empty(q.shape[:3], dtype=_wide(q.dtype))
        for part in parts:
            rows, keys = part.queries, part.keys
            part_out, part_lse = kernel.forward(q[:, :, rows], k[:, :, keys], v[:, :, keys], part.bias)
            if part.merge:
                old = lse[:, :, rows]
                out[:, :, rows].lerp_(part_out, (part_lse - old).sigmoid()[..., None].to(out.dtype))
                lse[:, :, rows] = torch.logaddexp(old, part_lse)
            else:
                out[:, :, rows] = part_out
                lse[:, :, rows] = part_lse
        ctx.save_for_backward(q_hnd, k_knd, v_knd, out_nhd, lse)
        ctx.parts, ctx.kernel = parts, kernel
        return out_nhd

    @staticmethod
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_hnd, k_knd, v_knd, out_nhd, lse = ctx.saved_tensors
        q, k, v = _heads(q_hnd, k_knd, v_knd)
        out = out_nhd.transpose(0, 1).unflatten(0, q.shape[:2])
        grad = grad_nhd.contiguous().transpose(0, 1).unflatten(0, q.shape[:2])
        # Laid out like the projections that made them, [n, heads, d], so that nothing upstream needs a copy.
        grad_q = q_hnd.new_empty(q_hnd.shape[1], *q_hnd.shape[::2]).transpose(0, 1)
        grad_k = k_knd.new_zeros(k_knd.shape[1], *k_knd.shape[::2]).transpose(0, 1)
        grad_v = v_knd.new_zeros(v_knd.shape[1], *v_knd.shape[::2]).transpose(0, 1)
        to_q = grad_q.unflatten(0, q.shape[:2])
        for part in ctx.parts:
            rows, keys = part.queries, part.keys
            part_q, part_k, part_v = ctx.kernel.backward(
                grad[:, :, rows],
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, rows],
                lse[:, :, rows],
                part.bias,
            )
            if part.merge:
                to_q[:, :, rows] += part_q
            else:
                to_q[:, :, rows] = part_q
            grad_k[:, keys] += part_k.sum(1)
            grad_v[:, keys] += part_v.sum(1)
        return grad_q, grad_k, grad_v, None, None


def _heads(q_hnd: Tensor, k_knd: Tensor, v_knd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views [K, r, n, d]: query heads by key head, and keys and values broadcast over r without a copy."""
    repeat = q_hnd.shape[0] // k_knd.shape[0]
    return (
        q_hnd.unflatten(0, (k_knd.shape[0], repeat)),
        k_knd[:, None].expand(-1, repeat, -1, -1),
        v_knd[:, None].expand(-1, repeat, -1, -1),
    )
