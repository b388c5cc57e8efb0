"""The random updates of `gro.conformance`, under the name by which the table's rows know them."""

from __future__ import annotations

from gro.conformance.updates import (
    Completion,
    Prompt,
    Update,
    as_a_paper_sees_it,
    beside,
    cast,
    groups,
    mismatched,
    pairs,
    update_of,
    versus,
    with_garbage,
)

__all__ = [
    "Completion",
    "Prompt",
    "Update",
    "as_a_paper_sees_it",
    "beside",
    "cast",
    "groups",
    "mismatched",
    "pairs",
    "update_of",
    "versus",
    "with_garbage",
]
