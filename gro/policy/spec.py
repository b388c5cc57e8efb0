"""What a user says about a small model to be made, and about an adapter.

Light to import: recipes are checked with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gro.schema import Count, Positive

Name = Annotated[str, Field(min_length=1)]
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox",
)  # fmt: skip
"""Architectures that a recipe can make, all tested with the shared layout."""


@dataclass(frozen=True, slots=True)
class CreateSpec:
    """A small model by recipe.  The default has 15.6 million parameters.

    >>> CreateSpec(hidden_size=128, layers=4, heads=4, kv_heads=2, vocab_size=512)
    """

    architecture: str = "qwen3"
    """One of ARCHITECTURES."""
    hidden_size: int = 384
    """Width; a multiple of heads."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 6
    """Query heads of attention."""
    kv_heads: int = 2
    """Key/value heads, a divisor of heads; equal to heads for architectures without grouped queries."""
    intermediate_size: int | None = None
    """None: 8/3 of hidden_size, rounded up to a multiple of 64 (4 times it for ungated architectures)."""
    vocab_size: int = 16_000
    """Rows of the embedding; at least the tokenizer's tokens."""
    all_bytes: bool = True
    """The tokenizer knows every byte, so that it can write any text.  False: only those in the data, for toy tasks: a
    tiny model spends long on learning which of its tokens never occur."""
    max_positions: int = 2048
    """Longest row, prompt and completion together."""
    tie_embeddings: bool = True
    """The output embedding is the input embedding."""
    seed: int = 0
    """Of the random weights."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        for name in ("hidden_size", "layers", "heads", "kv_heads", "vocab_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} / heads {self.heads} must be even, for rotary positions")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")

    @property
    def feed_forward(self) -> int:
        """The width of the feed-forward layer."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        gated = self.architecture not in ("gpt2", "gpt_neox", "phi")
        return -(-self.hidden_size * 8 // (3 * 64)) * 64 if gated else 4 * self.hidden_size


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (LoRA, Hu et al. 2021): every weight stays as it is, and beside it alpha/rank · B·A is learnt.

    There is no dropout: scores must not depend on chance.
    """

    rank: Count = 16
    """Rows of A and columns of B."""
    alpha: Positive = 32.0
    """What B·A is multiplied by, times the rank."""
    targets: Literal["all-linear"] | tuple[Name, ...] = "all-linear"
    """Which layers have one: all linear ones but the output embedding, or names such as [q_proj, v_proj]."""

    def __post_init__(self) -> None:
        """Raises ValueError where no layer is named."""
        if not self.targets:
            raise ValueError("targets: found none; expected all-linear or names of linear layers")
