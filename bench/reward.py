"""The reward of the GRPO comparison, in the signature that TRL and gro share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def even_share(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Share of even token ids: deterministic, free, and different for every sample, also of an untrained model
    (whose answers a maths reward would all give 0, and the gradient with them)."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]
