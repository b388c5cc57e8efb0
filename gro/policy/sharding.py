"""Weights cut over processes (FSDP2), applied to a finished model from outside: the model does not know of it.

The order, and why:

1. Activation checkpointing is on the layers already (`Policy.checkpoint_activations`), so that a layer that is computed
   again in the backward pass finds its weights gathered.
2. Every decoder layer is cut by itself: whole for the time of its own forward and backward pass only.
3. What is left is cut as one: embedding, last norm and head, which are whole from the forward to the backward pass.
   Tied weights are one parameter of this part.

A policy is cut as a whole.  Of a critic and of a reward model only the trunk is; their heads are one row, which every
process has.  Gradients are sums over global counts, so nothing is divided.  Master weights and sums are in float32
at least; under autocast the layers are gathered in its type, the rest in full.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from gro.errors import GroError
from gro.policy.scoring import decoder

T = TypeVar("T")

_PASS = "gro_pass"
"""The method under which a function of the whole model counts as its forward pass."""


def mesh_of(shard: int, device: str) -> DeviceMesh | None:
    """The processes as a mesh; None where each has all weights.

    Args:
        shard: over how many processes weights are cut: 0 for all, 1 for none.  Fewer than all: several groups of so
            many, each with all weights (HSDP).
        device: its type.

    Raises:
        GroError: the processes cannot be grouped like that.
    """
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    shard = shard or size
    if size % shard:
        raise GroError(
            f"distributed.shard: {shard}, but {size} processes were started; the number of processes must be a "
            "multiple of it (0 cuts the weights over all)"
        )
    if shard == 1:
        return None
    if shard == size:
        return init_device_mesh(device, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (size // shard, shard), mesh_dim_names=("replicate", "shard"))


@dataclass(frozen=True, slots=True)
class Sharding:
    """One model whose weights are cut, and what is needed to copy it and to put it together."""

    mesh: DeviceMesh
    offload: bool
    """Weights, gradients and the optimizer's memory lie in the main memory and visit the device."""
    lower: torch.dtype | None
    """The type in which layers are gathered; None: their own."""
    trunk_only: bool
    """The head is not cut: it is another's, or one row."""
    skeleton: PreTrainedModel
    """The model without weights: on the meta device, of its own class, tied as it is."""
    root: FSDPModule

    @classmethod
    def cut(
        cls,
        model: PreTrainedModel,
        mesh: DeviceMesh,
        *,
        offload: bool = False,
        lower: torch.dtype | None = None,
        trunk_only: bool = False,
    ) -> Sharding:
        """Cuts the model's weights in place: of each this process keeps its part."""
        bare: dict[int, Any] = {id(p): _meta(p) for p in model.parameters()}
        skeleton = copy.deepcopy(model, bare)
        if trunk_only:
            _forget_tied_head(model)
        for unit, low in _units(model, lower, trunk_only):
            _apply(unit, mesh, low, offload)
        root = decoder(model) if trunk_only else model
        assert isinstance(root, FSDPModule)
        _prepare(root, len(mesh.shape) > 1)
        return cls(mesh, offload, lower, trunk_only, skeleton, root)

    @property
    def device(self) -> torch.device:
        """Where passes are made, wherever the weights lie between them."""
        kind = self.mesh.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    @property
    def parts(self) -> int:
        """Over how many processes each weight is cut."""
        return self.mesh.size(-1)

    def run(self, function: Callable[..., T], *args: Any, **how: Any) -> T:
        """What a function of the model gives, with every weight whole while it and its backward pass need it."""
        # Of a trunk, the decoder's own forward pass is all there is.
        found = function(*args, **how) if self.trunk_only else getattr(self.root, _PASS)(function, *args, **how)
        if not torch.is_grad_enabled():  # no backward pass will come and put the parts back
            self.root.reshard()
        return found

    def last_backward(self, last: bool) -> None:
        """Whether the next backward pass is the last of an update.

        Parts of a sum are exchanged between groups once per update.  Within a group after every pass: whole gradients,
        kept for longer, would take the memory that cutting saves.
        """
        self.root.set_is_last_backward(last)
        self.root.set_requires_all_reduce(last)

    @torch.no_grad()
    def twin(self, model: PreTrainedModel, shared: dict[int, Tensor], *, trunk_only: bool = False) -> Twin:
        """A copy with weights of its own, cut likewise, without any exchange; `shared` by identity are the same.

        trunk_only: without its head, for a critic.
        """
        other: PreTrainedModel = copy.deepcopy(self.skeleton)
        trunk_only = trunk_only or self.trunk_only
        if trunk_only:
            _forget_tied_head(other)
        theirs = dict(_places(model))
        for unit, low in _units(other, self.lower, trunk_only):
            _fill(other, unit, self.device)  # garbage, one unit at a time, and only to be cut
            _apply(unit, self.mesh, low, self.offload)
        for place, mine in list(_places(other)):
            source = theirs[place]
            if id(source) in shared:
                _set(other, place, source)
            elif isinstance(mine, DTensor):
                assert isinstance(source, DTensor)
                own_part(mine).copy_(own_part(source))
            elif not source.is_meta and not isinstance(source, DTensor):
                _set(other, place, nn.Parameter(source.detach().clone(), source.requires_grad))
        root = decoder(other) if trunk_only else other
        assert isinstance(root, FSDPModule)
        _prepare(root, len(self.mesh.shape) > 1)
        sharding = Sharding(self.mesh, self.offload, self.lower, trunk_only, self.skeleton, root)
        return Twin(other, sharding)

    @torch.no_grad()
    def whole(
        self,
        model: PreTrainedModel,
        *,
        keep: bool,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> PreTrainedModel:
        """A copy with whole weights, gathered one by one; every process must take part.

        keep: False where only others want it; the copy then has no weights.  dtype, device: None: as they are.
        """
        other: PreTrainedModel = copy.deepcopy(self.skeleton)
        gathered: dict[int, nn.Parameter] = {}  # tied weights once
        for place, part in _places(model):
            if id(part) not in gathered:
                full = whole_tensor(part)
                if keep:
                    to = dtype if dtype is not None and full.is_floating_point() else full.dtype
                    moved = full.to(device or full.device, to, copy=True)
                    gathered[id(part)] = nn.Parameter(moved, requires_grad=False)
                else:
                    gathered[id(part)] = _meta(part)
            _set(other, place, gathered[id(part)])
        return other


@dataclass(frozen=True, slots=True)
class Twin:
    """A copy, and how it is cut."""

    model: PreTrainedModel
    sharding: Sharding


# --- tensors ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def whole_tensor(tensor: Tensor) -> Tensor:
    """All of it; where it is cut, every process must ask."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    near: Any = tensor.detach().to(tensor.device_mesh.device_type)  # where it is offloaded
    return near.full_tensor()


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """What of it lies in this process: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def assign(to: Tensor, value: Tensor) -> None:
    """Writes a value of the same shape in place; a whole one into what is cut, too, without any exchange."""
    if not isinstance(to, DTensor):
        to.copy_(whole_tensor(value))
        return
    if not isinstance(value, DTensor):
        # Every process has the whole value, so that none needs to be sent any.
        mesh = to.device_mesh
        value = distribute_tensor(value.to(mesh.device_type), mesh, to.placements, src_data_rank=None)
    own_part(to).copy_(own_part(value))


def is_zero(tensor: Tensor) -> bool:
    """Whether all of it is 0, in every process."""
    return not bool(whole_tensor(tensor.detach().abs().max()) if tensor.numel() else False)


# --- parts of a model ------------------------------------------------------------------------------------------------


def _units(
    model: PreTrainedModel, lower: torch.dtype | None, trunk_only: bool
) -> Iterator[tuple[nn.Module, torch.dtype | None]]:
    """What is cut by itself, in this order, each with the type in which it is gathered."""
    for layer in layers_of(model):
        yield layer, lower
    yield decoder(model) if trunk_only else model, None


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers; GroError where they are not a list."""
    number = model.config.get_text_config().num_hidden_layers
    for module in decoder(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise GroError(f"{type(model).__name__}: its {number} layers are not found, so that its weights cannot be cut")


def _apply(unit: nn.Module, mesh: DeviceMesh, lower: torch.dtype | None, offload: bool) -> None:
    kinds = {p.dtype for p in unit.parameters() if p.requires_grad and p.is_floating_point()}
    sums = torch.promote_types(max(kinds, key=lambda kind: kind.itemsize, default=torch.float32), torch.float32)
    away = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    precision = MixedPrecisionPolicy(param_dtype=lower, reduce_dtype=sums, cast_forward_inputs=False)
    fully_shard(unit, mesh=mesh, mp_policy=precision, offload_policy=away)


def _prepare(root: FSDPModule, groups: bool) -> None:
    """Sums that are not divided, and everything that is decided at a first pass decided now."""
    assert isinstance(root, nn.Module)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no multiplied sums
    # A weight that one process's pass does not use still takes part in the sum of all.
    root.set_reduce_scatter_unused_params(True)
    setattr(root, _PASS, MethodType(_call, root))
    register_fsdp_forward_method(root, _PASS)
    with torch.no_grad():
        getattr(root, _PASS)(lambda: None)
    root.reshard()


def _call(root: nn.Module, function: Callable[..., T], *args: Any, **how: Any) -> T:
    return function(*args, **how)


def _forget_tied_head(model: PreTrainedModel) -> None:
    """An output embedding that nobody uses would keep the whole of the input's."""
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is getattr(model.get_input_embeddings(), "weight", None):
        head.weight = _meta(head.weight)


def _fill(model: nn.Module, unit: nn.Module, device: torch.device) -> None:
    """Memory for the unit's weights that have none, in whichever modules they stand."""
    wanted = {id(p): p for p in unit.parameters() if p.is_meta and not isinstance(p, DTensor)}
    made = {
        key: nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
        for key, p in wanted.items()
    }
    for place, p in list(_places(model)):
        if id(p) in made:
            _set(model, place, made[id(p)])


def _places(model: nn.Module) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
    """Every place of a parameter, tied ones at each: (module, name)."""
    for path, module in model.named_modules():
        for name, p in module._parameters.items():
            if p is not None:
                yield (path, name), p


def _set(model: nn.Module, place: tuple[str, str], parameter: Tensor) -> None:
    path, name = place
    assert isinstance(parameter, nn.Parameter)
    model.get_submodule(path)._parameters[name] = parameter


def _meta(parameter: Tensor) -> nn.Parameter:
    shape = parameter.shape
    empty = torch.empty(shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=parameter.requires_grad)
