"""What a check is: a claim about an algorithm, measured on many inputs, and the worst that was found.

A check is a function of a `Subject` that yields measurements.  Its docstring is its claim; that it yields nothing means
that the claim does not apply.
"""

from __future__ import annotations

import inspect
import math
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gro.algorithms.registry import Declaration
from gro.conformance.updates import Maker, Update, for_algorithm
from gro.objective import Algorithm, coefficients, loss_value
from gro.types import ROLES, Batch

SAMPLE = ROLES.index("sample")


@dataclass(frozen=True)
class Subject:
    """An algorithm under test, and what it is tested on."""

    algorithm: Algorithm
    make: Maker
    """The random updates; see `of` for those that are made for an algorithm."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the credit remembers of earlier steps."""
    loss: Callable[[Update], Tensor] | None = None
    """The paper's loss, as a function of completions."""
    declare: Declaration | None = None
    """What made the algorithm, of `parameters`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def credited(self, batch: Batch) -> Batch:
        """With the advantages of the algorithm's credit."""
        advantage_BX, _ = self.algorithm.credit(batch, dict(self.state))
        return replace(batch, advantage_BX=advantage_BX)

    def update(self, seed: int = 0) -> tuple[Tensor, Batch]:
        """A random update, with advantages."""
        logp_BT, batch = self.make(seed)
        return logp_BT, self.credited(batch)

    def pulls(self, logp_BT: Tensor, batch: Batch) -> Tensor:
        """The coefficients of a batch that has advantages."""
        return coefficients(logp_BT, batch, self.algorithm)

    def value(self, logp_BT: Tensor, batch: Batch) -> Tensor:
        """The loss's value on a batch that has advantages."""
        return loss_value(logp_BT, batch, self.algorithm)


def of(algorithm: Algorithm) -> Subject:
    """The algorithm on random updates that hold what it learns from."""
    return Subject(algorithm, for_algorithm(algorithm))


@dataclass(frozen=True)
class Measurement:
    """How far an input leads from what is claimed."""

    error: float
    limit: float
    """The most that rounding explains."""
    where: str
    """The input, in words."""
    found: str = ""
    """What was found, where a number does not say it."""

    @property
    def excess(self) -> float:
        """The error in units of what is allowed; not finite for what is not defined."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error / self.limit if self.limit else math.inf * self.error if self.error else 0.0


Run = Callable[[Subject], Iterator[Measurement]]


@dataclass(frozen=True)
class Check:
    """A claim that must hold of every algorithm."""

    name: str
    claim: str
    advice: str
    """What to do where it does not hold."""
    run: Run


@dataclass(frozen=True)
class Result:
    """What a check found."""

    check: Check
    worst: Measurement | None = None
    """None: the claim does not apply, or nothing was measured before something was raised."""
    raised: str = ""
    """What went wrong while measuring, with file and line."""

    @property
    def applies(self) -> bool:
        """Whether anything was measured."""
        return self.worst is not None or bool(self.raised)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the claim."""
        return not self.raised and (self.worst is None or self.worst.excess <= 1)


def check(advice: str) -> Callable[[Run], Check]:
    """Decorator: the function becomes a check of its name and docstring."""

    def add(run: Run) -> Check:
        claim = " ".join(inspect.cleandoc(run.__doc__ or "").split("\n\n")[0].split())
        return Check(run.__name__.replace("_", " "), claim, advice, run)

    return add


def run(check: Check, subject: Subject) -> Result:
    """The check's worst measurement, or what was raised in its place."""
    worst: Measurement | None = None
    try:
        for measurement in check.run(subject):
            if worst is None or measurement.excess > worst.excess:
                worst = measurement
    except Exception as error:  # whatever somebody's own code raises is a finding about it
        return Result(check, worst, told(error))
    return Result(check, worst)


def told(error: BaseException) -> str:
    """An error in a line: what was raised, and where in a file that is neither ours nor a library's."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


_NOT_THEIRS = ("<", __file__.rpartition("conformance")[0], *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))


def measure(found: Tensor, expected: Tensor, where: str, *, limit: float, relative: float = 0.0) -> Measurement:
    """The largest |found − expected|, less what is allowed relative to the size of what is expected."""
    if found.shape != expected.shape:
        return Measurement(math.inf, limit, where, f"shape {list(found.shape)} instead of {list(expected.shape)}")
    if not found.numel():
        return Measurement(0.0, limit, where)
    difference = (found.double() - expected.double()).abs()
    scale = 1 + relative / limit * expected.double().abs() if relative else 1.0
    return Measurement(float((difference / scale).nan_to_num(torch.inf, torch.inf).max()), limit, where)


def claim(holds: bool, where: str, found: str = "") -> Measurement:
    """Something that is either so or not."""
    return Measurement(0.0 if holds else math.inf, 0.0, where, "" if holds else found)
