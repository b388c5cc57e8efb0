"""An engine that says what it is told: for tests of whatever stands above engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gro.engines.base import Progress, Sampling
from gro.types import Completion, Prompt

Script = Callable[[Prompt, int], Completion]
"""(prompt, index of the sample) → its completion."""


class ScriptedEngine:
    """Returns the completions of a script, with version and temperature filled in as an engine would.

    >>> ScriptedEngine(lambda prompt, i: Completion(ids=(5, 2), logp=(-0.1, -0.2), finish="stop"))
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.version = 0
        self.closed = False
        self.calls: list[tuple[int, int]] = []
        """(seed, step) of each call to `generate`."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        on_progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """The script's completions of each prompt."""
        assert not self.closed, "generate after close"
        self.calls.append((seed, step))
        groups = [
            tuple(
                replace(self.script(prompt, i), version=self.version, temperature=sampling.scored_at, role="sample")
                for i in range(n)
            )
            for prompt in prompts
        ]
        if on_progress:
            on_progress(len(prompts) * n, sum(len(c.ids) for group in groups for c in group))
        return groups

    def update(self, version: int) -> None:
        """Completions carry this version from now on."""
        self.version = version

    def close(self) -> None:
        """Later calls fail."""
        self.closed = True
