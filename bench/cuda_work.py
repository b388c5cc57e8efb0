"""The work of `bench/on_cuda.py`, as both sides read it: model shapes, rows of fixed lengths, and what they cost.

Imports neither gro nor TRL, so it runs in either environment.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bfloat16 TFLOP/s by a part of the card's name, from the makers' data sheets (SXM versions)."""

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "architecture": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 500,
    },
    "qwen2-0.5b": {
        "architecture": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936,
    },
    "qwen3-0.6b": {
        "architecture": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936,
    },
    "qwen2-1.5b": {
        "architecture": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151_936,
    },
}  # fmt: skip
"""Of the published models of these names; the weights are random."""


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement of one side; travels as JSON."""

    kind: Literal["dpo", "grpo"]
    model: str
    """Folder of the starting weights and the tokenizer."""
    device: str
    prompts: int
    """Of a step: pairs of dpo, prompts of grpo."""
    group: int
    """Completions of a prompt."""
    prompt_tokens: int
    new_tokens: int
    """Of every completion; dpo's have the end token besides."""
    steps: int
    """Counted ones."""
    warm_up: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    """gro: tokens_per_micro.  TRL: keys of its configuration."""
    checkpointing: bool = False

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.prompts * self.group

    @property
    def row_tokens(self) -> int:
        """Prompt, completion, and dpo's end token."""
        return self.prompt_tokens + self.new_tokens + (self.kind == "dpo")

    @property
    def tokens(self) -> int:
        """Of a step's rows, each with its own prompt: the same for every side, shared or padded."""
        return self.rows * self.row_tokens

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


def words(work: Work) -> list[list[list[int]]]:
    """Per step and prompt: the prompt's words, then those of two completions; words are token numbers ≥ 3."""
    random_ = random.Random(f"{work.prompts}/{work.prompt_tokens}/{work.new_tokens}")
    top = json.loads((Path(work.model) / "words.json").read_text())

    def draw(n: int) -> list[int]:
        return [random_.randrange(3, top) for _ in range(n)]

    lengths = (work.prompt_tokens, work.new_tokens, work.new_tokens)
    return [[draw(n) for n in lengths] for _ in range((work.steps + work.warm_up) * work.prompts)]


def text(ids: Sequence[int]) -> str:
    """What the local tokenizer reads as these tokens."""
    return " ".join(f"w{i}" for i in ids)


def even_share(ids: Sequence[int]) -> float:
    """A reward that costs nothing: the share of even tokens."""
    return sum(i % 2 == 0 for i in ids) / max(len(ids), 1)


def forward_flops(config: Any, row_tokens: int) -> float:
    """Of one row: 2 for every weight that multiplies (the output layer included, the embedding not) and token, and
    attention's two products over the lower triangle, 2 · layers · heads · head size · tokens²."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    projections = config.hidden_size * head * (2 * heads + 2 * config.num_key_value_heads)
    weights = layers * (projections + 3 * config.hidden_size * config.intermediate_size)
    weights += config.hidden_size * config.vocab_size
    return 2.0 * weights * row_tokens + 2.0 * layers * heads * head * row_tokens**2


def step_flops(config: Any, work: Work) -> float:
    """What the textbook needs for a step, every row in full: a backward pass is two forward passes.

    dpo: forward and backward of the policy, forward of the reference.  grpo (one update, no KL): sampling is one
    forward pass over the row, learning a forward and a backward pass.  Both are four forward passes.  Work that a
    library saves (shared prompts) or adds (padding, recomputed activations) does not change this number.
    """
    return 4 * work.rows * forward_flops(config, work.row_tokens)


class Clock:
    """Seconds of steps, with the device waited for, and the peak of its memory."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.steps: list[dict[str, float]] = []
        self._began = 0.0
        self._parts: dict[str, float] = {}

    def start(self) -> None:
        """A step begins.  Memory counts from the first that is not a warm-up."""
        if len(self.steps) == self.work.warm_up and self.work.device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._began, self._parts = self._now(), {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Seconds of a part of the step."""
        began = self._now()
        yield
        self._parts[name] = self._now() - began

    def stop(self, **values: float) -> None:
        """The step ends; `values` are reported with it."""
        self.steps.append({"seconds": self._now() - self._began, **self._parts, **values})

    def report(self, **facts: Any) -> dict[str, Any]:
        """Medians of the counted steps."""
        counted = self.steps[self.work.warm_up :]
        seconds = statistics.median(step["seconds"] for step in counted)
        return {
            "seconds": seconds,
            "tokens_per_second": self.work.tokens / seconds,
            "peak_bytes": self._peak(),
            "steps": self.steps,
            **facts,
        }

    def _now(self) -> float:
        if self.work.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self) -> int:
        """Of the device's tensors; on a processor, which is no measurement, of the process."""
        if self.work.device == "cpu":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        import torch

        return torch.cuda.max_memory_allocated()
