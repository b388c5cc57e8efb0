"""A signature read from source is the signature that importing gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from gro import signatures
from gro.algorithms import declaration, names
from gro.errors import GroError
from gro.rewards.registry import NAMED, named
from gro.schema import Count, Positive


def test_every_registered_algorithm_is_read() -> None:
    assert set(signatures.algorithms()) == set(names())


@pytest.mark.parametrize("name", names())
def test_read_and_imported_signatures_of_algorithms_are_equal(name: str) -> None:
    read, imported = signatures.algorithms()[name], signatures.of(declaration(name))
    assert read.open is imported.open
    assert list(read.parameters) == list(imported.parameters)
    for key, parameter in imported.parameters.items():
        assert read.parameters[key].default == parameter.default
        for value in (0, 0.25, -1, 1e9, True, "k3", "x", None, float("nan"), [], 10**400):
            expected = signatures.mismatch(parameter.hint, value)
            assert signatures.mismatch(read.parameters[key].hint, value) == expected, (key, value)


@pytest.mark.parametrize("name", NAMED)
def test_named_rewards_are_read(name: str) -> None:
    module, function = NAMED[name].split(":")
    path = Path(signatures.__file__).parents[1] / (module.replace(".", "/") + ".py")
    read, imported = signatures.in_file(path, function, decorated=True), signatures.of(named()[name])
    assert read is not None
    assert list(read.parameters) == list(imported.parameters)
    assert read.open is imported.open


SOURCE = """
from typing import Literal, Annotated
import os
Kind = Literal["a", "b"]
Odd = os.environ["NOT_THERE_AND_NEVER_READ"]
def f(a, b: int, /, c: float = 1.5, *rest, d: Kind | None = None, e: Odd = 3, g: "text" = 1 + 1, **more): ...
async def later(x: bool = False): ...
class Made:
    pass
if True:
    def inside(y): ...
made = f
@os.wraps
def wrapped(z): ...
raise RuntimeError("importing this fails")
"""


def test_a_file_is_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    read = signatures.in_file(path, "f")
    assert read is not None
    assert read.open
    assert {name: p.required for name, p in read.parameters.items()} == {
        "a": True, "b": True, "c": False, "d": False, "e": False, "g": False,
    }  # fmt: skip
    hints = {name: p.hint for name, p in read.parameters.items()}
    assert (hints["a"], hints["b"], hints["c"], hints["e"]) == (Any, int, float, Any)
    assert signatures.mismatch(hints["d"], "c") == "'a' or 'b' or null"
    assert signatures.mismatch(hints["d"], None) is None
    assert [signatures.in_file(path, name) for name in ("Made", "made", "inside", "os", "wrapped")] == [None] * 5
    assert signatures.in_file(path, "later") is not None
    with pytest.raises(GroError, match=r"defines no function 'lter', did you mean 'later'\?"):
        signatures.in_file(path, "lter")


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Positive, 1, None),
        (Positive, 0, "finite number > 0"),
        (Positive, "1", "finite number > 0"),
        (Positive, True, "finite number > 0"),
        (Count, 1.5, "whole number ≥ 1"),
        (Count | None, 0, "whole number ≥ 1 or null"),
        (Annotated[float, Field(ge=0, lt=0.5)], 0.5, "finite number ≥ 0 and < 0.5"),
        (Annotated[float, Field(ge=0, lt=0.5)], 0.49, None),
        (Literal[1, 2], True, "1 or 2"),
        (Literal["a"], "a", None),
        (float, 10**400, "finite number"),
        (list[int], "x", None),
        ([1], "x", None),
    ],
)
def test_mismatches(hint: Any, value: Any, expected: str | None) -> None:
    assert signatures.mismatch(hint, value) == expected


def test_problems_name_the_key_and_the_nearest() -> None:
    signature = signatures.Signature({"beta": signatures.Parameter(Positive, 0.1), "name": signatures.Parameter(str)})
    assert signature.problems("algorithm", "mine", {"betta": 1, "beta": 0}) == [
        "algorithm.betta: mine has no such parameter, did you mean 'beta'?; it has beta, name",
        "algorithm.beta: 0 is no finite number > 0 (default 0.1)",
        "algorithm.name: missing; mine has no default for it",
    ]
