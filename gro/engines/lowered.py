"""A copy of a model whose parameters have another dtype, for sampling only."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel


def lowered(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with floating-point parameters in `dtype`.  Buffers keep theirs: rotary frequencies need float32."""
    shared = {id(p): p for p in model.parameters()}  # not copied first at full size
    twin = copy.deepcopy(model, shared)  # pyright: ignore[reportArgumentType]
    cast: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in twin.modules():
        for name, p in module._parameters.items():
            if p is None:
                continue
            if id(p) not in cast:
                to = dtype if p.is_floating_point() else p.dtype
                cast[id(p)] = nn.Parameter(p.detach().to(to, copy=True), requires_grad=False)
            module._parameters[name] = cast[id(p)]
    return twin


@torch.no_grad()
def follow(twin: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give the copy the present weights of the model that it was made from."""
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.copy_(theirs)
    for mine, theirs in zip(twin.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
