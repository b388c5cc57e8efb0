"""How a claim is measured: the worst of many inputs, what is raised, and what does not apply."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gro.algorithms import build
from gro.conformance import CHECKS, Measurement, Subject, of, run
from gro.conformance.check import check, claim, measure
from gro.conformance.report import line, verdict

DPO = of(build("dpo"))


def number(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def test_an_error_is_measured_against_what_is_allowed():
    found = measure(number(1.5), number(1.0), "here", limit=0.25)
    assert (found.error, found.limit, found.excess) == (0.5, 0.25, 2.0)
    assert measure(number(1.0), number(1.0), "here", limit=0.0).excess == 0
    assert measure(number(1.0 + 1e-15), number(1.0), "here", limit=0.0).excess == math.inf
    # What is allowed relative to 100 is 100 × 0.01 beside the limit of 1: 4 off is twice as much.
    assert measure(number(104.0), number(100.0), "here", limit=1.0, relative=0.01).excess == pytest.approx(2)


@pytest.mark.parametrize("wrong", [number(math.nan), number(math.inf), torch.zeros(2)], ids=["nan", "inf", "shape"])
def test_what_is_not_defined_is_infinitely_wrong(wrong: torch.Tensor):
    assert measure(wrong, number(1.0), "here", limit=1e9).excess == math.inf
    assert claim(False, "here", "so").excess == math.inf
    assert claim(True, "here").excess == 0


@check("Do something.")
def some_claim(subject: Subject) -> Iterator[Measurement]:
    """Something is small.

    More about it.
    """
    yield Measurement(1e-3, 1.0, "first")
    yield Measurement(0.5, 1.0, "second")
    yield Measurement(0.1, 1.0, "third")


@check("Do something.")
def too_large(subject: Subject) -> Iterator[Measurement]:
    """Something is small."""
    yield Measurement(0.5, 1.0, "first")
    yield Measurement(2e-12, 1e-12, "second")


@check("Do something.")
def breaks(subject: Subject) -> Iterator[Measurement]:
    """Something is small."""
    yield Measurement(0.5, 1.0, "first")
    raise KeyError("nothing of this name")


@check("Do something.")
def says_nothing(subject: Subject) -> Iterator[Measurement]:
    """Something is small."""
    yield from ()


def test_the_worst_measurement_is_the_result():
    result = run(some_claim, DPO)
    assert result.holds
    assert result.worst is not None
    assert result.worst.where == "second"
    assert line(result) == "holds  some claim          Something is small: off by 0.5, 1 allowed"


def test_what_does_not_hold_says_by_how_much_where_and_what_to_do():
    result = run(too_large, DPO)
    assert not result.holds
    assert line(result).splitlines() == [
        "FAILS  too large           Something is small",
        "       found: off by 2e-12, 1e-12 allowed (second)",
        "       to do: Do something.",
    ]


def test_an_exception_is_a_finding_with_file_and_line():
    result = run(breaks, DPO)
    assert not result.holds
    assert "test_check.py, line " in result.raised
    assert result.raised.endswith("KeyError: 'nothing of this name'")
    assert verdict(result) == "FAILS"


def test_a_claim_that_measures_nothing_does_not_apply():
    result = run(says_nothing, DPO)
    assert result.holds
    assert not result.applies
    assert line(result) == "–      says nothing        does not apply"


def test_checks_have_names_claims_and_advice_of_their_own():
    for texts in ([c.name for c in CHECKS], [c.claim for c in CHECKS], [c.advice for c in CHECKS]):
        assert len(set(texts)) == len(CHECKS)
        assert all(texts)


def test_the_state_of_a_credit_is_used():
    subject = of(build("reinforce"))
    remembering = replace(subject, state={"steps": 1, "mean": 5.0})
    first, later = subject.update()[1].advantage_BX, remembering.update()[1].advantage_BX
    assert first is not None
    assert later is not None
    assert not torch.equal(first, later)
