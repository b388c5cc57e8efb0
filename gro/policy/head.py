"""Log-probabilities of given tokens from hidden states, without ever holding the logits of all of them.

M  scored tokens     H  hidden size     V  vocabulary     c  rows of one chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20
"""Logits are made about this many bytes at a time: larger chunks leave a processor's cache."""
CUDA_CHUNK_BYTES = 256 << 20
"""On CUDA, where no cache holds a chunk and small products leave the device idle.  Not measured yet."""
MIN_ROWS, MAX_ROWS = 128, 1024
"""Of a chunk, whatever its bytes: every chunk passes once over the weight and its gradient, so few rows are slow."""
KEEP_BYTES = 128 << 20
"""Up to this many bytes of log-probabilities are kept for the backward pass, which then saves one product of four."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What an architecture does to `hidden · weightᵀ + bias`: scale it, then cap it softly at ±cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def backward(self, grad: Tensor, logits: Tensor) -> Tensor:
        """d/d input, in place in `grad`, from the *transformed* logits."""
        if self.cap is not None:
            grad *= 1 - (logits / self.cap) ** 2
        if self.scale != 1.0:
            grad *= self.scale
        return grad


IDENTITY = LogitTransform()


def token_logp(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    target_M: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature_M: Tensor | None = None,
    transform: LogitTransform = IDENTITY,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(transform(h·Wᵀ + b) / temperature)[target], and the entropy of that distribution.

    Both are differentiable once in hidden states, weight and bias, for any upstream gradient per token, in one pass
    backward.  float32 inside at least.  Peak memory has no term in V·M.

    Args:
        hidden_MH: [M, H]; bf16, fp32 or fp64.
        weight_VH: [V, H] the output embedding.
        target_M: int64 [M].
        bias_V: [V] or None.
        temperature_M: [M] float; None: 1 everywhere.
        transform: what the architecture does to logits.
        entropy: also return the entropies.

    Returns:
        (logp_M, entropy_M or None), float32, or float64 where the inputs are.
    """
    assert hidden_MH.ndim == weight_VH.ndim == 2
    assert hidden_MH.shape[1] == weight_VH.shape[1]
    assert target_M.shape == hidden_MH.shape[:1]
    assert target_M.dtype == torch.int64
    device = hidden_MH.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight_VH.dtype
    inverse_M = None
    if temperature_M is not None and bool((temperature_M != 1).any()):
        inverse_M = 1.0 / temperature_M.to(device, _wide(dtype))
    # The weight is lowered inside, so that its gradient is summed over the chunks in its own precision.
    logp_M, entropy_M = _TokenLogp.apply(  # type: ignore[misc]
        hidden_MH.to(dtype), weight_VH, bias_V, target_M, inverse_M, transform, entropy, dtype
    )
    return logp_M, entropy_M if entropy else None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def most_bytes(vocabulary: int, device: torch.device, itemsize: int = 4) -> int:
    """What a pass through the head and back holds at most besides hidden states, weights and gradients: a constant.

    What is kept, and what the work on one chunk needs in its largest moment.
    """
    return KEEP_BYTES + 6 * _rows(vocabulary, itemsize, device) * vocabulary * itemsize


