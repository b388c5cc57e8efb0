"""One group of four completions with round numbers; expected values below it were computed by independent code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gro.objective import Algorithm, coefficients, loss_value
from gro.types import Batch

LENGTHS = (2, 3, 1, 2)
REWARDS = (1.0, 0.0, 0.5, 0.0)
LOGP = (-0.5, -1.0, -1.2, -0.3, -0.6, -0.4, -2.0, -0.9)
OLD = (-0.6, -1.0, -1.0, -0.3, -0.9, -0.8, -1.7, -0.9)
REF = (-0.7, -0.9, -1.0, -0.5, -0.6, -0.5, -1.8, -1.1)


def grid(flat, lengths=LENGTHS, dtype=torch.float64) -> Tensor:
    """[B, T] from the tokens of all completions in order; the padding is garbage on purpose."""
    rows = torch.split(torch.tensor(flat, dtype=dtype), list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=123.0)


def mask(lengths=LENGTHS) -> Tensor:
    return torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]


def flat(c_BT: Tensor, lengths=LENGTHS) -> list[float]:
    """The masked entries in order."""
    return c_BT[mask(lengths)].tolist()


def group_batch(algorithm: Algorithm | None = None, **changes) -> Batch:
    """The fixture as one group with all rewards; with the algorithm's advantage if one is given."""
    fields: dict[str, Any] = {
        "mask_BT": mask(),
        "group_B": torch.zeros(4, dtype=torch.long),
        "reward_B": torch.tensor(REWARDS, dtype=torch.float64),
        "old_BT": grid(OLD),
        "ref_BT": grid(REF),
        "length_limit": 4,
    }
    batch = Batch(**(fields | changes))
    return with_advantage(batch, algorithm) if algorithm is not None else batch


def pair_batch(algorithm: Algorithm | None = None, **changes) -> Batch:
    """The fixture as two pairs, (y1 ≻ y2) and (y3 ≻ y4)."""
    labels_B = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    pairs = {"group_B": torch.tensor([0, 0, 1, 1]), "reward_B": labels_B}
    return group_batch(algorithm, **(pairs | changes))


def with_advantage(batch: Batch, algorithm: Algorithm) -> Batch:
    advantage_BX, _ = algorithm.credit(batch, {})
    return replace(batch, advantage_BX=advantage_BX)


def value_and_gradient(algorithm: Algorithm, batch: Batch) -> tuple[float, list[float]]:
    """(the paper's loss value, dL/dℓ per token)."""
    logp_BT = grid(LOGP)
    c_BT = coefficients(logp_BT, batch, algorithm)
    assert bool((c_BT[~batch.mask_BT] == 0).all())
    return float(loss_value(logp_BT, batch, algorithm)), (-c_BT)[batch.mask_BT].tolist()
