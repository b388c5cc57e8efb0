"""What a run remembers: rollouts with their per-token quantities, and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:  # gro.types imports torch, which a reader of runs does not need
    from gro.types import Finish, Role

Level = Literal["info", "warning", "error"]

TERMS = "terms"
"""Under this key a run keeps what the terms of its algorithm are called."""
FACTORS = ("share", "w", "v", "u", "epsilon", "slope", "clip")
"""Of a term's part of a coefficient, share · w · v · slope; and what w is a function of."""


def factor(term: int, name: str) -> str:
    """Under which name a factor of a term is recorded among the quantities of tokens.

    >>> factor(0, "share")
    'term0.share'
    """
    return f"term{term}.{name}"


@dataclass(frozen=True, slots=True, eq=False)
class RolloutRecord:
    """One completion of a step, as it was learnt from.

    >>> RolloutRecord(group=0, row=0, prompt="2+2=", prompt_ids=[1, 5], completion="4", completion_ids=[7, 2],
    ...               reward=1.0, finish="stop", tokens={"logp": [-0.5, -0.1]})
    """

    group: int
    """Which prompt of the step, from 0."""
    row: int
    """Which completion of the step, from 0; unique within the step."""
    prompt: str
    prompt_ids: Sequence[int]
    """The same for all rows of a group: they are kept once."""
    completion: str
    completion_ids: Sequence[int]
    """T token ids."""
    role: Role = "sample"
    reward: float | None = None
    """None: failed, pending or not applicable; NaN is turned into None."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """Parts of the reward by name, unweighted."""
    finish: Finish = "given"
    tokens: Mapping[str, Any] = field(default_factory=dict)
    """Per-token quantities by name: T floats each (list, array or tensor), or one that holds for all; NaN: not there.

    Names in use: logp (the policy's), sampler, old, ref (log-probs), value (the critic's), return (what it learns),
    advantage, coefficient, entropy, trained; and of each term of the equation its factors: see `factor`.  ε is left
    out where it is measured token by token, where it is logp − u.
    A quantity that is None or NaN throughout is left out.  Reading gives float32 arrays.
    """
    key: int = 0
    """The prompt's identity in its source."""
    temperature: float = 1.0
    version: int = 0
    """Number of updates behind the weights that sampled it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a start, an alarm, a value that was not finite, a failure."""

    time: float
    """Seconds since 1970 (UTC)."""
    step: int | None
    level: Level
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as int32 bytes."""
    return np.asarray(_host(ids), dtype="<i4").tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The token ids that `pack_ids` packed."""
    return np.frombuffer(data, dtype="<i4").tolist()


def pack_floats(values: Any, length: int, name: str) -> bytes | None:
    """`length` float32 values as bytes, one where all are the same; None where there is nothing but NaN.

    Raises ValueError, naming `name`, where the length is neither `length` nor 1.
    """
    array = np.asarray(_host(values), dtype="<f4").reshape(-1)
    if array.size not in (1, length):
        raise ValueError(f"{name} has {array.size} values for {length} tokens")
    if array.size and (array == array[0]).all():
        return array[:1].tobytes()
    return None if np.isnan(array).all() else array.tobytes()


def unpack_floats(data: bytes, length: int) -> np.ndarray:
    """The float32 array of this length that `pack_floats` packed."""
    return np.broadcast_to(np.frombuffer(data, dtype="<f4"), (length,))


def _host(values: Any) -> Any:
    """A torch tensor as something that NumPy takes (bfloat16 it does not); anything else as it is."""
    return values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
