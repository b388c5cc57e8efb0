"""What a study of over-optimisation can be asked.  Light to import: recipes are checked with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict

from gro.schema import CHECKED, Count, NotNegative, Positive
from gro.training.settings import Optimization


@dataclass(frozen=True)
class ProxySize:
    """How large a proxy is.  From nothing it has the policy's architecture and tokenizer."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    hidden_size: Count | None = None
    """Width; None: the proxy is the starting policy itself with a score head."""
    layers: Count = 1
    """Transformer blocks of a proxy from nothing."""
    heads: Count = 2
    """Query heads of a proxy from nothing."""
    kv_heads: Count = 1
    """Key/value heads of a proxy from nothing."""

    def __post_init__(self) -> None:
        """Raises ValueError for heads that do not divide the width."""
        if self.hidden_size is not None and (self.hidden_size % (2 * self.heads) or self.heads % self.kv_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size}, heads {self.heads}, kv_heads {self.kv_heads}: the width must be an "
                "even multiple of heads, and heads a multiple of kv_heads"
            )

    def __str__(self) -> str:
        return "policy" if self.hidden_size is None else f"{self.hidden_size}×{self.layers}"


@dataclass(frozen=True)
class OveroptSettings:
    """Proxies of a gold reward, and how they are put under pressure (Gao et al. 2022)."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    sizes: tuple[ProxySize, ...]
    """Of the proxies."""
    pairs: tuple[Count, ...]
    """Numbers of labelled pairs that a proxy of each size is trained on; the fewer are among the more."""
    members: Count = 3
    """So many of each, from other weights and in another order of the rows: the first is optimised, and all of them
    are the ensemble whose disagreement is watched."""
    label_temperature: NotNegative = 1.0
    """A label says that a is better than b with probability σ((gold a − gold b) / this), gold in its standard
    deviations at the start; 0: labels are always right."""
    epochs: Count = 4
    """Passes of a proxy over its pairs."""
    pairs_per_step: Count = 32
    """Of a proxy's training."""
    optimizer: Optimization = field(default_factory=lambda: Optimization(learning_rate=1e-3))
    """How a proxy's weights move; where nothing is given, at a learning rate of 1e-3."""
    best_of: Count = 256
    """Samples of the start per held-out prompt: best-of-n up to this n."""
    patience: Count = 2
    """Of both rules of early stopping, which are tried on every course of training."""
    threshold: Positive = 1.5
    """Of the rule by disagreement."""

    def __post_init__(self) -> None:
        """Raises ValueError for an empty list, or too few samples for two coefficients."""
        for name in ("sizes", "pairs"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: give at least one, and each once")
        if self.best_of < 4:
            raise ValueError(f"best_of: found {self.best_of}; a curve of two coefficients takes at least 4")
