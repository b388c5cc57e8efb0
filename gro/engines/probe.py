"""Does an architecture decode faithfully through the registered attention?  Asked once, of the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from gro.engines.base import Sampling
from gro.engines.modes import own_attention, registered_attention
from gro.engines.samples import Samples
from gro.engines.slots import SlotDecoder
from gro.types import Prompt

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Mean absolute difference of log-probs that rounding explains; attention gone wrong is about 1."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    fault: str | None
    """Why the registered attention cannot be used; None: it can."""
    bytes_per_token: int
    """Keys and values of one token in all layers."""


def probe(model: PreTrainedModel) -> Probe:
    """Decode a few tokens and compare their log-probs with plain forward passes of the same rows.

    The model is in evaluation mode, gradients are off.  Raises FloatingPointError if its logits are not numbers.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return Probe(f"it has layers of kind {', '.join(sorted(kinds))}", 0)
    if not model._supports_attention_backend:
        return Probe("its attention is not interchangeable", 0)

    vocab = model.config.get_text_config().vocab_size
    prompts = [Prompt(tuple((7 * i + 1) % vocab for i in range(length)), key=length) for length in (9, 4)]
    sampling = Sampling(max_new_tokens=6)
    samples = Samples(prompts, 2, sampling, seed=0, step=0, device=model.device)
    # Three slots for four samples, so that a row is replaced and one is moved.
    decoder = SlotDecoder(model, samples, slots=3, places=2)
    with registered_attention(model):
        decoder.run()
    if not decoder.cache.layers:
        return Probe("it does not call the registered attention", 0)
    if bool((samples.length_S < sampling.max_new_tokens).any()):
        raise FloatingPointError("the model's logits are not numbers: look for NaN or inf in its weights")

    gaps: list[torch.Tensor] = []
    with own_attention(model):
        for s in range(len(prompts) * samples.n):
            prompt = prompts[s // samples.n].ids
            row = torch.cat([torch.tensor(prompt, device=model.device), samples.ids_ST[s]])
            logits = model(input_ids=row[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
            logp = logits.double().log_softmax(-1).gather(1, samples.ids_ST[s][:, None])[:, 0]
            gaps.append((logp - samples.logp_ST[s]).abs())
    gap = float(torch.cat(gaps).mean())
    if not gap <= _TOLERANCE[model.dtype]:
        return Probe(f"through the registered attention its log-probs are off by {gap:.2g}", 0)
    return Probe(None, decoder.cache.bytes_per_token)


def rope_fault(model: PreTrainedModel, length: int) -> str | None:
    """Why rows of up to this length, prompt included, cannot share a forward pass; None: they can.

    Some rotary embeddings choose their frequencies by the largest position in the pass, for every row of it.
    """
    config: Any = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if part.get("rope_type") in ("dynamic", "longrope"):
            limit = part.get("original_max_position_embeddings") or config.max_position_embeddings
            if length > limit:
                return f"{part['rope_type']} position scaling beyond {limit} tokens depends on the whole batch"
    return None
