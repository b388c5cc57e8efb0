"""A batch for any algorithm to learn from: groups, what is known of their tokens, and the form each algorithm needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gro.errors import GroError
from gro.objective import Algorithm, select
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.training.batching import Minibatch, collate
from gro.training.shaping import best_against_worst, with_mismatches
from gro.types import Completion, Group, Prompt, rows_of

Place = tuple[int, int]
"""A completion of the material: which group, which of its completions."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What algorithms are compared on.

    >>> Material((Group(Prompt(ids=(1,)), (Completion(ids=(2,), reward=1.0), Completion(ids=(3,), reward=-1.0))),))
    """

    groups: tuple[Group, ...]
    tokens: Mapping[Place, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """By completion: what a run recorded of its tokens (old, ref, value), where there was a run."""
    length_limit: int | None = None
    """Most tokens a completion might have had; None: the longest."""

    @property
    def places(self) -> list[Place]:
        """Every completion, in batch order."""
        return [(g, i) for g, group in enumerate(self.groups) for i in range(len(group.completions))]

    def completion(self, place: Place) -> Completion:
        """The completion at this place."""
        return self.groups[place[0]].completions[place[1]]

    def knows(self, name: str) -> bool:
        """Whether a quantity was recorded of every completion."""
        return all(name in self.tokens.get(place, {}) for place in self.places)

    def known(self, name: str, places: Sequence[Place | None], width: int) -> Tensor:
        """[B, T] what was recorded of these completions; 0 where there is none."""
        out_BT = torch.zeros(len(places), width)
        for b, place in enumerate(places):
            if place is not None:
                values_T = torch.tensor(self.tokens[place][name])
                out_BT[b, : len(values_T)] = values_T
        return out_BT

    def shaped(self, algorithm: Algorithm, device: torch.device | str = "cpu") -> tuple[Minibatch, list[Place | None]]:
        """The minibatch that the algorithm would learn from, and which completion each of its rows is.

        Of more than two samples a preference algorithm gets the best and the worst, and KTO gets completions of other
        prompts, which have no place.
        """
        groups = list(self.groups)
        if algorithm.pairs and any(len(_samples(g)) > 2 for g in groups):
            groups = [best_against_worst([group])[0][0] for group in groups]
        if algorithm.mismatches:
            groups = with_mismatches(groups)[0]
        limit = self.length_limit or max(len(c.ids) for g in self.groups for c in g.completions)
        return collate(groups, length_limit=limit, device=device), [self._place(g, c) for g, _, c in rows_of(groups)]

    def _place(self, group: int, completion: Completion) -> Place | None:
        own = self.groups[group].completions
        return next(((group, i) for i, c in enumerate(own) if c is completion), None)


def recorded(reader: RunReader, step: int | None, limit: int) -> tuple[Material, int]:
    """The first groups that a run recorded of a step (None: the last that has any), and the step."""
    steps = reader.rollout_steps()
    if not steps:
        raise GroError(f"{reader.path} has recorded no rollouts; its recipe may say training.record_groups: 0")
    step = steps[-1] if step is None else step
    if step not in steps:
        there = f"it has those of {len(steps)} steps from {steps[0]} to {steps[-1]}"
        raise GroError(f"--step: {reader.path} has no rollouts of step {step}; {there}")
    by_group: dict[int, list[RolloutRecord]] = {}
    for record in reader.rollouts(step):
        by_group.setdefault(record.group, []).append(record)
    kept = list(by_group.values())[:limit]
    groups = tuple(Group(_prompt(records[0]), tuple(map(_completion, records))) for records in kept)
    tokens = {(g, i): record.tokens for g, records in enumerate(kept) for i, record in enumerate(records)}
    sampled = any(c.finish != "given" for g in groups for c in g.completions)
    longest = reader.config.get("sampling", {}).get("max_new_tokens") if sampled else None
    return Material(groups, tokens, longest), step


def _prompt(record: RolloutRecord) -> Prompt:
    return Prompt(tuple(record.prompt_ids), record.key, {"prompt": record.prompt})


def _completion(record: RolloutRecord) -> Completion:
    trained, sampler = record.tokens.get("trained"), record.tokens.get("sampler")
    return Completion(
        ids=tuple(record.completion_ids),
        trained=None if trained is None else tuple(bool(t) for t in trained),
        role=record.role,
        reward=record.reward,
        rewards=record.rewards,
        logp=None if sampler is None else tuple(sampler.tolist()),
        temperature=record.temperature,
        finish=record.finish,
        version=record.version,
    )


def with_drift(material: Material, logp_BT: Tensor, drift: float, seed: int = 0) -> Material:
    """Old log-probs that normal noise of this size, in nats, separates from the policy's: what clips look like."""
    noise = torch.Generator().manual_seed(seed)
    old_BT = (logp_BT.cpu() + drift * torch.randn(logp_BT.shape, generator=noise)).clamp(max=0.0)
    tokens = {
        place: {**material.tokens.get(place, {}), "old": old_BT[b, : len(material.completion(place).ids)].numpy()}
        for b, place in enumerate(material.places)
    }
    return replace(material, tokens=tokens)


def why_not(algorithm: Algorithm, material: Material) -> str | None:
    """Why the algorithm cannot learn from these groups; None where it can."""
    if algorithm.scores:
        return "it trains a reward model, and this is a policy"
    samples = [_samples(g) for g in material.groups]
    targets = [[c for c in g.completions if c.role == "target"] for g in material.groups]
    if "greedy" in algorithm.reads and any(g.greedy_reward is None for g in material.groups):
        return "it compares with the reward of the greedy answer, which nobody sampled"
    if algorithm.beside and not any(a and b for a, b in zip(samples, targets, strict=True)):
        return "it needs a demonstration and samples of the same prompt"
    if algorithm.roles <= {"targets"}:
        return None if any(targets) else "it learns from demonstrations, and there are none"
    scored = max((sum(c.reward is not None for c in cs) for cs in samples), default=0)
    if algorithm.rewarded and not scored:
        return "it learns from completions with rewards or labels, and there are none"
    if algorithm.rewarded and scored < algorithm.credit.group_size:
        return f"it compares at least {algorithm.credit.group_size} completions of a prompt, and here is {scored}"
    return None


def nothing_selected(algorithm: Algorithm, minibatch: Minibatch) -> str | None:
    """Why no row of the credited minibatch takes part; None where one does."""
    if any(bool(select(term.rows, minibatch.batch).any()) for term in algorithm.terms):
        return None
    pairs = "no prompt has two answers of which one is better" if algorithm.roles & {"paired", "chosen"} else ""
    return pairs or "none of the completions is of the kind that it learns from"


def _samples(group: Group) -> list[Completion]:
    return [c for c in group.completions if c.role == "sample"]
