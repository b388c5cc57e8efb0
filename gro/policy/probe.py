"""Does a model score right?  Checked against the textbook once, when a policy is made.

Three questions, each answered by numbers rather than by a list of architectures:

1. Do its hidden states and output embedding give the model's own log-probs (head), and do padded rows?  If not, stop.
2. Does the shared layout give them too, for this architecture with small windows and chunks (a tiny random model of
   the same class), and was the registered attention called once per layer?  If not, plain rows.
3. And for this very model?  If not, plain rows.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from gro.errors import GroError
from gro.policy import attention
from gro.policy.head import IDENTITY, LogitTransform
from gro.policy.packing import Pack, SharedPack, pack
from gro.policy.scoring import reference_logp, score
from gro.types import Completion, Group, Prompt, rows_of

_SMALL_WINDOW = 4
"""Of the tiny model: less than the probe's rows, so that windows and chunks matter."""


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model under another attention implementation."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def stock_attention(model: PreTrainedModel) -> str:
    """The attention implementation that the model uses without us."""
    current = model.config._attn_implementation
    if current is not None and current != attention.NAME:
        return current
    return "sdpa" if model._supports_sdpa else "eager"


@torch.no_grad()
def find_transform(model: PreTrainedModel) -> LogitTransform:
    """What the architecture does to its logits: what its configuration declares, checked in numbers.

    Raises:
        GroError: the model is not causal, or its log-probs cannot be had from hidden states and output embedding.
    """
    if model.get_output_embeddings() is None:
        raise GroError(f"{_name(model)} has no output embedding; it is not a language model that can be trained")
    groups = _groups(model.config.get_text_config().vocab_size)
    with attention_of(model, stock_attention(model)):
        truth = _truth(model, groups)
        (rows,) = pack(groups, 10**6, shared=False)
        gaps = {}
        for transform in _declared(model.config.get_text_config()):
            gaps[transform] = _gap(model, rows, truth, transform)
            if gaps[transform] <= _tolerance(model, truth):
                return transform
    gap = min(gaps.values())
    raise GroError(
        f"{_name(model)}: log-probs from hidden states and output embedding differ by {gap:.2g} from the model's own. "
        "It does something between the two that is not supported, or it is not causal"
    )


@torch.no_grad()
def shared_layout_fault(model: PreTrainedModel, transform: LogitTransform) -> str | None:
    """Why the shared layout is not valid for this model; None: it is."""
    fault = _class_fault(type(model.config), json.dumps(model.config.to_dict(), default=str, sort_keys=True))
    return fault or _fault(model, transform)


@cache
def _class_fault(kind: type, config: str) -> str | None:
    try:
        tiny = _tiny(kind, json.loads(config))
    except Exception as error:  # whatever a class cannot do with small numbers: then it cannot be probed
        return f"a small model of its kind could not be made ({type(error).__name__}: {error})"
    with torch.no_grad():
        return _fault(tiny, find_transform(tiny))


def _fault(model: PreTrainedModel, transform: LogitTransform) -> str | None:
    groups = _groups(model.config.get_text_config().vocab_size)
    stock = stock_attention(model)
    with attention_of(model, stock):
        truth = _truth(model, groups)
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    (shared,) = pack(groups, 10**6)
    assert isinstance(shared, SharedPack)
    counting = _Counting(shared)
    with attention_of(model, attention.NAME):
        try:
            gap = _gap(model, counting, truth, transform)
        except Exception as error:  # an architecture may reject restarting positions in any way it likes
            return f"its forward pass fails on a packed stream ({type(error).__name__}: {error})"
    layers = model.config.get_text_config().num_hidden_layers
    if counting.calls != layers:
        return f"of its {layers} layers {counting.calls} use replaceable attention"
    if not gap <= _tolerance(model, truth):
        return f"log-probs differ by {gap:.2g}"
    return None


class _Counting:
    """A shared pack whose attention plan counts its calls."""

    def __init__(self, inner: SharedPack) -> None:
        self.inner = inner
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        inputs = self.inner.inputs(device)
        self.plan = inputs["attention_plan"]
        return inputs | {"attention_plan": self}

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        self.calls += 1
        return self.plan.attend(module, query, key, value, **how)


def _groups(vocabulary: int) -> list[Group]:
    """Two prompts, completions longer and shorter than the tiny model's window, of 1 token, at temperatures ≠ 1."""
    ids = [(7 * i + 3) % vocabulary for i in range(40)]
    first = (
        Completion(tuple(ids[5:12])),
        Completion(tuple(ids[12:13])),
        Completion(tuple(ids[13:19]), temperature=0.7),
    )
    second = (Completion(tuple(ids[20:24]), temperature=0.7), Completion(tuple(ids[24:33])))
    return [Group(Prompt(tuple(ids[:5])), first), Group(Prompt(tuple(ids[19:20])), second)]


def _truth(model: PreTrainedModel, groups: list[Group]) -> list[Tensor]:
    """Per completion its log-probs at its temperature, from the whole model and full logits."""
    return [reference_logp(model, group.prompt.ids, c.ids, c.temperature) for _, group, c in rows_of(groups)]


def _gap(model: PreTrainedModel, pack: Pack | _Counting, truth: list[Tensor], transform: LogitTransform) -> float:
    """Largest difference; NaN counts as infinitely wrong."""
    logp_RT = score(model, pack, transform=transform).logp_RT  # type: ignore[arg-type]
    gap = max(float((logp_RT[r, : len(t)] - t).abs().max()) for r, t in enumerate(truth))
    return gap if gap == gap else float("inf")


def _tolerance(model: PreTrainedModel, truth: list[Tensor]) -> float:
    """A layout may change rounding, not more: 500 units of last place of the largest log-prob.

    Of float32 at best: norms round to it inside, also in a float64 model.
    """
    largest = max(float(t.abs().max()) for t in truth)
    return 500 * max(torch.finfo(t).eps for t in (model.dtype, torch.float32)) * max(1.0, largest)


def _declared(config: Any) -> list[LogitTransform]:
    """The readings of a configuration.  `logits_scaling` divides in some architectures and multiplies in others."""
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    scales = dict.fromkeys((scale / divisor, scale * divisor, 1.0))
    return list(dict.fromkeys([*(LogitTransform(float(s), cap) for s in scales), IDENTITY]))


def _tiny(kind: type, raw: dict[str, Any]) -> PreTrainedModel:
    """A random model of the same class and switches with few small layers, small windows and lively weights."""
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    assert isinstance(config, kind)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    kv = min(kv_heads, 2)
    repeat = min(heads // kv_heads, 2)
    layers = _layers(text)
    changes = {
        "num_attention_heads": kv * repeat,
        "num_key_value_heads": kv,
        "hidden_size": kv * repeat * head_dim,
        "intermediate_size": 32,
        "moe_intermediate_size": 32,
        "vocab_size": 64,
        "sliding_window": _SMALL_WINDOW,
        "attention_chunk_size": _SMALL_WINDOW,
        "initializer_range": 0.2,
    }
    for name, value in changes.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    for owner in (config, text):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if hasattr(owner, name):
                setattr(owner, name, None if name == "pad_token_id" else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _layers(config: Any) -> int:
    """At least two, and enough to meet each kind of layer once."""
    kinds = getattr(config, "layer_types", None)
    needed = max((kinds.index(kind) + 1 for kind in set(kinds)), default=1) if kinds else 1
    return min(config.num_hidden_layers, max(2, needed))


def _name(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.name_or_path or 'made here'})"
