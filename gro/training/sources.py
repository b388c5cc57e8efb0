"""Where the groups of a step come from: rows of files, rollouts of the policy (`gro.training.rollouts`), or both in
fixed shares.

Nearly everything is a function of the step.  What is not (a replay buffer, rewards that were given once) a source tells
as its `state`, which a resumed run gives back.

A source is an endless sequence of groups, numbered from 0; step s takes the numbers s·n … s·n + n − 1.  A sequence over
D rows is one permutation of the rows after the other, keyed by (seed, epoch).  In a mixture, number i of the whole is
the next number of one part, such that the counts of the parts follow their shares as closely as whole numbers can
(Webster's method: the j-th group of a part with share w is due at (j + ½)/w; ties go to the earlier part).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from gro.types import Group


class Part(Protocol):
    """A source that can be a part of a mixture."""

    @property
    def observed(self) -> Mapping[str, float]:
        """Metrics of all that the latest draw saw, also of what it gave no one to learn from."""
        ...

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """The groups numbered from `start`; `step` keys the sampling of those that are rolled out."""
        ...

    def receive(self, policy: Any, step: int) -> None:
        """The policy was updated; rollouts from now on are its."""
        ...

    def state(self) -> dict[str, Any]:
        """What is no function of the step, in plain values, as a resumed run needs it."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        ...


class Stateless:
    """A source of which everything is a function of the step."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to go on from."""


class Offline(Stateless):
    """Rows as they are, in an order keyed by (seed, epoch).

    >>> Offline(load_dataset(spec, tokenizer), per_step=8, seed=0)
    """

    def __init__(self, rows: Sequence[Group], per_step: int, seed: int = 0) -> None:
        """`per_step`: groups a step takes, where this is not a part of a mixture."""
        check_rows(rows, per_step)
        self._rows, self._per_step, self._order = rows, per_step, Order(len(rows), seed)
        self.observed: dict[str, float] = {}

    def take(self, step: int) -> list[Group]:
        """The groups of this step."""
        return self.draw(step * self._per_step, self._per_step, step)

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """The groups numbered from `start`."""
        return [self._rows[i] for i in self._order.rows(start, count)]

    def receive(self, policy: Any, step: int) -> None:
        """Files do not change with the policy."""


class Mixture:
    """Several sources in fixed shares; a mixture can be a part of another.

    >>> Mixture([(online, 0.75), (demonstrations, 0.25)], per_step=16)
    """

    def __init__(self, parts: Sequence[tuple[Part, float]], per_step: int) -> None:
        """Weights are relative.  What a part itself would take per step plays no role here."""
        if not parts or any(not (math.isfinite(w) and w > 0) for _, w in parts):
            raise ValueError(f"a mixture needs parts with positive weights, found {[w for _, w in parts]}")
        if per_step < 1:
            raise ValueError(f"a step takes at least 1 group, found {per_step}")
        weights = [Fraction(w) for _, w in parts]
        self._parts = tuple(part for part, _ in parts)
        self._shares = tuple(w / sum(weights) for w in weights)
        self._per_step = per_step
        self.observed: dict[str, float] = {}

    def take(self, step: int) -> list[Group]:
        """The groups of this step, part by part."""
        return self.draw(step * self._per_step, self._per_step, step)

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """The groups numbered from `start`, part by part."""
        before, after = apportion(start, self._shares), apportion(start + count, self._shares)
        groups: list[Group] = []
        self.observed = {}
        for part, a, b in zip(self._parts, before, after, strict=True):
            if b > a:
                groups += part.draw(a, b - a, step)
                self.observed |= part.observed
        return groups

    def receive(self, policy: Any, step: int) -> None:
        """Tells every part."""
        for part in self._parts:
            part.receive(policy, step)

    def state(self) -> dict[str, Any]:
        """Part by part."""
        return {"parts": [part.state() for part in self._parts]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Part by part."""
        for part, kept in zip(self._parts, state["parts"], strict=True):
            part.load(kept)


class Order:
    """An endless order of n rows: permutation after permutation, each keyed by (seed, epoch).

    It sorts by a hash and not by a library's generator, whose stream may change with its version.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> list[int]:
        """Rows at the places `start` … `start + count − 1`."""
        return [self._at(place) for place in range(start, start + count)]

    def _at(self, place: int) -> int:
        epoch, i = divmod(place, self._n)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self._n, self._seed, epoch)
        return int(self._permutation[i])


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [n]: the numbers below n in an order keyed by (seed, epoch)."""
    mask = (1 << 64) - 1
    key = np.array([seed & mask], np.uint64)
    key = _mix(_mix(key) ^ np.uint64(epoch & mask))
    return np.argsort(_mix(_mix(np.arange(n, dtype=np.uint64)) ^ key), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64, https://doi.org/10.1145/2714064.2660195: a bijection of 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """How many of the first `total` groups belong to each share; never decreases with the total (Webster's method)."""
    # Webster's counts lie within half the number of parts of the exact shares: start below, then hand out the rest.
    counts = [max(0, math.floor(total * share) - len(shares)) for share in shares]
    while sum(counts) < total:
        due = min(range(len(shares)), key=lambda k: (Fraction(2 * counts[k] + 1) / shares[k], k))
        counts[due] += 1
    return counts


def check_rows(rows: Sequence[Group], per_step: int) -> None:
    if not len(rows):
        raise ValueError("a source needs at least one row")
    if per_step < 1:
        raise ValueError(f"a step takes at least 1 group, found {per_step}")
