"""Between which scores a reward model knows its way.  Light to import: workers and the trainer read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles

from gro.errors import GroError

SCORES = "scores.json"
"""Beside an exported reward model: between which scores its own rows lie."""


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """Between which scores 98 % of a reward model's own rows lie; beyond, a score is an extrapolation."""

    low: float
    high: float
    rows: int
    """Completions that it was taken from."""

    @classmethod
    def of(cls, scores: Sequence[float]) -> ScoreRange:
        """Of at least 2 scores: their 1st and 99th percentile.

        >>> ScoreRange.of([float(i) for i in range(101)])
        ScoreRange(low=1.0, high=99.0, rows=101)
        """
        percentiles = quantiles(scores, n=100, method="inclusive")
        return cls(percentiles[0], percentiles[-1], len(scores))

    def write(self, folder: str | Path) -> None:
        """Beside an exported model."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
        (Path(folder) / SCORES).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> ScoreRange | None:
        """Of the model in this folder; None where nothing is known of its rows; GroError where it is no range."""
        path = Path(folder) / SCORES
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(float(found["low"]), float(found["high"]), int(found["rows"]))
        except (KeyError, TypeError, ValueError) as error:
            raise GroError(f"{path} holds no range of scores (low, high, rows); remove it to do without") from error

    def share_outside(self, scores: Sequence[float]) -> float:
        """Of at least one score."""
        return sum(not self.low <= score <= self.high for score in scores) / len(scores)
