"""What a policy would do in a state: its most probable next tokens, beside the reference's and the sampler's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from gro.web.inspect.checkpoints import Weights, nearest, saved, start_folder

TOP = 50
KEPT = 2
"""Models in memory: a policy and the reference."""


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
    policy_V: Tensor, reference_V: Tensor | None, taken: int, sampling: Sampling, *, drawn: bool = True, top: int = TOP
) -> State:
    """A state from logits over the vocabulary; the token that was taken is the last where it is not among the top."""
    if taken >= len(policy_V):
        raise GroError(f"token {taken} is not in the model's vocabulary of {len(policy_V)}: it is not this run's model")
    scaled_V = policy_V.double() / sampling.scored_at
    logp_V = scaled_V.log_softmax(-1)
    best = logp_V.topk(min(top, len(logp_V))).indices.tolist()
    ids = best if taken in best else [*best, taken]
    index = torch.tensor(ids)
    weight_V = restricted(logp_V.exp()[None], sampling)[0]
    reference = None
    if reference_V is not None:
        reference = tuple((reference_V.double() / sampling.scored_at).softmax(-1)[index].tolist())
    return State(
        ids=tuple(ids),
        policy=tuple(logp_V.exp()[index].tolist()),
        reference=reference,
        sampler=tuple((weight_V / weight_V.sum())[index].tolist()) if drawn else None,
        rank=int((logp_V > logp_V[taken]).sum()) + 1,
        entropy=float(-(logp_V.exp() * logp_V).nan_to_num(0.0).sum()),
    )


class Models:
    """The models of a run, loaded when they are asked for, the last few kept."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.config, self.device = config, device
        self._kept: OrderedDict[tuple[Path, str], PreTrainedModel] = OrderedDict()

    def logits(self, weights: Weights, start: Path | None, ids: Sequence[int]) -> Tensor:
        """[V] of the token after these, on the host in double precision."""
        model = self._model(weights, start)
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
        return out.logits[0, -1].double().cpu()

    def _model(self, weights: Weights, start: Path | None) -> PreTrainedModel:
        key = (weights.path, weights.kind)
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = self._load(weights, start)
        self._kept.move_to_end(key)
        return self._kept[key]

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
            policy.load_trained(load_file(weights.path / "weights.safetensors"))
        policy.model.set_attn_implementation(probe.stock_attention(policy.model))
        return policy.model


def state_of(reader: RunReader, models: Models, step: int, record: RolloutRecord, at: int) -> tuple[State, Weights]:
    """The state before token `at` of a completion, and whose it is; GroError where no model can be loaded."""
    weights = nearest(saved(reader), step - 1, reader.path)
    start = start_folder(reader)
    prefix = [*record.prompt_ids, *record.completion_ids[:at]]
    settings = models.config.sampling
    sampling = Sampling(temperature=record.temperature, top_p=settings.top_p, top_k=settings.top_k)
    policy_V = models.logits(weights, start, prefix)
    reference_V = None if start is None else models.logits(Weights(0, start, "model"), start, prefix)
    drawn = record.finish != "given"
    return top_actions(policy_V, reference_V, record.completion_ids[at], sampling, drawn=drawn), weights
