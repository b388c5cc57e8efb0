"""Out of memory, in words: which micro-batch it was, and what makes the next one smaller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gro.errors import GroError
from gro.policy.packing import Pack, SharedPack

_WORDS = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|bad_alloc|could not create a memory"
    r"|ALLOC_FAILED",
    re.IGNORECASE,
)
"""How PyTorch and the libraries under it say it where they raise a plain RuntimeError, as on a processor."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


@contextmanager
def naming_the_batch(pack: Pack) -> Iterator[None]:
    """Within this block an allocation that fails becomes a GroError that has this micro-batch and the settings.

    >>> with naming_the_batch(pack):
    ...     scored = policy.logp(pack)
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise GroError(_message(pack, error)) from error


def _message(pack: Pack, error: Exception) -> str:
    rows, longest = len(pack.rows), _longest(pack)
    size = f"{pack.tokens:,} tokens" + (f" in {rows} rows, the longest of {longest:,}" if rows > 1 else " in one row")
    smaller = "a smaller training.tokens_per_micro" if rows > 1 else "shorter rows"
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"out of memory in a micro-batch of {size}. It needs {smaller}, or model.activation_checkpointing: true. "
        f"This update changed no weight ({said})"
    )


def _longest(pack: Pack) -> int:
    """Tokens that are run of the longest row."""
    if isinstance(pack, SharedPack):
        return max(tree.longest for tree in pack.trees)
    return pack.input_ids_SN.shape[1]
