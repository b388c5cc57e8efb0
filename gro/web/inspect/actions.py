"""What a policy would do in a state: its most probable next tokens, beside the reference's and the sampler's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from gro.config import Config
from gro.engines.base import Sampling
from gro.engines.sampling import restricted
from gro.errors import GroError
from gro.policy import probe
from gro.policy.policy import Policy
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.training import sharded_state
from gro.web.inspect.checkpoints import PARTS, WHOLE, Weights, nearest, reference_of, saved, start_folder

TOP = 50


@dataclass(frozen=True, slots=True)
class State:
    """The distributions over next tokens after a prefix, for the policy's most probable ones and the one taken."""

    ids: tuple[int, ...]
    policy: tuple[float, ...]
    """Probabilities at the temperature at which the trainer scores the sample."""
    reference: tuple[float, ...] | None
    sampler: tuple[float, ...] | None
    """After temperature, top-k and top-p, renormalised: what would be drawn from.  None: nobody drew, as from files."""
    rank: int
    """Of the token that was taken, from 1, under the policy."""
    entropy: float


def top_actions(
    policy_V: Tensor,
    reference_V: Tensor | None,
    sampler_V: Tensor | None,
    taken: int,
    sampling: Sampling,
    *,
    top: int = TOP,
) -> State:
    """A state from logits over the vocabulary; the token that was taken is the last where it is not among the top.

    sampler_V: of the policy that sampled, which is restricted here.
    """
    if taken >= len(policy_V):
        raise GroError(f"token {taken} is not in the model's vocabulary of {len(policy_V)}: it is not this run's model")
    logp_V = (policy_V.double() / sampling.scored_at).log_softmax(-1)
    best = logp_V.topk(min(top, len(logp_V))).indices.tolist()
    ids = best if taken in best else [*best, taken]
    index = torch.tensor(ids)

    def probabilities(logits_V: Tensor) -> Tensor:
        return (logits_V.double() / sampling.scored_at).softmax(-1)

    sampler = None
    if sampler_V is not None:
        weight_V = restricted(probabilities(sampler_V)[None], sampling)[0]
        sampler = tuple((weight_V / weight_V.sum())[index].tolist())
    return State(
        ids=tuple(ids),
        policy=tuple(logp_V.exp()[index].tolist()),
        reference=None if reference_V is None else tuple(probabilities(reference_V)[index].tolist()),
        sampler=sampler,
        rank=int((logp_V > logp_V[taken]).sum()) + 1,
        entropy=float(-(logp_V.exp() * logp_V).nan_to_num(0.0).sum()),
    )


@dataclass(frozen=True, slots=True)
class Whose:
    """Of which weights a state's distributions are."""

    policy: Weights
    reference: Weights | None
    sampler: Weights | None
    """The policy, but where the completion is of an earlier step, as from a buffer.  None: nobody drew."""


class Models:
    """The models that the latest question needed; the next one may need the same."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise GroError(f"--device {device}: torch finds no CUDA device here; auto takes what there is")
        self.config, self.device = config, device
        self._kept: dict[tuple[Weights, tuple[int, int]], PreTrainedModel] = {}

    def logits(self, needed: Iterable[Weights], start: Path | None, ids: Sequence[int]) -> dict[Weights, Tensor]:
        """By weights, [V] of the token after these ids, on the host in double precision."""
        keys = {(weights, weights.version) for weights in needed}
        self._kept = {key: model for key, model in self._kept.items() if key in keys}
        found: dict[Weights, Tensor] = {}
        for key in keys:
            if key not in self._kept:
                self._kept[key] = self._load(key[0], start)
            model = self._kept[key]
            with torch.inference_mode():
                out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
            found[key[0]] = out.logits[0, -1].double().cpu()
        return found

    def _load(self, weights: Weights, start: Path | None) -> PreTrainedModel:
        how: dict[str, Any] = {
            "dtype": self.config.model.dtype,
            "device": self.device,
            "allow_pickle": self.config.model.allow_pickle,
        }
        if weights.kind == "model":
            policy = Policy.load(weights.path, **how)
        else:
            assert start is not None, "a state lies over the starting model"
            policy = Policy.load(start, **how, lora=self.config.model.lora, seed=self.config.training.seed)
            _fill(policy, weights)
        policy.model.set_attn_implementation(probe.stock_attention(policy.model))
        return policy.model


def _fill(policy: Policy, weights: Weights) -> None:
    """Gives the policy the weights that a state has of it, or of the reference."""
    name = "weights" if weights.kind == "policy" else "reference"
    if (weights.path / PARTS).is_dir():
        whose = "policy/" if weights.kind == "policy" else "reference reference/"
        trained = {whose + name: tensor for name, tensor in policy.trained().items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is one process that reads
            sharded_state.read(trained, weights.path, among=whose)
    else:
        policy.load_trained(load_file(weights.path / WHOLE.format(name)))


def state_of(
    reader: RunReader, models: Models, step: int, record: RolloutRecord, at: int, attempts: int = 3
) -> tuple[State, Whose]:
    """The state before token `at` of a completion, and whose it is; GroError where no model can be loaded.

    A run that goes on removes old states, so what was there may have gone when it is read: then it is looked for again.
    """
    whose = whose_of(reader, models.config, step, record)
    needed = [weights for weights in (whose.policy, whose.reference, whose.sampler) if weights is not None]
    prefix = [*record.prompt_ids, *record.completion_ids[:at]]
    settings = models.config.sampling
    sampling = Sampling(temperature=record.temperature, top_p=settings.top_p, top_k=settings.top_k)
    try:
        logits = models.logits(needed, start_folder(reader), prefix)
    except (GroError, OSError, SafetensorError):
        if attempts == 1 or whose_of(reader, models.config, step, record) == whose:
            raise
        return state_of(reader, models, step, record, at, attempts - 1)
    reference_V = None if whose.reference is None else logits[whose.reference]
    sampler_V = None if whose.sampler is None else logits[whose.sampler]
    taken = record.completion_ids[at]
    return top_actions(logits[whose.policy], reference_V, sampler_V, taken, sampling), whose


def whose_of(reader: RunReader, config: Config, step: int, record: RolloutRecord) -> Whose:
    """The weights that a step saw, as far as they are on disk; GroError where none are."""
    found = saved(reader)
    drawn = record.finish != "given"
    return Whose(
        nearest(found, step - 1, reader.path),
        reference_of(reader, step, config.training.refresh_reference),
        nearest(found, record.version, reader.path) if drawn else None,
    )
