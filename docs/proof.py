"""The published proof: what every algorithm is made of, and what the tests measure of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gro.algorithms import build, declaration
from gro.conformance import CHECKS, Result, Subject, run
from gro.conformance.papers import gradient, value

TESTS = Path(__file__).resolve().parents[1] / "tests"
LEVELS = (1e-14, 1e-12, 1e-10)
"""What errors are rounded up to, with room for other processors to round otherwise."""


def cases(name: str) -> Iterator[tuple[dict[str, Any], Subject]]:
    """(parameters, subject) of every setting of the algorithm in the tests' table."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    importlib.import_module("algorithms.rows")
    for row in importlib.import_module("algorithms.table").ROWS:
        for variant in row.variants if row.name == name else ():
            parameters = dict(variant.params)
            yield (
                {**parameters, **variant.state},
                Subject(
                    algorithm=build(name, **parameters),
                    make=row.make,
                    state=variant.state,
                    loss=partial(row.loss, **parameters, **variant.told),
                    declare=declaration(name),
                    parameters=parameters,
                ),
            )


def measured(name: str) -> Iterator[tuple[dict[str, Any], Subject, Result, Result]]:
    """(parameters, subject, gradient, value) of every setting."""
    for parameters, subject in cases(name):
        yield parameters, subject, run(gradient, subject), run(value, subject)


def error(result: Result) -> str:
    """`≤ 1e-14`: the worst error, rounded up to a level."""
    assert result.holds, (result.check.name, result)
    assert result.worst is not None
    return f"≤ {next(level for level in LEVELS if 3 * result.worst.error <= level or level == LEVELS[-1]):.0e}"


def conformance(name: str) -> tuple[int, list[str]]:
    """(checks that hold of it as published, those that do not apply)."""
    _, subject = next(cases(name))
    results = [run(check, subject) for check in CHECKS]
    failed = [result for result in results if not result.holds]
    assert not failed, (name, failed)
    idle = [result.check.name for result in results if not result.applies]
    return len(results) - len(idle), idle


def shown(parameters: dict[str, Any]) -> str:
    """`beta 0.1, clip 0.2`."""
    return ", ".join(f"{key} {value}" for key, value in parameters.items()) or "as published"
