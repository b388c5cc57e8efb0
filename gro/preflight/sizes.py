"""How large a model is, counted on a copy of it without memory: nothing is read but its configuration.

The copy consists of fake tensors, which know their shapes alone.  A forward pass through it says what each token leaves
behind for the backward pass, for any architecture, without a formula that would have to be kept right.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from gro.errors import GroError
from gro.policy.loading import quiet
from gro.policy.scoring import decoder

if TYPE_CHECKING:
    from gro.policy.spec import LoraSettings

_NAME = "gro-sizes"
_LENGTHS = (64, 128)
"""Tokens of the two passes under autocast, which also keeps weights: what grows between them grows with the tokens.
Without it the second one says enough."""
USUAL = 17
"""Numbers that a layer keeps per token and hidden unit (Korthikanti et al. 2022, eq. 2, without dropout)."""
_KNOWN: dict[tuple[str, ...], Sizes] = {}
"""Found in this process."""
_STEP = 4
"""AdamW's counter of a tensor's updates."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a model, or of what is trained beside it, in bytes."""

    parameters: int
    """Numbers, those of tied tensors once."""
    weights: int
    gradients: int
    optimizer: int
    """AdamW's two means, of the weights' own type, and its counters."""

    def __add__(self, other: Weights) -> Weights:
        return Weights(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What can be known of a model from its configuration."""

    architecture: Any = field(repr=False)
    """The configuration itself."""
    whole: Weights
    """All of it; what is trained of it has gradients and an optimizer."""
    trunk: Weights
    """Without an output embedding of its own: what a critic or reward model has."""
    trained: Weights
    """The trained part alone: all of it, or an adapter."""
    buffers: int
    """Bytes of tensors that are not weights."""
    layers: int
    hidden: int
    vocabulary: int
    tied: bool
    per_token: int
    """Bytes that a token's forward pass keeps for the backward pass, below the head."""
    once: int
    """Bytes that a forward pass keeps however many tokens it has: weights in the precision of autocast."""
    cache_per_token: int
    """Keys and values in all layers, in the weights' precision."""


@cache
def _register() -> None:
    AttentionInterface.register(_NAME, _attention)


def sizes(
    architecture: Any, dtype: str = "float32", *, autocast: str | None = None, lora: LoraSettings | None = None
) -> Sizes:
    """Of the causal model with this transformers configuration and these master weights; GroError where there is none.

    >>> sizes(AutoConfig.from_pretrained("path/to/model")).whole.parameters
    """
    key = (architecture.to_json_string(use_diff=False), dtype, str(autocast), repr(lora))
    if key not in _KNOWN:
        _register()
        _KNOWN[key] = _sizes(architecture, dtype, autocast, lora)
    return _KNOWN[key]


def _sizes(architecture: Any, dtype: str, autocast: str | None, lora: LoraSettings | None) -> Sizes:
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        model = _model(architecture, getattr(torch, dtype))
        model.eval()
        trained = list(model.parameters()) if lora is None else _adapters(model, lora)
        output = model.get_output_embeddings()
        tied = output is None or output.weight is model.get_input_embeddings().weight
        head = [] if output is None or tied else [id(p) for p in output.parameters()]
        below = [p for p in model.parameters() if id(p) not in head]
        traces = _traces(model, autocast)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return Sizes(
            architecture=architecture,
            whole=_weights(list(model.parameters()), trained if lora is None else []),
            trunk=_weights(below, below if lora is None else []),
            trained=_weights(trained, trained),
            buffers=sum(b.nbytes for b in model.buffers()),
            layers=model.config.get_text_config().num_hidden_layers,
            hidden=embedding.embedding_dim,
            vocabulary=embedding.num_embeddings,
            tied=tied,
            per_token=round((traces[1].bytes - traces[0].bytes) / (_LENGTHS[1] - _LENGTHS[0])),
            once=max(0, round(2 * traces[0].bytes - traces[1].bytes)),
            cache_per_token=traces[1].cached // _LENGTHS[1],
        )


def _model(architecture: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A reward model's configuration is that of a causal model, but for its labels."""
    try:
        return AutoModelForCausalLM.from_config(copy.deepcopy(architecture), dtype=dtype)
    except (ValueError, RuntimeError, TypeError) as error:
        raise GroError(
            f"model: {architecture.model_type} cannot be made as a causal language model: {error}"
        ) from error


def _weights(tensors: Sequence[Tensor], trained: Sequence[Tensor]) -> Weights:
    moved = sum(p.nbytes for p in trained)
    return Weights(
        sum(p.numel() for p in tensors), sum(p.nbytes for p in tensors), moved, 2 * moved + _STEP * len(trained)
    )


def _adapters(model: PreTrainedModel, lora: LoraSettings) -> list[Tensor]:
    """Stand-ins for the A and B of every layer that has them."""
    from gro.policy import adapter

    targets, found = adapter.targets_of(model, lora), []
    for name, layer in adapter.linear_layers(model).items():
        if any(name == target or name.endswith(f".{target}") for target in targets):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            wide = torch.promote_types(weight.dtype, torch.float32)
            found += [torch.empty(lora.rank, size, dtype=wide) for size in weight.shape]
    return found


@dataclass(slots=True)
class _Trace:
    """What a pass of so many tokens kept."""

    bytes: int = 0
    cached: int = 0


class _Attention(torch.autograd.Function):
    """Keeps what the attention of a packed stream keeps: queries, keys, values, the result and its normaliser."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    trace = kwargs.get("trace")
    if trace is not None:
        trace.cached += key.numel() * module_size(module) + value.numel() * module_size(module)
    return _Attention.apply(query, key, value), None  # type: ignore[return-value]


def module_size(module: nn.Module) -> int:
    """Bytes of one number of a module's weights."""
    return next(module.parameters()).element_size()


def _traces(model: PreTrainedModel, autocast: str | None) -> list[_Trace]:
    """Of the two lengths.  Where a model cannot run without data, 17 numbers per layer and hidden unit."""
    try:
        short, long = _LENGTHS
        whole = _kept(model, long, autocast)
        half = _Trace(whole.bytes * short // long) if autocast is None else _kept(model, short, autocast)
        return [half, whole]
    except Exception:  # a model is a program; whatever it needs data for, an estimate is no reason to stop
        text = model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = module_size(model)
        each = text.num_hidden_layers * text.hidden_size * USUAL * size
        cached = text.num_hidden_layers * 2 * heads * head * size
        return [_Trace(n * each, n * cached) for n in _LENGTHS]


def _kept(model: PreTrainedModel, tokens: int, autocast: str | None) -> _Trace:
    model.set_attn_implementation(_NAME)
    trace = _Trace()
    ids_1N, position_1N = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)[None]
    precision = torch.autocast("cpu", dtype=getattr(torch, autocast)) if autocast else nullcontext()
    with _saved(model, trace), precision:
        decoder(model)(input_ids=ids_1N, position_ids=position_1N, use_cache=False, trace=trace)
    return trace


@contextmanager
def _saved(model: nn.Module, trace: _Trace) -> Iterator[None]:
    """Counts what is saved for the backward pass, every piece of memory once, without the weights themselves."""
    known = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept = []  # held, so that no other storage comes to lie where one was

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(storage)
            trace.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
