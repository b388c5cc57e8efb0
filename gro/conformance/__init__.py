"""What every algorithm must do, as checks that run on any: in the tests, and by `gro algorithms --verify`."""

from gro.conformance import batching, declared, degenerate, numerics, papers
from gro.conformance.check import Check, Measurement, Result, Subject, of, run
from gro.conformance.updates import Completion, Prompt, Update
from gro.conformance.users import subject

CHECKS: tuple[Check, ...] = (
    papers.gradient,
    papers.value,
    papers.potential,
    papers.surrogate,
    batching.micro_batches,
    batching.processes,
    batching.order,
    batching.padding,
    batching.idle_rows,
    batching.demonstrations,
    numerics.precision,
    numerics.autocast,
    degenerate.degenerate_updates,
    degenerate.equal_rewards,
    degenerate.groups_of_one,
    degenerate.first_step,
    declared.a_value,
    declared.recipe,
    declared.documented,
    declared.improves,
)
"""In the order in which they are shown."""

__all__ = [
    "CHECKS",
    "Check",
    "Completion",
    "Measurement",
    "Prompt",
    "Result",
    "Subject",
    "Update",
    "of",
    "run",
    "subject",
]
