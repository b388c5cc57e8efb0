"""LoRA: low-rank adapters beside frozen weights, attached in place by peft.

The model stays what it was to everything that runs it: attention, packing, checkpointing, decoding and the head know
nothing of adapters.  What is learnt beside one model's weights can exist several times (a policy, its snapshots, a
critic): each is a model of its own whose frozen weights are the very same tensors, so that none has to be switched on
or off for another's sake.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gro.errors import GroError, nearest
from gro.policy.scoring import decoder
from gro.policy.spec import LoraSettings

NAME = "default"
"""Of the one adapter that peft's layers hold; peft's own default."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter belongs to."""

    name: str
    """Its folder or its name on the hub."""
    sha256: str | None = None
    """Of its weights, as `adapter_folder.fingerprint` reads them; None: not known."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is attached to a model; the weights are in its layers."""

    settings: LoraSettings
    config: Any
    """peft's LoraConfig."""
    base: Base


def installed() -> bool:
    """Whether peft is there."""
    return importlib.util.find_spec("peft") is not None


# --- which layers ----------------------------------------------------------------------------------------------------


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """By name, the layers below the hidden states that can have an adapter."""
    inside = {id(module) for module in decoder(model).modules()}
    return {n: m for n, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear | Conv1D)}


def targets_of(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """The settings' targets as names that this model has; GroError naming the one that is wrong."""
    layers = linear_layers(model)
    ends = {name.rpartition(".")[2] for name in layers}
    if settings.targets == "all-linear":
        outside = {n.rpartition(".")[2] for n, _ in model.named_modules() if n not in layers}
        return sorted(layers if ends & outside else ends)
    for target in settings.targets:
        _check_target(model, target, layers, ends)
    return sorted(set(settings.targets))


def matched(model: PreTrainedModel, targets: Collection[str]) -> set[str]:
    """The layers that these targets name."""
    return {name for name in linear_layers(model) if any(_is_named(name, target) for target in targets)}


def check_targets(architecture: Any, settings: LoraSettings) -> None:
    """GroError where a model of this configuration lacks a target; no weights are needed to say so."""
    if type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return  # which loading says in better words
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    targets_of(model, settings)


def _check_target(model: PreTrainedModel, target: str, layers: Collection[str], ends: Collection[str]) -> None:
    meant = {name: module for name, module in model.named_modules() if _is_named(name, target)}
    kind = type(model).__name__
    for name, module in meant.items():
        if module is model.get_output_embeddings():
            raise GroError(
                f"lora.targets: {target!r} is the output embedding of {kind} ({name}), from whose weight log-probs are "
                "computed; it cannot have an adapter"
            )
        if module is model.get_input_embeddings():
            raise GroError(f"lora.targets: {target!r} is the input embedding of {kind} ({name}); it stays as it is")
    known = ", ".join(sorted(ends))
    if not meant:
        raise GroError(
            f"lora.targets: {kind} has no layer {target!r}{nearest(target, ends)}; its linear layers are {known}"
        )
    if other := next((name for name in meant if name not in layers), None):
        found = type(meant[other]).__name__
        raise GroError(f"lora.targets: {target!r} is no linear layer of {kind} but a {found}; expected of {known}")


def _is_named(name: str, target: str) -> bool:
    """As peft compares them."""
    return name == target or name.endswith(f".{target}")


# --- attaching -------------------------------------------------------------------------------------------------------


def configure(model: PreTrainedModel, settings: LoraSettings) -> Any:
    """peft's configuration of a new adapter on this model; GroError where peft is missing or a target is wrong."""
    require()
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=targets_of(model, settings),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def require() -> None:
    """Raises GroError where peft is not installed."""
    if not installed():
        raise GroError("LoRA needs the package peft, which is not installed: pip install 'gro[lora]'")


def attach(model: PreTrainedModel, config: Any, seed: int) -> None:
    """Attaches an adapter in place; nothing else of the model trains from now on.

    B is 0, so that nothing changes at first.  A is uniform as in a new linear layer, and a function of the seed and the
    layer's name alone, whatever torch's own generators are at.
    """
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that GPT-2's layers are transposed, which peft then sees to
        inject_adapter_in_model(config, model, adapter_name=NAME)
    for name, layer in layers_of(model).items():
        layer.eval()
        weight = layer.get_base_layer().weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = (pair[NAME] for pair in (layer.lora_A, layer.lora_B))
        key = hashlib.sha256(f"lora/{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        bound = 1 / math.sqrt(a.in_features)
        a_RI = torch.empty(a.weight.shape).uniform_(-bound, bound, generator=generator)
        a.weight = nn.Parameter(a_RI.to(weight.device, wide))
        b.weight = nn.Parameter(torch.zeros(b.weight.shape, dtype=wide, device=weight.device))


def detach(model: PreTrainedModel, *, merge: bool) -> None:
    """Takes the adapter away in place; merge: after adding it to the weights."""
    for name, layer in layers_of(model).items():
        inner = layer.get_base_layer()
        if merge:
            inner.weight.data.copy_(merged_weight(layer))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, inner)
    del model.peft_config


# --- what is attached ------------------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of those that they stand for."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's weights by their names in the model."""
    found = {}
    for name, layer in layers_of(model).items():
        for part in ("lora_A", "lora_B"):
            found[f"{name}.{part}.{NAME}.weight"] = getattr(layer, part)[NAME].weight
    return found


def is_fresh(model: nn.Module) -> bool:
    """Whether the adapter changes nothing: every B is 0."""
    return not any(bool(layer.lora_B[NAME].weight.any()) for layer in layers_of(model).values())


def rest(model: nn.Module) -> None:
    """In a frozen copy, an adapter that changes nothing is not computed either."""
    fresh = is_fresh(model)
    for layer in layers_of(model).values():
        layer.enable_adapters(not fresh)
        layer.requires_grad_(False)


# --- merging ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """W + scale·B·A, computed in float32 at least, rounded once to the type of W."""
    weight = layer.get_base_layer().weight
    a_RI, b_OR = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    wide = torch.promote_types(a_RI.dtype, torch.float32)
    delta_OI = (b_OR.to(wide) @ a_RI.to(wide)) * layer.scaling[NAME]
    if isinstance(layer.get_base_layer(), Conv1D):
        delta_OI = delta_OI.T
    return (weight.to(wide) + delta_OI).to(weight.dtype)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under the names that they have without an adapter, with it merged into its layers.

    Weights without an adapter are the model's own, not copied.
    """
    layers = layers_of(model)
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.partition(".base_layer.")
        if layer in layers:
            merged = part == "weight"
            state[f"{layer}.{part}"] = merged_weight(layers[layer]) if merged else tensor
        elif ".lora_" not in name:
            state[name] = tensor
    return state
