"""The table: one row per registered algorithm, with its loss as the paper writes it.

A row is a plain function of the completions (`Update`) and the algorithm's parameters, with the same defaults, that
returns the paper's loss for autograd to differentiate.  It knows nothing of units, anchors, weights and shares.  To
add an algorithm, add its function under `@row` to its family in `rows/`; every test in `test_algorithms.py` then runs
on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algorithms.updates import Completion
from gro.types import Batch

Maker = Callable[[int], tuple[Tensor, Batch]]


@dataclass(frozen=True)
class Variant:
    """One setting of an algorithm under test."""

    params: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the credit remembers of earlier steps."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """The same, as the paper's loss is told it."""
    rests: bool = True
    """Whether samples get no gradient at all where all rewards of a prompt are equal."""


@dataclass(frozen=True)
class Row:
    name: str
    loss: Callable[..., Tensor]
    make: Maker
    variants: tuple[Variant, ...]


ROWS: list[Row] = []


def v(*, state: Mapping | None = None, told: Mapping | None = None, rests: bool = True, **params: Any) -> Variant:
    return Variant(params, state or {}, told or {}, rests)


def row(name: str, make: Maker, *variants: Variant) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Adds the decorated loss to the table; a name may have several rows."""

    def add(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        ROWS.append(Row(name, loss, make, variants or (Variant(),)))
        return loss

    return add


# --- what several papers share ---------------------------------------------------------------------------------------


def sum_of(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()


def rewards(group: list[Completion], kl: float = 0.0) -> Tensor:
    return torch.tensor([y.reward - kl * float((y.old - y.ref).sum()) for y in group], dtype=torch.float64)


def all_equal(reward_G: Tensor) -> bool:
    return bool(reward_G.max() - reward_G.min() < 1e-9)


def z_score(reward_G: Tensor, ddof: int, eps: float) -> Tensor:
    if all_equal(reward_G):
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / (reward_G.std(correction=ddof) + eps)


def leave_one_out(reward_G: Tensor) -> Tensor:
    if len(reward_G) == 1:
        return torch.zeros_like(reward_G)
    mean_of_others = [torch.cat([reward_G[:i], reward_G[i + 1 :]]).mean() for i in range(len(reward_G))]
    return reward_G - torch.stack(mean_of_others)


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Schulman et al. 2017, eq. 7."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def log_ratio(y: Completion) -> Tensor:
    return y.logp.sum() - y.ref.sum()
