"""Reward functions: found by file, module and name; called as TRL calls them; what they return is looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gro.rewards
from gro.errors import GroError
from gro.rewards.functions import Logged, TrainerState, Unfit, WrongReturnError, checked, notes_of
from gro.rewards.loading import load
from gro.rewards.registry import NAMED, named
from gro.rewards.rules import exact_match

COLUMNS = {"prompts": ["p", "q"], "completions": ["a", "bb"], "completion_ids": [[1], [2, 2]], "answer": ["a", "c"]}


def call(function: Callable[..., Any], params: dict[str, Any] | None = None, logged: Logged | None = None) -> list[Any]:
    return load(function, params).score(COLUMNS, logged or Logged(), TrainerState(global_step=7))


def test_a_function_receives_what_its_signature_names() -> None:
    def few(completions: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert call(few) == [1.0, 0.0]


def test_with_kwargs_it_receives_everything() -> None:
    seen: dict[str, Any] = {}

    def everything(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0, 0.0]

    call(everything)
    offered = {"trainer_state", "log_extra", "log_metric"}
    assert {k: v for k, v in seen.items() if k not in offered} == COLUMNS
    assert seen.keys() == COLUMNS.keys() | offered
    assert seen["trainer_state"].global_step == 7


def test_keyword_only_async_and_callable_objects() -> None:
    async def later(*, completions: list[str]) -> list[float]:
        return [float(len(c)) for c in completions]

    class Scorer:
        def __call__(self, completions: list[str]) -> list[float]:
            return [2.0 for _ in completions]

    assert call(later) == [1.0, 2.0]
    assert call(Scorer()) == [2.0, 2.0]
    assert load(Scorer()).name == "Scorer"


def test_parameters_of_the_recipe() -> None:
    def scaled(completions: list[str], scale: float = 1.0) -> list[float]:
        return [scale * len(c) for c in completions]

    assert call(scaled, {"scale": 3}) == [3.0, 6.0]
    with pytest.raises(GroError, match="reward 'scaled' has no parameter 'scal'; did you mean 'scale'"):
        load(scaled, {"scal": 3})
    with pytest.raises(GroError, match="did you mean 'weight'"):
        load(scaled, {"wieght": 3})
    with pytest.raises(GroError, match="did you mean 'column'"):
        load("exact_match", {"colum": "x"})

    def free(completions: list[str], **columns: Any) -> list[float]:
        return [float(columns["limit"]) for _ in completions]

    assert call(free, {"limit": 3}) == [3.0, 3.0]
    for slip, meant in (("wieght", "weight"), ("weigth", "weight"), ("time_limits", "time_limit"), ("clips", "clip")):
        with pytest.raises(GroError, match=f"reward 'free' names no parameter {slip!r}; did you mean {meant!r}"):
            load(free, {slip: 3})


def test_a_column_never_sets_an_option() -> None:
    function = load("exact_match")
    columns = {"completions": ["A"], "answer": ["a"], "ignore_case": [True], "column": ["nonsense"]}
    assert function.score(columns, Logged(), TrainerState()) == [0.0]


def test_a_missing_column_is_named() -> None:
    def needs(completions: list[str], solution: list[str]) -> list[float]:
        return [0.0]

    with pytest.raises(GroError, match=r"needs 'solution'; columns of the data: answer"):
        call(needs)


def test_what_is_logged() -> None:
    def logs(completions: list[str], log_metric: Any, log_extra: Any) -> list[float]:
        log_metric("length", 1.5)
        log_extra("first", [c[0] for c in completions])
        return [0.0, 0.0]

    logged = Logged()
    call(logs, logged=logged)
    assert (logged.metrics, logged.extra) == ({"length": 1.5}, {"first": ["a", "b"]})


@pytest.mark.parametrize(
    ("value", "float_"), [(1, 1.0), (0.5, 0.5), (np.float32(0.5), 0.5), (np.int64(2), 2.0), (Fraction(1, 4), 0.25)]
)
def test_numbers_are_rewards(value: Any, float_: float) -> None:
    (result,) = checked([value], 1, "f")
    assert type(result) is float
    assert result == float_


@pytest.mark.fault("R2")
@pytest.mark.parametrize(
    ("value", "description"),
    [
        (float("nan"), "float nan"),
        (float("inf"), "float inf"),
        (float("-inf"), "float -inf"),
        (1e30, "float 1e+30, beyond ±1e+06"),
        (-1_000_001, "float -1000001.0, beyond ±1e+06"),
        (10**400, "int too large for a float"),
        (np.float64("nan"), "float nan"),
        ("1.0", "str '1.0'"),
        (True, "bool True"),
        (np.bool_(True), "numpy.bool"),
        ([1.0], "list"),
        (np.ones(1), "numpy.ndarray"),
        (1j, "complex"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_other_values_are_refused_by_name(value: Any, description: str) -> None:
    assert checked([value, None], 2, "f") == [Unfit(description), None]


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "reward 'f' returned 1 values for 2 completions"),
        ([1.0] * 3, "reward 'f' returned 3 values for 2 completions"),
        (1.0, "returned float 1.0"),
        (None, "returned NoneType"),
        ("ab", "returned str 'ab'"),
        (np.ones(2), "returned numpy.ndarray"),
        ({0: 1.0, 1: 1.0}, "returned dict"),
    ],
)
def test_wrong_returns_are_refused(result: Any, message: str) -> None:
    with pytest.raises(WrongReturnError, match=re.escape(message)):
        checked(result, 2, "f")


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 3\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import helper\ndef length(completions):\n    return [helper.FACTOR * len(c) for c in completions]\n"
    )
    function = load(f"{file}:length")
    assert function.name == "length"
    assert function.score(COLUMNS, Logged(), TrainerState()) == [3.0, 6.0]


def test_from_a_module_and_by_name() -> None:
    assert load("gro.rewards.rules:exact_match").call is exact_match
    assert load("exact_match").name == "exact_match"
    assert named().keys() == NAMED.keys()


def test_every_named_reward_is_documented() -> None:
    for function in named().values():
        assert function.__doc__
        assert ">>>" in function.__doc__ or not notes_of(function).options, "rules have examples"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("exactmatch", "reward 'exactmatch' is not known; did you mean 'exact_match'?"),
        ("zzz", "Give one of 'code', 'cosine_length', 'exact_match',"),
        ("{folder}/mien.py:length", "mien.py does not exist; did you mean 'mine.py'?"),
        ("{folder}/none/mine.py:length", "none/mine.py does not exist"),
        ("{folder}/mine.py:lenght", "'lenght' does not exist in {folder}/mine.py; did you mean 'length'?"),
        ("{folder}/mine.py:zzz", "there are 'length', 'other'"),
        ("{folder}/mine.py:CONSTANT", "'CONSTANT' is int 3, not a function"),
        ("{folder}/broken.py:f", "broken.py cannot be imported: NameError: name 'undefined' is not defined (line 2)"),
        ("{folder}/syntax.py:f", "syntax.py cannot be imported: SyntaxError"),
        ("{folder}/needy.py:f", "needy.py cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("no_such_package.rewards:f", "reward module 'no_such_package.rewards' does not exist"),
        ("gro.rewards.no_such:f", "reward module 'gro.rewards.no_such' does not exist"),
        ("gro.rewards.rules:exact", "did you mean 'exact_match'?"),
        ("{folder}/mine.py:positional", "called with keywords only"),
    ],
)
def test_what_is_missing_is_named_with_the_nearest(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(
        "CONSTANT = 3\ndef length(completions): ...\ndef other(completions): ...\n"
        "def _private(): ...\nclass C: ...\n"
        + ("def positional(completions, /): ...\n" if "positional" in place else "")
    )
    (tmp_path / "broken.py").write_text("x = 1\nundefined\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "needy.py").write_text("import nowhere_at_all\n")
    with pytest.raises(GroError, match=re.escape(message.format(folder=tmp_path))):
        load(place.format(folder=tmp_path))


def test_exact_match() -> None:
    assert exact_match([" 4\n", "5", "x"], solution=["4", "4", None]) == [1.0, 0.0, None]
    assert exact_match(["a  b"], answer=["a b"]) == [1.0]
    assert exact_match(["a  b"], answer=["a b"], keep_whitespace=True) == [0.0]
    assert exact_match(["Yes"], answer=["yes"]) == [0.0]
    assert exact_match(["Yes"], answer=["yes"], ignore_case=True) == [1.0]
    assert exact_match(["7"], column="label", label=[7], answer=["8"]) == [1.0]
    assert exact_match([[{"role": "assistant", "content": "4"}]], answer=["4"]) == [1.0]
    with pytest.raises(ValueError, match="needs a column 'gold'; columns of the data: answer"):
        exact_match(["7"], column="gold", answer=["8"])


def test_the_package_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, gro.rewards, gro.rewards.maths; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert all(hasattr(gro.rewards, name) for name in gro.rewards.__all__)
