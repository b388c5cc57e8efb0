"""Completions that a reward could not score, and when there are too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gro.errors import GroError
from gro.rewards.batch import Kind


@dataclass(frozen=True, slots=True)
class Failure:
    """A completion that a reward could not score, with what is needed to see why."""

    reward: str
    kind: Kind
    message: str
    step: int
    prompt_key: int
    """Identity of the prompt in its source."""
    sample: int
    """Which completion of its group."""
    prompt: str
    completion: str
    traceback: str = ""
    output: str = ""
    """The end of what the reward printed."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often rewards have failed on some completions, which may be a process's part of a step."""

    asked: int
    """How many completions there were."""
    failures: Sequence[Failure]
    share: float
    """Of a step's completions; the run stops above it."""

    @property
    def too_many(self) -> dict[str, int]:
        """How often each reward has failed that did so too often."""
        counts = Counter(failure.reward for failure in self.failures)
        return {name: failed for name, failed in counts.items() if failed / self.asked > self.share}


def refuse_failures(*parts: Tally) -> None:
    """Raises GroError if a reward failed on more than the permitted share of what all parts hold together."""
    if not parts:
        return
    asked = sum(part.asked for part in parts)
    whole = Tally(asked, [failure for part in parts for failure in part.failures], parts[0].share)
    for name, failed in whole.too_many.items():
        first = next(failure for failure in whole.failures if failure.reward == name)
        raise GroError(
            f"reward {name!r} failed on {failed} of {asked} completions ({failed / asked:.0%}; the run stops above "
            f"{whole.share:.0%}). The first: {first.message}\n"
            f"  prompt:     {_short(first.prompt)}\n  completion: {_short(first.completion)}\n"
            + "\n".join(text.rstrip() for text in (first.traceback, first.output) if text)
        )


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:120] + " … " + text[-60:]
