"""Rollouts of earlier steps, learnt from again."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from gro.training.sources import Part, permutation
from gro.types import Completion, Group, Prompt


class Replay:
    """The latest groups of a part, first in, first out; every step adds fresh ones and learns from some of all.

    The buffer of advantage-weighted regression (Peng et al. 2019, algorithm 1).  Which ones is keyed by (seed, step).
    The log-probs of the old policy are not kept: they are recomputed before every step.

    >>> Replay(online, capacity=2048, per_step=64, fresh=16)
    """

    def __init__(self, part: Part, *, capacity: int, per_step: int | None = None, fresh: int, seed: int = 0) -> None:
        """`capacity`: groups kept.  `per_step`: groups learnt from; None: as many as are fresh.  `fresh`: groups a step
        adds, where this is not a part of a mixture."""
        if min(capacity, fresh, fresh if per_step is None else per_step) < 1:
            raise ValueError(f"capacity, per_step and fresh are at least 1, found {capacity}, {per_step} and {fresh}")
        self._part, self._per_step, self._fresh, self._seed = part, per_step, fresh, seed
        self._kept: deque[tuple[int, Group]] = deque(maxlen=capacity)
        self.observed: dict[str, float] = {}

    def take(self, step: int) -> list[Group]:
        """The groups of this step."""
        return self.draw(step * self._fresh, self._fresh, step)

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """Adds the part's groups numbered from `start`, and draws from all without putting back."""
        # Rewards have read the columns of the row, in which there may be what no state can hold, such as a time.
        fresh = self._part.draw(start, count, step)
        self._kept.extend((step, replace(group, prompt=replace(group.prompt, row={}))) for group in fresh)
        # Not the key of the prompts' order, or old places in it would come with certain places here.
        order = permutation(len(self._kept), ~self._seed, step)
        drawn = [self._kept[i] for i in sorted(order[: self._per_step or count].tolist())]
        self.observed = {
            **self._part.observed,
            "replay/groups": float(len(self._kept)),
            "replay/age": fmean(step - born for born, _ in drawn) if drawn else 0.0,
        }
        return [group if born == step else _aged(group) for born, group in drawn]

    def receive(self, policy: Any, step: int) -> None:
        """Passed on."""
        self._part.receive(policy, step)

    def state(self) -> dict[str, Any]:
        """The buffer in plain values, as a resumed run needs it."""
        kept = [{"step": born, "group": asdict(group)} for born, group in self._kept]
        return {"kept": kept, "part": self._part.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The buffer as `state` gave it."""
        self._part.load(state["part"])
        self._kept.clear()
        self._kept.extend((item["step"], _group(item["group"])) for item in state["kept"])


def _aged(group: Group) -> Group:
    """Without the sampler's log-probs: they are those of other weights, and no error of the sampler."""
    return replace(group, completions=tuple(replace(c, logp=None) for c in group.completions))


def _group(plain: Mapping[str, Any]) -> Group:
    """The group that `asdict` made plain; lists, which JSON makes of tuples, are tuples again."""

    def whole(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    completions = tuple(Completion(**whole(c)) for c in plain["completions"])
    return Group(**{**plain, "prompt": Prompt(**whole(plain["prompt"])), "completions": completions})
