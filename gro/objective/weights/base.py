"""What a weight is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Weight(Protocol):
    """w: see the module's head for the arguments; returns the shape they broadcast to."""

    @property
    def symbol(self) -> str: ...

    def __call__(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor: ...

    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor | None:
        """P with −dP/dℓ = w·v, or None where the paper's loss has no such value."""
        ...


class NoPotential:
    def potential(self, u: Tensor, v: Tensor, a: Tensor, u2: Tensor | None) -> Tensor | None:
        return None
