"""Replies to verdicts, strictly: what is not clear is not guessed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

PAIRS = r"Verdict: *(A|B|tie)"
SCORES = r"Score: *([-+]?[0-9]+(?:\.[0-9]+)?)"
_DECORATION = " \t*_`#"
"""What models put around a line to make it bold or a heading."""
_PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class UnclearError(Exception):
    """The reply has no clear verdict."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How a verdict is read.

    It stands on the last line that is not empty, which matches the pattern as a whole.  A reply in which another line
    is another verdict (quoted from an answer, or a change of mind) is unclear.

    >>> Verdicts.pairs()("Both are right, B is shorter.\\nVerdict: B")
    0.0
    """

    pattern: str
    low: float = 0.0
    high: float = 1.0
    names: bool = True
    """The verdict is A (1), B (0) or tie (½), and not a number between low and high."""

    @classmethod
    def pairs(cls, pattern: str | None = None) -> Verdicts:
        """A, B or tie, as how good A is."""
        return cls(pattern or PAIRS)

    @classmethod
    def scores(cls, low: float, high: float, pattern: str | None = None) -> Verdicts:
        """A number on this scale."""
        return cls(pattern or SCORES, low, high, names=False)

    def __call__(self, reply: str) -> float:
        """The verdict; raises UnclearError."""
        lines = [line.strip(_DECORATION) for line in reply.splitlines() if line.strip(_DECORATION)]
        if not lines:
            raise UnclearError("the reply is empty")
        found = [match.group(1) for line in lines if (match := self._match(line))]
        if not self._match(lines[-1]):
            raise UnclearError(f"the last line is no verdict, but {_short(lines[-1])!r}")
        values = {self._value(text) for text in found}
        if len(values) > 1:
            raise UnclearError(f"the reply has several verdicts: {', '.join(map(repr, found))}")
        return values.pop()

    def _match(self, line: str) -> re.Match[str] | None:
        return re.fullmatch(self.pattern, line, re.IGNORECASE)

    def _value(self, text: str | None) -> float:
        text = (text or "").strip()
        if self.names:
            if text.lower() not in _PREFERENCES:
                raise UnclearError(f"the verdict is {_short(text)!r}; expected A, B or tie")
            return _PREFERENCES[text.lower()]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise UnclearError(f"the score is {_short(text)!r}; expected a number from {self.low:g} to {self.high:g}")
        return value


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:60] + " … " + text[-15:]
