"""Building algorithms by name: parameters survive YAML, and mistakes are answered with the nearest right thing."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from algorithms import updates
from algorithms.table import ROWS
from gro.algorithms import build, declaration, names, parameters
from gro.errors import GroError
from gro.objective import coefficients

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
        with pytest.raises(GroError, match=rf"algorithm.bta: {name} has no such parameter; it has ptx"):
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
        ("gro", {"shift": 3}, "algorithm.shift: 3 is no 'opponents_soft', 'opponents', 'group' or 'none' (default "),
        ("gro", {"shift": "oponents"}, "algorithm.shift: 'oponents' is no 'opponents_soft', 'opponents', "),
        ("gro", {"value": "exp"}, "algorithm gro: value exp pushes every completion up"),
        ("dpo", {"beta": 0.0}, "algorithm.beta: 0.0 is no finite number > 0 (default 0.1)"),
        ("dpo", {"beta": "0"}, "algorithm.beta: '0' is no finite number > 0 (default 0.1)"),
        ("dpo", {"label_smoothing": 0.5}, "algorithm.label_smoothing: 0.5 is no finite number ≥ 0 and < 0.5"),
        ("gro", {"beta": 0.0}, "algorithm.beta: 0.0 is no finite number > 0 (default 1.0)"),
        ("gro", {"kappa": -1.0}, "algorithm.kappa: -1.0 is no finite number ≥ 0 (default 10.0)"),
        ("grpo", {"clip": -0.1}, "algorithm.clip: -0.1 is no finite number ≥ 0 and ≤ 1 (default 0.2)"),
        ("grpo", {"ddof": -1}, "algorithm.ddof: -1 is no whole number ≥ 0 and ≤ 1 (default 0)"),
        ("grpo_trl", {"epsilon": -0.1}, "algorithm.epsilon: -0.1 is no finite number ≥ 0 and ≤ 1"),
        ("grpo", {"ddof": 2}, "algorithm.ddof: 2 is no whole number ≥ 0 and ≤ 1"),
        ("grpo", {"eps": -1e-6}, "algorithm.eps: -1e-06 is no finite number ≥ 0"),
        ("dapo", {"tokens": "all"}, "algorithm.tokens: 'all' is no 'group' or 'batch'"),
        ("dr_grpo", {"length": 0}, "algorithm.length: 0 is no whole number ≥ 1 or null"),
        ("cispo", {"cap": 0}, "algorithm.cap: 0 is no finite number > 0"),
        ("ppo", {"lam": 1.1}, "algorithm.lam: 1.1 is no finite number ≥ 0 and ≤ 1"),
        ("ppo", {"value_clip": 0}, "algorithm.value_clip: 0 is no finite number > 0 or null"),
        ("ppo", {"kl": 0.0, "kl_target": 6.0}, "algorithm ppo: kl is 0; it must be above 0 where it adapts"),
        ("ppo_penalty", {"target": 0}, "algorithm.target: 0 is no finite number > 0"),
        ("trpo", {"delta": 0}, "algorithm.delta: 0 is no finite number > 0"),
        ("awr", {"beta": 0.0}, "algorithm.beta: 0.0 is no finite number > 0"),
        ("marwil", {"rate": 0}, "algorithm.rate: 0 is no finite number > 0 and ≤ 1"),
        ("a_lol", {"variant": "k1"}, "algorithm.variant: 'k1' is no 'sequence', 'token', 'ref_free' or 'kl'"),
        ("rest", {"thresholds": 0.5}, "algorithm.thresholds: 0.5 is no list of finite numbers"),
        ("rest", {"thresholds": [0.5, "x"]}, "algorithm.thresholds: [0.5, 'x'] is no list of finite numbers"),
        ("rest", {"thresholds": [0.7, 0.5]}, "algorithm rest: thresholds must rise, at least one; found [0.7, 0.5]"),
        ("rest", {"thresholds": []}, "algorithm rest: thresholds must rise, at least one; found []"),
        ("rest", {"inner_parameters": 3}, "algorithm.inner_parameters: 3 is no keys and values"),
        ("rest", {"inner": "dpo"}, "algorithm rest: inner is dpo, which learns from pairs; a filter would leave"),
        ("rest", {"inner": "rest"}, "algorithm rest: inner is rest, which has a term that cannot be filtered: Term("),
        ("rest", {"inner": "grpoo"}, "algorithm rest: unknown algorithm 'grpoo', did you mean 'grpo'?"),
        (
            "rest",
            {"inner": "ppo", "inner_parameters": {"entropy": 0.1}},
            "algorithm rest: inner is ppo, which has a term that cannot be filtered: EntropyBonus(",
        ),
        (
            "grpo_trl",
            {"sequence_level": True},
            "algorithm grpo_trl: sequence_level goes with loss_type grpo and beta 0; found dapo and 0",
        ),
        ("dpo", {"ptx": -1.0}, "algorithm.ptx: -1.0 is no finite number ≥ 0 (default 0.0)"),
        ("sft", {"ptx": 1.0}, "algorithm sft: ptx adds the likelihood of demonstrations, from which this algorithm"),
        ("gro", {"ptx": 1.0}, "algorithm gro: ptx adds the likelihood of demonstrations, from which this algorithm"),
        ("hpt", {"ptx": 1.0}, "algorithm hpt: ptx adds the likelihood of demonstrations, from which this algorithm"),
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


@pytest.mark.parametrize("name", ["grpo", "dpo", "ppo", "a_lol", "rft"])
def test_demonstrations_join_any_algorithm(name: str):
    alone, joined = build(name), build(name, ptx=0.5)
    assert build(name, ptx=0.0) == alone
    assert "targets" in joined.roles - alone.roles
    logp_BT, batch = updates.groups()
    batch = replace(batch, advantage_BX=alone.credit(batch, {})[0])
    more_BT = coefficients(logp_BT, batch, joined) - coefficients(logp_BT, batch, alone)
    torch.testing.assert_close(more_BT, 0.5 * coefficients(logp_BT, batch, build("sft")), rtol=0, atol=1e-12)


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
    assert build(f"{path}:shy", beta=0.2, ptx=3.0) == build("dpo", beta=0.1, ptx=3.0)
    with pytest.raises(GroError, match="did you mean 'beta'"):
        build(f"{path}:shy", betta=0.2)
    with pytest.raises(GroError, match=r"defines no function 'shi', did you mean 'shy'\?"):
        build(f"{path}:shi")
    with pytest.raises(GroError, match="defines no function 'number'"):
        build(f"{path}:number")
    with pytest.raises(GroError, match=r"defines no function 'dpi'$"):  # what it imports is no algorithm of the file
        build(f"{path}:dpi")
    with pytest.raises(GroError, match="does not exist"):
        build(f"{tmp_path}/other.py:shy")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(GroError, match="cannot be imported: ModuleNotFoundError"):
        build(f"{path}:shy")
