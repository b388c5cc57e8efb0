"""Keys and values while decoding: each prompt's once, and each row's own tokens.

P  prompt places    L  tokens of a prompt    S  slots (rows at most)    C  own tokens of a row
k  key/value heads    d  head size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values; the heads are part of the batch, as batched matrix products want them."""

    prefix_key: Tensor
    """[P, k, L, d]"""
    prefix_value: Tensor
    own_key: Tensor
    """[S, k, C, d]"""
    own_value: Tensor

    @property
    def all(self) -> tuple[Tensor, ...]:
        """Every tensor of it."""
        return self.prefix_key, self.prefix_value, self.own_key, self.own_value


class Cache:
    """Preallocated room for `prompts` prompts of `prefix` tokens and `slots` rows of `own` tokens, in every layer.

    A layer's tensors are made when it is first asked for: shapes and device are then those of its keys.
    """

    def __init__(self, *, prompts: int, prefix: int, slots: int, own: int) -> None:
        self._prompts, self._prefix, self._slots, self._own = prompts, prefix, slots, own
        self._layers: dict[nn.Module, LayerCache] = {}

    def layer(self, module: nn.Module, key: Tensor, value: Tensor) -> LayerCache:
        """The cache of an attention module with keys and values [1, k, n, d]."""
        if module not in self._layers:
            dtype = key.dtype
            if key.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
                dtype = torch.float32  # products of one query are several times slower in half precision there

            def room(places: int, length: int, like: Tensor) -> Tensor:
                # Zeros, not garbage: masked entries are multiplied by a probability of 0, and 0 · NaN is NaN.
                size = (places, like.shape[1], length, like.shape[3])
                return torch.zeros(size, dtype=dtype, device=like.device)

            self._layers[module] = LayerCache(
                prefix_key=room(self._prompts, self._prefix, key),
                prefix_value=room(self._prompts, self._prefix, value),
                own_key=room(self._slots, self._own, key),
                own_value=room(self._slots, self._own, value),
            )
        return self._layers[module]

    def move(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` own tokens of rows `source` to rows `target`, int64 [m] each, disjoint."""
        for layer in self._layers.values():
            for own in (layer.own_key, layer.own_value):
                own[target, :, :length] = own[source, :, :length]

    @property
    def layers(self) -> int:
        """How many attention modules have used it."""
        return len(self._layers)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token in all layers."""
        return sum(
            t.element_size() * t.shape[1] * t.shape[3]
            for layer in self._layers.values()
            for t in (layer.own_key, layer.own_value)
        )
