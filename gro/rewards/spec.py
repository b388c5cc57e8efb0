"""One item of a recipe's `rewards`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gro.errors import GroError


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One item of a recipe's `rewards`.

    >>> RewardSpec.parse({"reward": "maths", "weight": 2.0, "column": "solution"})
    RewardSpec(name_or_path='maths', weight=2.0, params={'column': 'solution'}, time_limit=None, clip=None)
    """

    name_or_path: str | Callable[..., Any]
    """A registered name, `path/to/file.py:function`, `package.module:function`, or a function found by import."""
    weight: float = 1.0
    """What it is multiplied by in the sum."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of the function."""
    time_limit: float | None = None
    """Seconds for one call; None: what the rewards as a whole or the function itself say."""
    clip: tuple[float, float] | None = None
    """[low, high]: what it counts at least and at most, before it is weighted; None: any number."""

    def __post_init__(self) -> None:
        if not _is_number(self.weight):
            raise GroError(f"weight of reward {self.name_or_path!r} must be a finite number, not {self.weight!r}")
        limit = self.time_limit
        if limit is not None and not (_is_number(limit) and limit > 0):
            raise GroError(
                f"time_limit of reward {self.name_or_path!r} must be a number of seconds above 0, not {limit!r}"
            )
        clip: Any = self.clip
        two = isinstance(clip, tuple) and len(clip) == 2 and all(map(_is_number, clip))
        if clip is not None and not (two and clip[0] < clip[1]):
            raise GroError(
                f"clip of reward {self.name_or_path!r} must be two numbers [low, high], the first smaller, not {clip!r}"
            )

    def clipped(self, value: float) -> float:
        """What the value counts."""
        return value if self.clip is None else min(max(value, self.clip[0]), self.clip[1])

    @classmethod
    def parse(cls, item: Any) -> RewardSpec:
        """From a recipe: a string, or a mapping {reward, weight, time_limit, clip, ...further keywords}."""
        if isinstance(item, RewardSpec):
            return item
        if isinstance(item, str) or callable(item):
            return cls(item)
        if not isinstance(item, Mapping):
            raise GroError(f"an item of rewards is a name or a mapping with `reward:`, not {item!r}")
        rest = {str(key): value for key, value in item.items()}
        if "reward" not in rest:
            raise GroError(f"an item of rewards has no key 'reward', but {', '.join(map(repr, rest)) or 'none at all'}")
        place = rest.pop("reward")
        if not isinstance(place, str) and not callable(place):
            raise GroError(f"reward must be a name or path/to/file.py:function, not {place!r}")
        weight, time_limit = rest.pop("weight", 1.0), rest.pop("time_limit", None)
        clip = rest.pop("clip", None)
        return cls(place, weight, rest, time_limit, tuple(clip) if isinstance(clip, list) else clip)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
