"""What an engine is: token ids in, token ids and their log-probs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gro.types import Completion, Prompt

Progress = Callable[[int, int], None]
"""Called as work goes on with (completions finished, new tokens sampled), both counted from the start of
the call."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    The distribution is softmax(logits / temperature), restricted to the `top_k` most probable tokens, then
    to the smallest set of most probable tokens whose mass reaches `top_p`, and renormalised.  Tokens that
    tie with the last one kept are kept too, so that the distribution does not depend on an order among
    equals.

    >>> Sampling(temperature=0.7, top_p=0.9, max_new_tokens=128, stop_ids=(2,))
    """

    temperature: float = 1.0
    top_p: float = 1.0
    """1: no restriction, no cost."""
    top_k: int = 0
    """0: no restriction, no cost."""
    max_new_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    """Sampling one of these ends the completion; it is the completion's last token."""
    greedy: bool = False
    """Take the most probable token; temperature, top_k and top_p are then not read.  The log-probs reported
    are those of the unrestricted distribution at temperature 1, and the completion carries temperature 1: a
    greedy completion is for evaluation and baselines, and "how probable is it under the model" is what can
    be asked of it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"temperature must be a positive number, found {self.temperature}; greedy=True takes the best token"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], found {self.top_p}; 1 switches it off")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or a positive count, found {self.top_k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, found {self.max_new_tokens}")
        if any(not isinstance(t, int) or isinstance(t, bool) or t < 0 for t in self.stop_ids):
            raise ValueError(f"stop_ids must be token ids, non-negative integers, found {self.stop_ids}")

    @property
    def scored_at(self) -> float:
        """The temperature a completion records, at which the trainer scores it."""
        return 1.0 if self.greedy else self.temperature


class Engine(Protocol):
    """Something that samples completions from the policy."""

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
        """`n` completions of each prompt, in the order of the prompts.

        Each carries its token ids, the log-probs of the distribution it was actually drawn from (after
        temperature, top-k and top-p), the temperature, how it finished ("stop": a stop id was sampled and
        is the last id; "length": cut off) and the version of the weights.  Randomness is keyed by (seed,
        step, prompt.key, index of the sample, position): see `gro.engines.sampling`.
        """
        ...

    def update(self, version: int) -> None:
        """From now on the weights sampled from have this version, the number of updates behind them."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it is not used afterwards."""
        ...
