"""The first batch of a run, as far as it is known before there is a policy: its rows and the weight of each token.

The rows are those that step 1 learns from, drawn by the run's own sources.  The weights are the objective's own
coefficients for a policy that equals the reference and the old policy, all of whose log-ratios are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gro.assemble import Data, longest_offline
from gro.config import Config
from gro.objective import Algorithm, coefficients
from gro.policy.reward_model import judged
from gro.training.batching import Minibatch, collate
from gro.training.shaping import best_against_worst, with_mismatches
from gro.training.sources import Mixture, Offline, Order, Part
from gro.types import Batch, Completion, Group, rows_of

_LIKELY = -1.0
"""A log-prob for algorithms whose unit has no value where a token is certain."""


@dataclass(frozen=True, slots=True)
class Row:
    """A completion, and what its tokens are multiplied by."""

    group: Group
    completion: Completion
    weights: tuple[float, ...] | None
    """−∂loss/∂log-prob per token; None where they need rewards that nobody has given."""


@dataclass(frozen=True, slots=True)
class First:
    """What is learnt from first."""

    rows: tuple[Row, ...]
    """Of files: of the first update of step 1."""
    prompts: tuple[Group, ...] = ()
    """To be answered; the completions are still to come."""
    stance: str = ""
    """Of which policy these are the weights; empty where they are the same for all."""

    @property
    def trained(self) -> int:
        """Tokens that carry loss."""
        return sum(len(c.ids) if c.trained is None else sum(c.trained) for c in _learnt(self.rows))


def first_batch(config: Config, data: Data, algorithm: Algorithm) -> First:
    """Of a run by this recipe."""
    groups = _sources(config, data).take(0)
    prompts = tuple(group for group in groups if not group.completions)
    known = [group for group in groups if group.completions]
    if not known:
        return First((), prompts)
    pending = any(c.role == "sample" and c.reward is None for _, _, c in rows_of(known))
    if algorithm.pairs and not pending and any(dataset.kind == "rewarded" for dataset, _ in data.offline):
        known, _ = best_against_worst(known)
    if algorithm.mismatches:
        known, _ = with_mismatches(known)
    whole = collate([judged(g) for g in known] if algorithm.scores else known, length_limit=_limit(config, data))
    numbers = _numbered(whole, config)
    found, stance = (None, "") if pending and algorithm.rewarded else _weights(numbers, algorithm)
    places = {id(group): index for index, group in enumerate(whole.groups)}
    rows, b = [], 0
    for index in (places[id(group)] for group in numbers.groups):
        for completion in known[index].completions:
            length = len(completion.ids) + (1 if algorithm.scores else 0)
            rows.append(Row(known[index], completion, None if found is None else tuple(found[b, :length].tolist())))
            b += 1
    return First(tuple(rows), prompts, stance)


def _sources(config: Config, data: Data) -> Mixture:
    """As `gro.assemble.source_of` mixes them, with prompts in place of their answers."""
    per_step, seed = config.prompts_per_step, config.training.seed
    offline: list[tuple[Part, float]] = [(Offline(rows, per_step, seed), weight) for rows, weight in data.offline]
    if data.online is None:
        return Mixture(offline, per_step)
    prompts = _Prompts(data.online, seed)
    if config.offline_share is None:
        return Mixture([(prompts, 1.0)], per_step)
    parts: list[tuple[Part, float]] = [
        (prompts, 1 - config.offline_share),
        (Mixture(offline, per_step), config.offline_share),
    ]
    return Mixture([(part, share) for part, share in parts if share > 0], per_step)


class _Prompts:
    """What `gro.training.rollouts.Online` would have answered."""

    def __init__(self, prompts: Sequence[Group], seed: int) -> None:
        self._prompts, self._order = prompts, Order(len(prompts), seed)
        self.observed: dict[str, float] = {}

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        return [Group(self._prompts[i].prompt, ()) for i in self._order.rows(start, count)]

    def receive(self, policy: Any, step: int) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...


def _limit(config: Config, data: Data) -> int:
    return config.sampling.max_new_tokens if config.online else longest_offline(data) + 1


def _numbered(whole: Minibatch, config: Config) -> Minibatch:
    """What the first update of the step sees."""
    parts = min(config.training.minibatches, len(whole.groups))
    return next(whole.epoch(0, parts, config.training.seed, 0))


def _weights(part: Minibatch, algorithm: Algorithm) -> tuple[Tensor | None, str]:
    """[B, T], and of which policy; None where nothing finite comes of it."""
    certain, likely = (coefficients_at(logp, part.batch, algorithm) for logp in (0.0, _LIKELY))
    found = next((c for c in (certain, likely) if bool(c.isfinite().all())), None)
    if "ref" in algorithm.reads:
        return found, "for the policy as it starts, which is its reference"
    return found, "" if torch.equal(certain, likely) else "for a policy to which all tokens are equally likely"


def coefficients_at(logp: float, batch: Batch, algorithm: Algorithm) -> Tensor:
    """[B, T] where policy, old policy and reference give every token this log-prob, and the critic has no opinion."""
    logp_BT = torch.full(batch.mask_BT.shape, logp)
    zeros_BT = torch.zeros_like(logp_BT)
    batch = replace(batch, ref_BT=logp_BT, old_BT=logp_BT, values_BT=zeros_BT, entropy_BT=zeros_BT)
    advantage_BX, _ = algorithm.credit(batch, {})
    return coefficients(logp_BT, replace(batch, advantage_BX=advantage_BX), algorithm)


def _learnt(rows: Sequence[Row]) -> list[Completion]:
    return [row.completion for row in rows if row.completion.role != "mismatch"]
