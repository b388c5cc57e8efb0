"""What pictures and comparisons read of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gro.runs.plain import encodable
from gro.runs.reader import RunReader


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A run's metrics with its name and configuration.

    >>> Series("runs/a", {"algorithm": {"name": "dpo"}}, {"loss": (np.array([1, 2]), np.array([0.7, 0.6]))})
    """

    name: str
    config: Mapping[str, Any]
    """As resolved."""
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """By name: the steps (int64, ascending) and the values (float64; NaN where not finite)."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    """Of its newest session."""

    @classmethod
    def read(cls, run: RunReader, name: str) -> Series:
        """What a run has recorded until now."""
        return cls(name, run.config, run.metrics(), run.versions)

    @property
    def algorithm(self) -> str:
        """Its name; `run` where the configuration has none."""
        found = self.config.get("algorithm")
        found = found.get("name") if isinstance(found, Mapping) else found
        return encodable(str(found)) if found else "run"


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path by as many of its last parts as tell it from the others.

    >>> short_names([Path("/runs/a/grpo"), Path("/runs/b/grpo"), Path("/runs/b/dpo")])
    ['a/grpo', 'b/grpo', 'dpo']
    """
    parts = [path.absolute().parts for path in paths]
    ends = Counter(own[-n:] for own in set(parts) for n in range(1, len(own) + 1))

    def name(own: tuple[str, ...]) -> str:
        many = next((n for n in range(1, len(own)) if ends[own[-n:]] == 1), len(own))
        return str(Path(*own[-many:]))

    return [name(own) for own in parts]
