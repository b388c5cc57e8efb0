"""A step's groups in the form that an algorithm learns from: pairs of many samples, completions of other prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from gro.training.metrics import alike
from gro.types import Completion, Group

Shape = Callable[[Sequence[Group]], tuple[list[Group], dict[str, float]]]
"""Groups to groups, and metrics of what became of them."""


class Inner(Protocol):
    """The source whose groups are shaped."""

    @property
    def observed(self) -> Mapping[str, float]: ...

    def take(self, step: int) -> list[Group]: ...

    def receive(self, policy: Any, step: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...


class Shaped:
    """A source through one shape after the other."""

    def __init__(self, source: Inner, shapes: Sequence[Shape]) -> None:
        self._source, self._shapes = source, tuple(shapes)
        self.observed: dict[str, float] = {}

    def take(self, step: int) -> list[Group]:
        """The groups of this step, shaped."""
        groups = self._source.take(step)
        self.observed = dict(self._source.observed)
        for shape in self._shapes:
            groups, metrics = shape(groups)
            self.observed |= metrics
        return groups

    def receive(self, policy: Any, step: int) -> None:
        """Passed on."""
        self._source.receive(policy, step)

    def state(self) -> dict[str, Any]:
        """That of the source: shapes have none."""
        return self._source.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Passed on."""
        self._source.load(state)


def best_against_worst(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """Each group's samples reduced to the best and the worst, which keep their rewards; demonstrations stay.

    Where several are equally good, the first is taken.  Groups whose samples are all equally good, or of which fewer
    than two have a reward, are left out; if all are, the first stays, from which nothing is learnt, so that there is a
    step.
    """
    kept: list[Group] = []
    pairs = ties = 0
    for group in groups:
        samples = [c for c in group.completions if c.role == "sample"]
        if not samples:
            kept.append(group)
        elif (pair := _extremes(samples)) is not None:
            pairs += 1
            kept.append(_only(group, pair))
        else:
            ties += 1
    if not kept:
        kept.append(_only(groups[0], [c for c in groups[0].completions if c.role == "sample"][:2]))
    return kept, {"pairs": float(pairs), "pairs/ties": float(ties)}


def with_mismatches(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """Each group with a completion of the next one that has another prompt, as role `mismatch`; the last is followed by
    the first.

    The KL estimate of KTO (Ethayarajh et al. 2024, sec. 4.1): y_j on x_i.  None where all groups have one prompt.
    """
    shaped = []
    for i, group in enumerate(groups):
        others = (groups[(i + k) % len(groups)] for k in range(1, len(groups)))
        other = next((g for g in others if g.prompt.ids != group.prompt.ids and g.completions), None)
        borrowed = () if other is None else (_mismatch(other.completions[0]),)
        shaped.append(replace(group, completions=group.completions + borrowed))
    return shaped, {}


def _extremes(samples: Sequence[Completion]) -> tuple[Completion, Completion] | None:
    """The best and the worst; None where they are equally good, or nobody knows."""
    rewards = {i: c.reward for i, c in enumerate(samples) if c.reward is not None}
    if not rewards or alike(list(rewards.values())):
        return None
    best, worst = max(rewards, key=rewards.__getitem__), min(rewards, key=rewards.__getitem__)
    return samples[best], samples[worst]


def _only(group: Group, samples: Sequence[Completion]) -> Group:
    others = tuple(c for c in group.completions if c.role != "sample")
    return replace(group, completions=(*samples, *others))


def _mismatch(completion: Completion) -> Completion:
    """Without what was true of it on its own prompt."""
    return replace(completion, role="mismatch", reward=None, rewards={}, logp=None)