def _rows(vocabulary: int, itemsize: int, device: torch.device) -> int:
    wanted = CUDA_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES
    return max(MIN_ROWS, min(MAX_ROWS, wanted // (vocabulary * itemsize)))


def _chunks(tokens: int, vocabulary: int, itemsize: int, device: torch.device) -> list[slice]:
    rows = _rows(vocabulary, itemsize, device)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def _logits(hidden_cH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, transform: LogitTransform) -> Tensor:
    logits_cV = (hidden_cH @ weight_VH.T).to(_wide(weight_VH.dtype))
    if bias_V is not None:
        logits_cV += bias_V
    return transform(logits_cV)


class _TokenLogp(torch.autograd.Function):
    """Forward and backward in chunks of rows; the logits that fit into KEEP_BYTES are kept, the others made again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        inverse_M: Tensor | None,
        transform: LogitTransform,
        entropy: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        tokens, (vocabulary, _) = hidden_MH.shape[0], weight_VH.shape
        wide, low_VH = _wide(dtype), weight_VH.to(dtype)
        logp_M = torch.empty(tokens, dtype=wide, device=hidden_MH.device)
        lse_M = torch.empty_like(logp_M)
        entropy_M = torch.empty_like(logp_M) if entropy else logp_M.new_empty(0)
        needs_backward = any(ctx.needs_input_grad[:3])
        kept: list[Tensor | None] = []
        room = KEEP_BYTES if needs_backward else 0
        for c in _chunks(tokens, vocabulary, wide.itemsize, hidden_MH.device):
            z_cV = _logits(hidden_MH[c], low_VH, bias_V, transform)
            room -= z_cV.nbytes
            kept.append(z_cV if room >= 0 else None)
            if inverse_M is not None:
                z_cV = z_cV * inverse_M[c, None]
            lse_M[c] = z_cV.logsumexp(-1)
            logp_M[c] = z_cV.gather(-1, target_M[c, None])[:, 0] - lse_M[c]
            if entropy:
                p_cV = (z_cV - lse_M[c, None]).exp_()
                entropy_M[c] = lse_M[c] - p_cV.mul_(z_cV).sum(-1)
        if needs_backward:
            ctx.save_for_backward(hidden_MH, low_VH, bias_V, target_M, inverse_M, lse_M, entropy_M, *kept)
            ctx.transform, ctx.weight_dtype = transform, weight_VH.dtype
            ctx.set_materialize_grads(False)  # no gradient of one of the two saves its work
        if not entropy:
            ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor | None, push_M: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """grad_M: d/d logp; push_M: d/d entropy; None where nothing depends on it."""
        hidden_MH, low_VH, bias_V, target_M, inverse_M, lse_M, entropy_M, *kept = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_MH) if to_hidden else None
        grad_weight = torch.zeros_like(low_VH, dtype=ctx.weight_dtype) if to_weight else None
        grad_bias = torch.zeros_like(bias_V) if to_bias else None
        chunks = _chunks(len(target_M), len(low_VH), lse_M.element_size(), hidden_MH.device)
        for c, z_cV in zip(chunks, kept, strict=True):
            if z_cV is None:
                z_cV = _logits(hidden_MH[c], low_VH, bias_V, ctx.transform)
            scaled_cV = z_cV if inverse_M is None else z_cV * inverse_M[c, None]
            logp_cV = scaled_cV - lse_M[c, None]
            # d logp / d z = (onehot − p) / temperature,  d H / d z = −p (log p + H) / temperature
            if push_M is None:
                assert grad_M is not None
                grad_cV = logp_cV.exp_().mul_(-grad_M[c, None])
            else:
                factor_cV = (logp_cV + entropy_M[c, None]).mul_(-push_M[c, None])
                if grad_M is not None:
                    factor_cV -= grad_M[c, None]
                grad_cV = logp_cV.exp_().mul_(factor_cV)
            if grad_M is not None:
                grad_cV.scatter_add_(-1, target_M[c, None], grad_M[c, None])
            if inverse_M is not None:
                grad_cV *= inverse_M[c, None]
            grad_cV = ctx.transform.backward(grad_cV, z_cV)
            if grad_bias is not None:
                grad_bias += grad_cV.sum(0)
            grad_cV = grad_cV.to(low_VH.dtype)
            if grad_hidden is not None:
                torch.mm(grad_cV, low_VH, out=grad_hidden[c])
            if grad_weight is None:
                continue
            if grad_weight.dtype == low_VH.dtype:
                grad_weight.addmm_(grad_cV.T, hidden_MH[c])
            else:
                grad_weight += grad_cV.T @ hidden_MH[c]
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None
