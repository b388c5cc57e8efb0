"""Checks of precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gro.conformance.check import Measurement, Subject, check, claim, measure
from gro.conformance.updates import cast


@check("Compute in the log-probs' precision, `.to(logp_BT)`; differences of large sums lose digits.")
def precision(subject: Subject) -> Iterator[Measurement]:
    """Single precision gives what double gives; the log-probs' precision decides."""
    logp_BT, batch = subject.update()
    double_BT, value = subject.pulls(logp_BT, batch), subject.value(logp_BT, batch)
    single = subject.credited(cast(subject.make(0)[1], torch.float32))
    for where, other in (("float32", single), ("float32 log-probs, float64 rewards", batch)):
        single_BT, single_value = subject.pulls(logp_BT.float(), other), subject.value(logp_BT.float(), other)
        kinds = {single_BT.dtype, single_value.dtype}
        yield claim(kinds == {torch.float32}, where, f"computed in {kinds}")
        yield measure(single_BT, double_BT, where, limit=2e-6, relative=2e-4)
        yield measure(single_value, value, where, limit=1e-5, relative=1e-4)
    half_BT = subject.pulls(logp_BT.bfloat16(), batch)
    yield claim(bool(half_BT.isfinite().all()), "bfloat16", "coefficients are not finite")


@check("Avoid matrix products in slots: autocast would compute them in half precision.")
def autocast(subject: Subject) -> Iterator[Measurement]:
    """Autocast around it changes nothing."""
    logp_BT, batch = subject.make(0)
    batch = cast(batch, torch.float32)
    expected_BT = subject.pulls(logp_BT.float(), subject.credited(batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BT = subject.pulls(logp_BT.float(), subject.credited(batch))
    yield measure(found_BT, expected_BT, "bfloat16 autocast", limit=0.0)
