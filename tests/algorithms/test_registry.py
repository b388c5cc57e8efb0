"""Building algorithms by name: parameters survive YAML, and mistakes are answered with the nearest right thing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from algorithms.table import ROWS
from gro.algorithms import build, declaration, names, parameters
from gro.errors import GroError

SETTINGS = [(row.name, dict(variant.params)) for row in ROWS for variant in row.variants]


@pytest.mark.parametrize(("name", "params"), SETTINGS, ids=str)
def test_parameters_survive_yaml(name: str, params: dict):
    assert build(name, **yaml.safe_load(yaml.safe_dump(params))) == build(name, **params)


@pytest.mark.parametrize("name", names())
def test_a_signature_is_the_configuration_schema(name: str):
    known = parameters(declaration(name))
    defaults = {key: parameter.default for key, parameter in known.items()}
    assert build(name, **defaults) == build(name)
    assert yaml.safe_load(yaml.safe_dump(defaults)) == defaults
    doc = inspect.getdoc(declaration(name)) or ""
    for key, parameter in known.items():
        assert parameter.default is not inspect.Parameter.empty, "an algorithm must run as published without parameters"
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n{key}" in doc or f", {key}:" in doc, f"{key} is not documented"


@pytest.mark.parametrize("name", names())
def test_an_unknown_parameter_names_the_nearest(name: str):
    known = list(parameters(declaration(name)))
    if not known:
        with pytest.raises(GroError, match=rf"algorithm.bta: {name} has no such parameter; it has none"):
            build(name, bta=1.0)
    for key in known:
        with pytest.raises(GroError, match=rf"algorithm.{key}x: .*, did you mean '{key}'\?; it has .*{key}"):
            build(name, **{f"{key}x": 1.0})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(GroError) as error:
        build("grpo", clipp=0.1, beta="high")
    first, second = str(error.value).splitlines()
    assert first.startswith("algorithm.clipp: grpo has no such parameter, did you mean 'clip'?")
    assert second == "algorithm.beta: 'high' is no finite number ≥ 0 (default 0.04)"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("grpo", {"beta": "0.1"}, "algorithm.beta: '0.1' is no finite number ≥ 0 (default 0.04)"),
        ("grpo", {"beta": True}, "algorithm.beta: True is no finite number ≥ 0 (default 0.04)"),
        ("grpo", {"beta": float("nan")}, "algorithm.beta: nan is no finite number ≥ 0 (default 0.04)"),
        ("grpo", {"beta": None}, "algorithm.beta: None is no finite number ≥ 0 (default 0.04)"),
        ("grpo", {"ddof": 0.5}, "algorithm.ddof: 0.5 is no whole number ≥ 0 and ≤ 1 (default 0)"),
        ("grpo", {"clip_high": "big"}, "algorithm.clip_high: 'big' is no finite number ≥ 0 or null (default None)"),
        ("grpo", {"kl": "k1"}, "algorithm.kl: 'k1' is no 'k3', 'k2' or 'rk3' (default 'k3')"),
        ("reinforce", {"off_policy": 1}, "algorithm.off_policy: 1 is no true or false (default False)"),
        ("gro", {"shift": 3}, "algorithm.shift: 3 is no text (default 'opponents_soft')"),
        ("gro", {"shift": "oponents"}, "algorithm gro: shift is 'oponents', did you mean 'opponents'?; it can be "),
        ("gro", {"value": "exp"}, "algorithm gro: value exp pushes every completion up"),
        ("dpo", {"beta": 0.0}, "algorithm.beta: 0.0 is no finite number > 0 (default 0.1)"),
        ("dpo", {"beta": "0"}, "algorithm.beta: '0' is no finite number > 0 (default 0.1)"),
        ("dpo", {"label_smoothing": 0.5}, "algorithm.label_smoothing: 0.5 is no finite number ≥ 0 and < 0.5"),
        ("gro", {"beta": 0.0}, "algorithm.beta: 0.0 is no finite number > 0 (default 1.0)"),
        ("gro", {"kappa": -1.0}, "algorithm.kappa: -1.0 is no finite number ≥ 0 (default 10.0)"),
        ("grpo", {"clip": -0.1}, "algorithm.clip: -0.1 is no finite number ≥ 0 and ≤ 1 (default 0.2)"),
        ("grpo", {"ddof": -1}, "algorithm.ddof: -1 is no whole number ≥ 0 and ≤ 1 (default 0)"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(name: str, params: dict, message: str):
    with pytest.raises(GroError) as error:
        build(name, **params)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("wrong", "right"), [("grpoo", "grpo"), ("DPO", "dpo"), ("rlo", "rloo")])
def test_an_unknown_algorithm_names_the_nearest(wrong: str, right: str):
    with pytest.raises(GroError, match=rf"unknown algorithm '{wrong}', did you mean '{right}'\?"):
        build(wrong)


USER_FILE = '''
from gro.algorithms.preference import dpo

def shy(beta: float = 0.5):
    """A user's own."""
    return dpo(beta=beta / 2)

number = 3
'''


def test_a_users_own_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    assert build(f"{path}:shy", beta=0.2) == build("dpo", beta=0.1)
    with pytest.raises(GroError, match="did you mean 'beta'"):
        build(f"{path}:shy", betta=0.2)
    with pytest.raises(GroError, match=r"defines no function 'shi', did you mean 'shy'\?"):
        build(f"{path}:shi")
    with pytest.raises(GroError, match="defines no function 'number'"):
        build(f"{path}:number")
    with pytest.raises(GroError, match="does not exist"):
        build(f"{tmp_path}/other.py:shy")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(GroError, match="cannot be imported: ModuleNotFoundError"):
        build(f"{path}:shy")
