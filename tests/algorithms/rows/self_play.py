"""Losses among the policy's own completions and against demonstrations, as their papers write them."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms import updates
from algorithms.rows.preference import over_pairs
from algorithms.table import row, v
from algorithms.updates import Completion, Update


def above(y: Completion, base: str) -> Tensor:
    """log π(y) − log π_base(y)."""
    return y.logp.sum() - {"old": y.old, "ref": y.ref}[base].sum()


@row("rebel", updates.pairs, v(rests=False), v(eta=3.0, rests=False))
def rebel(update: Update, eta: float = 1.0) -> Tensor:
    """Gao et al. 2024, eq. 9: ((1/η)(log-ratio of y − log-ratio of y′) − (R(y) − R(y′)))²."""
    return over_pairs(update, lambda y, z: ((above(y, "old") - above(z, "old")) / eta - (y.reward - z.reward)).square())


@row("spin", updates.versus, v(rests=False), v(beta=0.5, rests=False), v(beta=0.3, base="ref", rests=False))
def spin(update: Update, beta: float = 0.1, base: str = "old") -> Tensor:
    """Chen et al. 2024, eq. 4.7: ℓ(λ log π(y)/π_t(y) − λ log π(y′)/π_t(y′)), ℓ logistic, y of the data, y′ sampled."""
    losses = [torch.log(1 + torch.exp(-beta * (above(y, base) - above(z, base)))) for y, z in update.versus]
    return torch.stack(losses).mean()


@row("sppo", updates.pairs, v(), v(beta=0.4), v(beta=0.5, base="old"))
def sppo(update: Update, beta: float = 0.1, base: str = "ref") -> Tensor:
    """Wu et al. 2024, eq. 4.7, P = 1 for the winner and 0 for the loser: (log π/π_t − η(P − ½))², η = 1/β."""
    return over_pairs(
        update,
        lambda y, z: (above(y, base) - (1 - 0.5) / beta).square() + (above(z, base) - (0 - 0.5) / beta).square(),
    )
