"""What every algorithm must do, generated from the table: its paper's gradient and value, and conformance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from algorithms import rows
from algorithms.table import ROWS, Row, Variant
from gro.algorithms import build, declaration, names, parameters
from gro.conformance import CHECKS, Subject, run, subject
from gro.conformance.declared import improves
from gro.conformance.report import line
from gro.objective import Algorithm


@dataclass(frozen=True)
class Case:
    row: Row
    variant: Variant

    def __str__(self) -> str:
        chosen = {**self.variant.params, **self.variant.state}
        return f"{self.row.name}[{','.join(f'{k}={v}' for k, v in chosen.items())}]"

    @property
    def algorithm(self) -> Algorithm:
        return build(self.row.name, **self.variant.params)

    @property
    def subject(self) -> Subject:
        return Subject(
            algorithm=self.algorithm,
            make=self.row.make,
            state=self.variant.state,
            loss=partial(self.row.loss, **self.variant.params, **self.variant.told),
            declare=declaration(self.row.name),
            parameters=self.variant.params,
        )


CASES = [Case(row, variant) for row in ROWS for variant in row.variants]
every_case = pytest.mark.parametrize("case", CASES, ids=str)

ALWAYS = {
    "gradient", "value", "surrogate", "order", "padding", "idle rows", "precision", "autocast", "degenerate updates",
    "groups of one", "a value", "recipe", "documented",
}  # fmt: skip
"""The checks that apply to everything: of these, one that measures nothing is not passed."""
IN_PARTS = {"micro batches", "processes"}
"""Those that apply to all but what needs the whole update."""


def test_every_algorithm_has_a_row():
    assert rows.__all__
    assert {row.name for row in ROWS} == set(names())


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_under_test(name: str):
    used = [case.variant.params for case in CASES if case.row.name == name]
    for key, parameter in parameters(declaration(name)).items():
        values = {repr(params.get(key, parameter.default)) for params in used}  # a list cannot be in a set
        assert values - {repr(parameter.default)}, f"no variant sets {key}"
        if isinstance(parameter.default, bool):
            assert values == {"True", "False"}


@pytest.mark.fault("N2", "N4")
@every_case
def test_conformance(case: Case):
    results = {check.name: run(check, case.subject) for check in CHECKS if check is not improves}
    failed = [line(result) for result in results.values() if not result.holds]
    assert not failed, "\n".join(failed)
    applying = {name for name, result in results.items() if result.applies}
    expected = ALWAYS if case.algorithm.scope == "batch" else ALWAYS | IN_PARTS
    if case.variant.rests and case.algorithm.roles != {"targets"}:
        expected = expected | {"equal rewards"}
    assert not expected - applying, "these measured nothing"


@pytest.mark.parametrize("name", names())
def test_every_algorithm_improves_a_bandit(name: str):
    """With its defaults: other settings under test are chosen to be seen, not to be good."""
    result = run(improves, subject(name, {}))
    assert result.holds, result
    assert result.worst is not None


@every_case
def test_an_algorithm_names_its_source(case: Case):
    algorithm = case.algorithm
    assert repr(algorithm).startswith(f"Algorithm(name='{case.row.name}', credit=")
    assert algorithm.paper
    assert algorithm.equation


def test_parameters_tell_algorithms_apart():
    different: dict[str, set[Any]] = {}
    for case in CASES:
        different.setdefault(case.row.name, set()).add(case.algorithm)
    for name, algorithms in different.items():
        settings = {repr(sorted(case.variant.params.items())) for case in CASES if case.row.name == name}
        assert len(algorithms) == len(settings)
