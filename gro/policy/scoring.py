"""One forward pass over a pack: hidden states, then log-probs of the scored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gro.policy.head import IDENTITY, LogitTransform, token_logp
from gro.policy.packing import Pack


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probs of a pack's completions, each at its own temperature."""

    logp_RT: Tensor
    """[R, T], differentiable; 0 where nothing is scored."""
    entropy_RT: Tensor | None
    """[R, T] entropy of each scored token's distribution in nats, differentiable; 0 where nothing is scored."""
    hidden_MH: Tensor
    """[M, H] the hidden states that predict the scored tokens, differentiable: what a value head reads."""


def score(
    model: PreTrainedModel,
    pack: Pack,
    *,
    transform: LogitTransform = IDENTITY,
    entropy: bool = False,
    device: torch.device | None = None,
) -> Scored:
    """Scores a pack under the attention implementation that the model has now, which must be that of the pack.

    device: where the pass is made; None: where the weights are.
    """
    hidden_MH = hidden_states(model, pack, device)
    head = model.get_output_embeddings()
    assert head is not None
    weight, bias = head.weight, getattr(head, "bias", None)
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    logp_M, entropy_M = token_logp(
        hidden_MH,
        weight,
        pack.target_M.to(hidden_MH.device),
        bias_V=bias,
        temperature_M=pack.temperature_M,
        transform=transform,
        entropy=entropy,
    )
    return Scored(pack.scatter(logp_M), None if entropy_M is None else pack.scatter(entropy_M), hidden_MH)


def hidden_states(model: PreTrainedModel, pack: Pack, device: torch.device | None = None) -> Tensor:
    """[M, H] of the positions that predict the pack's scored tokens.  device: see `score`."""
    device = device or model.device
    # Packing by position ids is silently wrong with a cache or a two-dimensional mask; there is neither.
    output = decoder(model)(**pack.inputs(device), use_cache=False)
    return output.last_hidden_state.flatten(0, 1).index_select(0, pack.source_M.to(device))


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of a causal model that ends in hidden states."""
    # Some classes name the wrong base model, and then answer with themselves.
    parts = (model.get_decoder(), model.base_model, getattr(model, "model", model))
    found = next((part for part in parts if part is not model), None)
    assert isinstance(found, nn.Module), f"{type(model).__name__} has no part that ends in hidden states"
    return found


def reference_logp(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> Tensor:
    """Log-probs of a completion by the textbook: the whole model on this row alone, full logits, softmax.  [tokens]"""
    ids_1N = torch.tensor([[*prompt, *completion]], device=model.device)
    logits_NV = model(input_ids=ids_1N, use_cache=False).logits[0]
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature
    scored_TV = logits_NV[len(prompt) - 1 : -1].log_softmax(-1)
    return scored_TV.gather(-1, ids_1N[0, len(prompt) :, None])[:, 0]
