"""The critic: what the rest of a completion is worth, before each of its tokens.

M  scored tokens     H  hidden size     R, T  rows of a pack and completion tokens
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from gro.errors import GroError
from gro.policy import adapter as adapters
from gro.policy import adapter_folder
from gro.policy.folder import Folder, find, inspect
from gro.policy.loading import load_tokenizer, quiet
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.policy.scoring import decoder
from gro.policy.sharding import assign
from gro.policy.spec import LoraSettings

FILE = "critic.safetensors"


class Critic:
    """V before each completion token: a linear head on the hidden state that predicts that token.

    The hidden states are the policy's own (`shared`), or those of a trunk that only the critic has.

    >>> critic = Critic.beside(policy)                        # a copy of the policy's trunk
    >>> values_RT = critic.values(pack)
    """

    def __init__(self, trunk: Policy, head: nn.Linear, *, shared: bool) -> None:
        """`trunk`: whose hidden states are read; with `shared` it is the policy itself."""
        self.trunk, self.head, self.shared = trunk, head, shared

    @classmethod
    def on(cls, policy: Policy) -> Critic:
        """A head on the policy's own hidden states; every value is 0 at first."""
        return cls(policy, _zero_head(policy), shared=True)

    @classmethod
    def beside(cls, policy: Policy, *, lora: LoraSettings | None = None, seed: int = 0) -> Critic:
        """A copy of the policy's trunk with a head of its own; every value is 0 at first.

        Beside a policy with an adapter the copy has one too, on the same frozen weights.

        Args:
            lora: a new adapter of another kind than the policy's; None: as the policy has it.
            seed: of that new adapter.

        Raises:
            GroError: `lora` is given where the policy's own adapter is part of what the critic starts from.
        """
        trunk = copy.copy(policy)
        if policy.sharding is not None:
            if lora is not None:
                raise GroError("critic.lora: an adapter of another kind cannot be put on weights that are cut already")
            twin = policy.sharding.twin(policy.model, policy.untrained(), trunk_only=True)
            trunk.model, trunk.sharding = twin.model, twin.sharding
            return cls(trunk, _zero_head(policy), shared=False)
        output: Any = policy.model.get_output_embeddings()
        # A critic never uses it: it is not copied.
        trunk.model = copy.deepcopy(policy.model, policy.untrained() | {id(output): output})  # type: ignore[arg-type]
        if lora is not None:
            trains = output.weight.requires_grad
            _exchange(trunk, lora, seed)
            output.requires_grad_(trains)  # it is the policy's
        return cls(trunk, _zero_head(policy), shared=False)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        policy: Policy,
        *,
        allow_pickle: bool = False,
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> Critic:
        """Another model's trunk: a reward model (sequence classification, with its score head) or a causal model.

        Args:
            path_or_name: of the model.
            policy: whose values they are.
            allow_pickle: see `Policy.load`.
            lora: the adapter that the trunk gets; None: one as the policy's, where that has one.
            seed: of its first weights.

        Raises:
            GroError: it has another tokenizer than the policy, or is neither, or its files are at fault.
        """
        critic = cls._load(path_or_name, policy, allow_pickle)
        settings = lora or (policy.adapter.settings if policy.adapter is not None else None)
        if settings is not None:
            critic.trunk.adapt(settings, seed=seed)
        return critic

    @classmethod
    def _load(cls, path_or_name: str | Path, policy: Policy, allow_pickle: bool) -> Critic:
        place = adapter_folder.locate(path_or_name)
        folder = inspect(find(place.base), allow_pickle=allow_pickle)
        tokenizer = load_tokenizer(folder.path)
        if tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise GroError(
                f"{folder.path}: its tokenizer is not the policy's ({len(tokenizer)} and {len(policy.tokenizer)} "
                "tokens); a critic reads the policy's token ids"
            )
        dtype, device = policy.model.dtype, policy.device
        if not any(name.endswith("ForSequenceClassification") for name in folder.config.architectures or ()):
            trunk = Policy.load(
                path_or_name,
                dtype=str(dtype).removeprefix("torch."),
                device=str(device),
                allow_pickle=allow_pickle,
                autocast=policy.autocast,
            )
            return cls(trunk, _zero_head(trunk), shared=False)
        if place.adapter is not None:
            raise GroError(f"{place.adapter} is an adapter on a reward model; give the folder in which it is merged")
        model, head = score_model(folder, dtype, allow_pickle)
        trunk = Policy(model.to(device), policy.tokenizer, autocast=policy.autocast)  # type: ignore[arg-type]
        return cls(trunk, head.to(device), shared=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the critic's own learner moves, by name: the head, and a trunk that is not the policy's."""
        return {name: p for name, p in self._module.named_parameters() if p.requires_grad}

    def values(self, pack: Pack) -> Tensor:
        """[R, T] values, 0 where nothing is scored.  A shared trunk gets no gradient from here, only the head."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared):
            hidden_MH = self.trunk.hidden(pack)
        return self.read(hidden_MH, pack)

    def read(self, hidden_MH: Tensor, pack: Pack) -> Tensor:
        """[R, T] values from the hidden states that predict the pack's scored tokens; differentiable."""
        return pack.scatter(self.head(hidden_MH.to(self.head.weight.dtype))[:, 0])

    def trained(self) -> dict[str, Tensor]:
        """Everything of the critic that training can change, by name: beside a policy with an adapter, not the trunk
        but its adapter."""
        others = {} if self.shared else self.trunk.untrained()
        return {name: p for name, p in self._module.named_parameters() if id(p) not in others}

    def shard(self, mesh: DeviceMesh, *, offload: bool = False) -> None:
        """As `Policy.shard`, for a trunk that only the critic has; beside a policy that is cut it is cut already."""
        if not self.shared and self.trunk.sharding is None:
            self.trunk.shard(mesh, offload=offload, trunk_only=True)

    def save(self, folder: str | Path) -> None:
        """Writes what can be trained to critic.safetensors in this folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.trained().items()}
        save_file(tensors, str(Path(folder) / FILE))

    def restore(self, folder: str | Path) -> None:
        """Takes the weights that `save` wrote; GroError where they are those of another critic."""
        file, mine = Path(folder) / FILE, self.trained()
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise GroError(f"{file}: not the weights of this critic: {error}") from error
        wrong = sorted(mine.keys() ^ tensors.keys()) or [n for n, t in mine.items() if t.shape != tensors[n].shape]
        if wrong:
            raise GroError(
                f"{file}: not the weights of this critic: {wrong[0]} is missing, unknown or of another shape"
            )
        for name, tensor in mine.items():
            assign(tensor, tensors[name])

    @property
    def _module(self) -> nn.Module:
        parts: dict[str, nn.Module] = {"head": self.head}
        return nn.ModuleDict(parts if self.shared else parts | {"trunk": decoder(self.trunk.model)})


def _exchange(trunk: Policy, lora: LoraSettings, seed: int) -> None:
    """A new adapter in place of one that has changed nothing yet."""
    base = None
    if trunk.adapter is not None:
        if not adapters.is_fresh(trunk.model):
            raise GroError(
                "critic.lora: given, but the policy starts with an adapter of its own, which its critic begins as a "
                "copy of; leave it out, or give the critic a model of its own (critic.path)"
            )
        base = trunk.adapter.base
        adapters.detach(trunk.model, merge=False)
        trunk.adapter = None
    trunk.adapt(lora, seed=seed, base=base)


def _zero_head(policy: Policy) -> nn.Linear:
    output = policy.model.get_output_embeddings()
    assert output is not None
    weight = output.weight
    assert isinstance(weight, Tensor)
    return _head(torch.zeros(1, weight.shape[1], device=policy.device, dtype=weight.dtype), None)


def _head(weight_1H: Tensor, bias_1: Tensor | None) -> nn.Linear:
    """A head with these weights, in float32 at least: values are regressed on numbers, not on classes."""
    wide = torch.promote_types(weight_1H.dtype, torch.float32)
    head = nn.Linear(weight_1H.shape[1], 1, device=weight_1H.device, dtype=wide)
    with torch.no_grad():
        head.weight.copy_(weight_1H)
        head.bias.zero_() if bias_1 is None else head.bias.copy_(bias_1)
    return head


def score_model(folder: Folder, dtype: torch.dtype, allow_pickle: bool) -> tuple[PreTrainedModel, nn.Linear]:
    """(a causal model around the reward model's trunk, its score head)."""
    with quiet():
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder.path),
                config=folder.config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=None if allow_pickle and not folder.tensors else True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise GroError(f"{folder.path}: the reward model cannot be loaded: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:5])
        if not any(name.startswith(f"{model.base_model_prefix}.") for name in missing):
            raise GroError(
                f"{folder.path} is not a reward model: it has no score head ({names}); `gro reward-model` makes one"
            )
        raise GroError(f"{folder.path}: {len(missing)} tensors of the model are not in its files: {names}")
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        found = f"{score.out_features} labels" if isinstance(score, nn.Linear) else "no score head"
        raise GroError(f"{folder.path}: found {found}; expected a reward model, whose head gives one score")
    return _as_language_model(model.base_model), _head(score.weight.detach(), score.bias)


def _as_language_model(trunk: Any) -> PreTrainedModel:
    """A causal model around this trunk, its output embedding tied to the input's: the form that can be probed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(trunk.config)
    setattr(model, model.base_model_prefix, trunk)
    embedding = trunk.get_input_embeddings()
    output = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False, device="meta")
    output.weight = embedding.weight
    model.set_output_embeddings(output)
    return model.eval()
