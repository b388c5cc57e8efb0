"""The policy: a causal language model that scores packs of completions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gro.errors import GroError
from gro.policy import adapter as adapters
from gro.policy import adapter_folder, attention, probe
from gro.policy.adapter import Adapter, Base
from gro.policy.folder import find, inspect
from gro.policy.limits import longest_row, longest_together
from gro.policy.loading import check_vocabulary, load, load_tokenizer, quiet, silence_dropout
from gro.policy.packing import Pack, pack
from gro.policy.scoring import Scored, hidden_states, score
from gro.policy.sharding import Sharding, assign
from gro.policy.spec import LoraSettings
from gro.types import Group

__all__ = ["Layout", "Policy", "Scored"]

T = TypeVar("T")

Layout = Literal["shared", "rows"]
"""shared: prompts once, a stream without padding.  rows: every completion with its own copy of the prompt."""
ADAPTER = "adapter"
"""The folder beside an exported model's files that holds its adapter alone."""


class Policy:
    """A model, its tokenizer, and the layout in which it reads groups.

    >>> policy = Policy.load("path/to/model")
    >>> for pack in policy.packs(groups, tokens_per_micro=8192):
    ...     logp_RT = policy.logp(pack).logp_RT
    ...     loss(logp_RT, batch.rows(pack.rows_R)).backward()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layout: Layout | None = None,
        autocast: Literal["bfloat16"] | None = None,
    ) -> None:
        """Takes the model over: dropout off, and attention replaced where the layout is shared.

        Args:
            layout: None probes the model and takes shared where that is valid, else warns and takes rows.
            autocast: run forward passes in this type, with master weights as they are.

        Raises:
            GroError: not a causal language model whose head is understood.
        """
        silence_dropout(model)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.autocast: Literal["bfloat16"] | None = autocast
        self.adapter: Adapter | None = None
        """What is learnt in place of the model's own weights; see `adapt`."""
        self.sharding: Sharding | None = None
        """How the weights are cut over processes; see `shard`."""
        self._transform = probe.find_transform(model)
        self.layout: Layout = layout or _choose(model, self._transform)
        # Plain rows keep the model's own attention: the registered one knows nothing but plans.
        stock = probe.stock_attention(model)
        model.set_attn_implementation(attention.NAME if self.layout == "shared" else stock)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        *,
        dtype: str = "float32",
        device: str = "auto",
        activation_checkpointing: bool = False,
        allow_pickle: bool = False,
        autocast: Literal["bfloat16"] | None = None,
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> Policy:
        """A model in Hugging Face format from a folder or the hub; or an adapter's folder, with the base it names.

        Args:
            dtype: of the master weights, whatever the file holds.
            device: "auto" takes a CUDA device where there is one.
            activation_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
            allow_pickle: also read pickled weights, which can run code hidden in them.
            autocast: see `Policy`.
            lora: train an adapter: an adapter's folder goes on from there, any other model gets a new one.  None: all
                weights are the policy's own, and an adapter is merged into them.
            seed: of a new adapter's first weights.

        Raises:
            GroError: what is wrong with the model, by file and tensor.
        """
        place = adapter_folder.locate(path_or_name)
        folder = None
        if lora is not None or place.adapter is not None:
            adapters.require()
            folder = inspect(find(place.base), allow_pickle=allow_pickle)
        if lora is not None and folder is not None:
            adapters.check_targets(folder.config, lora)
        model, tokenizer = load(place.base, dtype=dtype, device=device, allow_pickle=allow_pickle)
        if place.adapter is not None and place.tokenizer == place.adapter:
            tokenizer = load_tokenizer(place.adapter)
            check_vocabulary(tokenizer, model, place.adapter)
        policy = cls(model, tokenizer, autocast=autocast)
        if place.adapter is not None and folder is not None:
            policy.adapter = adapter_folder.read(place, model, folder, lora)
            if lora is None:
                adapters.detach(model, merge=True)
                model.requires_grad_(True)
                policy.adapter = None
        elif lora is not None and folder is not None:
            policy.adapt(lora, seed=seed, base=adapter_folder.base_of(place, folder))
        if activation_checkpointing:
            policy.checkpoint_activations()
        return policy

    @property
    def device(self) -> torch.device:
        """Where passes are made, which is where the weights are unless they are offloaded."""
        return self.model.device if self.sharding is None else self.sharding.device

    def checkpoint_activations(self) -> None:
        """From now on keeps only each layer's input, and computes the rest again in the backward pass."""
        self.model.activation_checkpointing_enable()
        # It makes embeddings require a gradient, for a kind of checkpointing that is not ours: a frozen copy must not.
        self.model.disable_input_require_grads()
        # A layer checkpoints only while it is in training mode; nothing else of the model needs to be.
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True

    def packs(self, groups: Sequence[Group], tokens_per_micro: int, *, width: int | None = None) -> list[Pack]:
        """Micro-batches of at most so many tokens, in batch order; rows count as in `rows_of(groups)`.

        Args:
            groups: what to score.
            tokens_per_micro: the budget of a pack; a single row may exceed it.
            width: T of the scores, where the batch has longer completions than these groups; None: their longest.

        Raises:
            GroError: a row is longer than the model's table of positions.
        """
        limit = longest_row(self.model.config)
        if limit is not None:
            for index, group in enumerate(groups):
                row = len(group.prompt.ids) + max((len(c.ids) for c in group.completions), default=0)
                if row > limit:
                    raise GroError(f"group {index} has a row of {row} tokens; the model has positions for {limit}")
        alone = longest_together(self.model.config)
        shared = self.layout == "shared"
        return pack(groups, tokens_per_micro, shared=shared, width=width, alone_above=alone)

    def logp(self, pack: Pack, *, entropy: bool = False) -> Scored:
        """Scores a pack that `packs` made.  Differentiable once, unless under `torch.no_grad()`."""
        with self._precision():
            return self._run(score, self.model, pack, transform=self._transform, entropy=entropy, device=self.device)

    def hidden(self, pack: Pack) -> Tensor:
        """[M, H] hidden states of the positions that predict the pack's scored tokens, differentiable."""
        with self._precision():
            return self._run(hidden_states, self.model, pack, self.device)

    def adapt(self, settings: LoraSettings, *, seed: int = 0, base: Base | None = None) -> None:
        """Attaches a new adapter in place, which changes nothing yet: from now on nothing else of the model trains.

        Args:
            settings: see `LoraSettings`.
            seed: its first weights are a function of this and of nothing else.
            base: what the model is when nothing is added to it; None: as the model names itself.

        Raises:
            GroError: peft is not installed, or the model lacks a target.
        """
        assert self.adapter is None, "one adapter at a time"
        assert self.sharding is None, "weights are cut when everything that is learnt is there"
        config = adapters.configure(self.model, settings)
        adapters.attach(self.model, config, seed)
        self.adapter = Adapter(settings, config, base or Base(self.model.name_or_path or ""))

    def snapshot(self) -> Self:
        """A frozen copy of the policy as it is now: what a reference is.

        Beside an adapter nothing changes, so only that is copied; one that changes nothing yet is left out of the
        computation, which gives the model that it was attached to, to the bit.
        """
        frozen = self.twin()
        frozen.model.eval().requires_grad_(False)
        if frozen.adapter is not None:
            adapters.rest(frozen.model)
        return frozen

    def twin(self) -> Self:
        """A copy that trains on its own.  Weights that training does not change are shared, not copied."""
        other = copy.copy(self)
        if self.sharding is None:
            other.model = copy.deepcopy(self.model, self.untrained())  # type: ignore[arg-type]
        else:
            twin = self.sharding.twin(self.model, self.untrained())
            other.model, other.sharding = twin.model, twin.sharding
        return other

    def shard(self, mesh: DeviceMesh, *, offload: bool = False, trunk_only: bool = False) -> None:
        """Cuts the weights over the processes of a mesh, in place; see `gro.policy.sharding`.

        From now on every pass, copy and export is one of all processes together, and each makes as many of them.
        trunk_only: where the head is not this model's own, as a critic's.
        """
        assert self.sharding is None, "weights are cut once"
        lower = None if self.autocast is None else getattr(torch, self.autocast)
        trunk_only = trunk_only or self._trunk_only
        self.sharding = Sharding.cut(self.model, mesh, offload=offload, lower=lower, trunk_only=trunk_only)

    def last_backward(self, last: bool) -> None:
        """To be told before every pass of an update; see `Sharding.last_backward`."""
        if self.sharding is not None:
            self.sharding.last_backward(last)

    def whole(self, *, keep: bool = True, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """A copy with whole weights, without gradients; the policy itself where they are not cut.

        Every process must ask.  keep: False where only others need it; what is returned then has no weights.  dtype,
        device: of the copy's weights; None: as they are.
        """
        if self.sharding is None:
            return self
        other = copy.copy(self)
        other.model = self.sharding.whole(self.model, keep=keep, dtype=dtype, device=device)
        other.sharding = None
        return other

    def trained(self) -> dict[str, Tensor]:
        """Everything that training can change, by name, the tensors themselves; tied weights once."""
        if self.adapter is not None:
            return dict(adapters.weights_of(self.model))
        return dict(self.model.named_parameters())

    def untrained(self) -> dict[int, Tensor]:
        """The other weights by identity: those that copies of the model share."""
        trained = {id(tensor) for tensor in self.trained().values()}
        return {id(p): p for p in self.model.parameters() if id(p) not in trained}

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the weights that `trained` gave; GroError where they are those of another model."""
        mine = self.trained()
        wrong = sorted(mine.keys() ^ tensors.keys()) or [n for n, t in mine.items() if t.shape != tensors[n].shape]
        if wrong:
            raise GroError(f"not the weights of this model: {wrong[0]} is missing, unknown or of another shape")
        for name, tensor in mine.items():
            assign(tensor, tensors[name])
        if self.adapter is not None and not any(tensor.requires_grad for tensor in mine.values()):
            adapters.rest(self.model)

    def follow(self, other: Policy) -> None:
        """Takes over the other's present weights; it must be a copy of this policy, or this one of it."""
        self.load_trained(other.trained())

    def save(self, path: str | Path) -> None:
        """Writes Hugging Face format (safetensors and tokenizer), which plain transformers loads.

        An adapter is merged into its layers there, and lies beside them in peft's format, in the folder `adapter`.
        Weights that are cut are put together first: `whole`.
        """
        assert self.sharding is None, "policy.whole().save(path)"
        state = None if self.adapter is None else adapters.merged_state(self.model)
        with quiet():
            self.model.save_pretrained(path, state_dict=state)
        self.tokenizer.save_pretrained(path)
        if self.adapter is not None:
            adapter_folder.write(Path(path) / ADAPTER, self.adapter, self.model)

    _trunk_only = False
    """Whether the head stays whole where weights are cut."""

    def _run(self, function: Callable[..., T], *args: Any, **how: Any) -> T:
        """What a function of the model gives while it has its weights."""
        return function(*args, **how) if self.sharding is None else self.sharding.run(function, *args, **how)

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.autocast))


def _choose(model: PreTrainedModel, transform: probe.LogitTransform) -> Layout:
    fault = probe.shared_layout_fault(model, transform)
    if fault is None:
        return "shared"
    warnings.warn(
        f"{type(model).__name__} cannot share prompts between completions: {fault}. "
        "It is trained on plain rows, which gives the same numbers and takes longer",
        stacklevel=3,
    )
    return "rows"
