"""Sampling from the training weights, in this process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from gro.engines.base import Progress, Sampling
from gro.engines.lowered import follow, lowered
from gro.engines.modes import evaluating, own_attention, registered_attention
from gro.engines.probe import Probe, probe, rope_fault
from gro.engines.rows import decode_rows
from gro.engines.samples import Samples
from gro.engines.slots import SlotDecoder
from gro.policy.policy import Policy
from gro.types import Completion, Prompt

CACHE_GIB = 4.0
"""Keys and values take no more than this, unless one row alone does."""


class LocalEngine:
    """Decodes with the weights that are being trained: an update is seen at once.

    An architecture that does not go through the registered attention, or not faithfully, is decoded over
    transformers' own caches instead, after one warning.  The model is left as it was found: attention
    implementation and training state of every module.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int = 512,
        cache_gib: float = CACHE_GIB,
        compute_dtype: torch.dtype | None = None,
        whole: Callable[[torch.dtype | None], PreTrainedModel] | None = None,
    ) -> None:
        """At most `slots` rows at a time, and no more than their keys and values fit into `cache_gib`.

        `compute_dtype`: sample from a copy of the weights in this dtype, renewed at every call.  Faster in bfloat16,
        but log-probs then differ from the trainer's by its rounding: an option, never part of a comparison.
        `whole`: where the weights are cut over processes, what gives a whole copy in a dtype (None: as it is).  Every
        process must then make every call, be it without prompts; the copy is dropped at its end.
        """
        if slots < 1:
            raise ValueError(f"slots must be at least 1, found {slots}")
        if not cache_gib > 0:
            raise ValueError(f"cache_gib must be positive, found {cache_gib}")
        self.model = model
        self.slots = slots
        self.cache_gib = cache_gib
        self.version = 0
        self.compute_dtype = compute_dtype
        self._whole = whole
        self._twin: PreTrainedModel | None = None
        self._probed: Probe | None = None
        self._warned = False

    @classmethod
    def of(cls, policy: Policy, **how: Any) -> LocalEngine:
        """An engine for a policy, be it one whose weights are cut; see above for `how`."""

        def whole(dtype: torch.dtype | None) -> PreTrainedModel:
            return policy.whole(dtype=dtype, device=policy.device).model

        return cls(policy.model, whole=None if policy.sharding is None else whole, **how)

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        on_progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        if n < 1:
            raise ValueError(f"n, the number of completions of a prompt, must be at least 1, found {n}")
        source = self.model if self._whole is None else self._whole(self.compute_dtype)
        if not prompts:
            return []
        samples = Samples(prompts, n, sampling, seed=seed, step=step, device=source.device, on_progress=on_progress)
        with torch.no_grad(), evaluating(source):
            model = self._sampled_model() if self._whole is None else source
            if self._probed is None:
                self._probed = probe(model)
            longest = max(len(p.ids) for p in prompts)
            _check_positions(model, longest + sampling.max_new_tokens - 1)
            reason = self._probed.fault or rope_fault(model, longest + sampling.max_new_tokens)
            if reason:
                self._warn(reason)
                with own_attention(model):
                    decode_rows(model, samples, self.slots)
            else:
                slots, places = self._room(len(prompts), n, longest, sampling.max_new_tokens)
                with registered_attention(model):
                    SlotDecoder(model, samples, slots=slots, places=places).run()
        return samples.completions(self.version)

    def _sampled_model(self) -> PreTrainedModel:
        if self.compute_dtype is None:
            return self.model
        if self._twin is None:
            self._twin = lowered(self.model, self.compute_dtype)
        else:
            follow(self._twin, self.model)
        return self._twin

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            name = type(self.model).__name__
            warnings.warn(f"{name} is decoded over transformers' cache, slower: {reason}", stacklevel=3)

    def _room(self, prompts: int, n: int, longest: int, max_new_tokens: int) -> tuple[int, int]:
        """How many rows, and prompts at a time, the cache has room for."""
        assert self._probed is not None
        per_token = self._probed.bytes_per_token
        return room(self.slots, prompts, n, longest, max_new_tokens, self.cache_gib * 2**30 / per_token)

    def update(self, version: int) -> None:
        """The engine samples from the training weights themselves: only the number changes."""
        self.version = version

    def close(self) -> None:
        """Drop the copy of the weights, if there is one; nothing else is held between calls."""
        self._twin = None


def room(slots: int, prompts: int, n: int, longest: int, max_new_tokens: int, tokens: float) -> tuple[int, int]:
    """How many rows, of at most `slots`, and prompts at a time a cache of so many tokens has room for; at least 1."""

    def places(slots: int) -> int:
        # Twice what full groups need: as rows end at different times, the last ones of several prompts linger.
        return min(prompts, slots, 2 * math.ceil(slots / n))

    slots = min(slots, prompts * n)
    while slots > 1 and slots * max_new_tokens + places(slots) * longest > tokens:
        slots -= 1
    return slots, places(slots)


def _check_positions(model: PreTrainedModel, length: int) -> None:
    """Learned positions end somewhere; rotary ones only get worse."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if getattr(config, "rope_parameters", None) is None and limit is not None and length > limit:
        raise ValueError(
            f"the longest prompt and max_new_tokens need {length} positions, the model has {limit}: "
            "shorten prompts or lower max_new_tokens"
        )
