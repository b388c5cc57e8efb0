"""Mutated recipes: no other error than one that names its key (or file and line), none late, nothing wrong accepted.

The recipes are those of recipes/.  What was accepted is compared with the recipe as it was written: every key of it
must have reached the settings, with its value and of its type.
"""

from __future__ import annotations

import copy
import math
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gro.config import Config, ConfigError, load_config
from gro.errors import GroError
from gro.recipe import all_keys
from gro.runs.plain import dump_yaml, load_yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
COUNTS: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A directory in which the files that the recipes name exist; and what is imported once, has been."""
    folder, before = tmp_path_factory.mktemp("config-fuzz"), Path.cwd()
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    os.chdir(folder)
    for recipe in RECIPES:
        for path in load_config(recipe, needs=()).files.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        load_config(recipe)
    yield
    os.chdir(before)


# --- what was meant ---------------------------------------------------------------------------------------------------


def written_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The short forms in full, as the guide explains them."""
    full = dict(raw)
    if isinstance(full.get("model"), str):
        full["model"] = {"path": full["model"]}
    if isinstance(full.get("algorithm"), str):
        full["algorithm"] = {"name": full["algorithm"]}
    elif isinstance(full.get("algorithm"), Mapping) and "file" in full["algorithm"]:
        full["algorithm"] = {"name" if k == "file" else k: v for k, v in full["algorithm"].items()}
    offline = full.get("offline")
    if isinstance(offline, Mapping):
        full["offline"] = [offline if "data" in offline else {"data": offline}]
    if isinstance(full.get("rewards"), str | Mapping):
        full["rewards"] = [full["rewards"]]
    return full


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a recipe with what is there, leaves and what holds them."""
    if place:
        yield place, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*place, key))


def same(meant: Any, found: Any) -> bool:
    """Equal, and of the same type but for whole numbers where fractions are allowed."""
    if isinstance(meant, Mapping):
        return isinstance(found, Mapping) and all(k in found and same(v, found[k]) for k, v in meant.items())
    if isinstance(meant, list | tuple):
        return isinstance(found, list) and len(meant) == len(found) and all(map(same, meant, found))
    if isinstance(meant, float) and not math.isfinite(meant):
        return False
    kinds = {type(meant), type(found)}
    return meant == found and (len(kinds) == 1 or kinds == {int, float})


POSITIVE = {
    "steps", "prompts_per_step", "group_size", "max_new_tokens", "learning_rate", "tokens_per_micro", "epochs",
    "minibatches", "temperature", "capacity", "limit", "slots", "members",
}  # fmt: skip
"""Keys whose numbers are above 0 wherever they stand."""


def is_sound(config: Config, raw: Mapping[str, Any]) -> None:
    """What was accepted is what was written, and nothing of it is senseless."""
    resolved = config.resolved()
    for key, value in written_out(raw).items():
        if value is not None:
            assert key in resolved, f"accepted an unknown key: {key}"
            assert same(value, resolved[key]), f"{key}: {value!r} became {resolved[key]!r}"
    for place, value in leaves(raw):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if place[-1] in POSITIVE and place[0] not in ("rewards", "algorithm") and "rewards" not in place:
            assert value is None or not number or value > 0, f"{place}: {value}"
        assert not isinstance(value, int) or abs(value) <= 2**53, f"{place}: {value}"
        assert not isinstance(value, float) or math.isfinite(value), f"{place}: {value}"


# --- how it is answered -----------------------------------------------------------------------------------------------


def answered(load: Callable[[], Config], raw: Callable[[], Any], path: Path, also: tuple[str, ...] = ()) -> None:
    """A Config that means what was written, or an error by key; of what is no recipe at all, by file and line.

    also: keys that may be named beside those of the settings and of the recipe.
    """
    begun = time.process_time()
    config = error = None
    try:
        config = load()
    except GroError as e:
        error = e
    took = time.process_time() - begun
    assert took < 1, f"{took:.2f} s of processor time"
    COUNTS["slowest, µs"] = max(COUNTS["slowest, µs"], round(took * 1e6))
    COUNTS["all"] += 1
    if config is not None:
        COUNTS["accepted"] += 1
        is_sound(config, raw())
        return
    COUNTS["refused"] += 1
    assert str(path) in str(error)
    if not isinstance(error, ConfigError):
        said = str(error)
        assert " holds " in said or "too deeply" in said or re.search(r"\bline \d+", said), said
        return
    named = tuple(k for k in {*Config.model_fields, *map(str, raw()), *also} if k)
    assert error.problems
    for problem in error.problems:
        COUNTS["problems"] += 1
        key, _, said = problem.partition(": ")
        assert said.strip(), problem
        assert key.startswith(named) or problem.startswith(also), problem
        assert len(problem) < 1000, problem


# --- mutations --------------------------------------------------------------------------------------------------------

NAMES = sorted({*all_keys(), "name", "file", "beta", "reward", "weight", "output_dir", "lr", "", " ", "é", "__class__"})
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e308, 10**18, 10**400, 2**53 + 1,
    "", " ", "3", "yes", "null", "x", "sft", "dpo", "grpo", "bradley_terry", "maths", "x.py:f", ":", "a:b", "\0",
    "\ud800", "../../etc/passwd", "data/gsm8k.jsonl", "~", "$HOME", "é🙂\u2028", "x" * 3000, [], {}, [[]], [None], [{}],
    [1, 2], {"path": "data/gsm8k.jsonl"}, {"data": {}}, {"create": {}}, {"name": "dpo"}, {"reward": "maths"},
    {"file": 3}, {"": ""}, {"a": {"b": {"c": []}}}, b"x", {1: 2}, ["maths", "maths"],
]  # fmt: skip
TEXTS = (
    "\t", " ", "\n", ":", "- ", "#", "'", '"', "{", "}", "[", "]", "&a ", "*a", "<<: ", "!x ",
    "!!python/object:os.system ", "yes", "no", "on", "~", "null", ".nan", ".inf", "-.inf", "0x1f", "010", "1_000",
    "1:30", "1e3", "2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "99999999999999999999", "9" * 5000, "|",
    ">", "?", "%YAML 9.9\n", "---\n", "...\n", "\0", "\x85", "\u2028", "\ufeff", "\x07", "é", "=", "@", "`", ",",
    "[" * 2000, "run: x\n", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!float x", "!!int 1.5", "!!timestamp 1",
)  # fmt: skip


def misspelt(name: str, rng: random.Random) -> str:
    at = rng.randrange(len(name) + 1) if name else 0
    return rng.choice([name + "s", name[:at] + "_" + name[at:], name[:at] + name[at + 1 :], name.upper(), "x" + name])


def mutated(recipe: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The recipe with one to three things set, removed, misspelt, moved or added."""
    recipe = copy.deepcopy(recipe)
    for _ in range(rng.randrange(1, 4)):
        places = [place for place, _ in leaves(recipe)]
        if not places:
            break
        *parents, last = rng.choice(places)
        owner: Any = recipe
        for part in parents:
            owner = owner[part]
        kind = rng.randrange(6)
        if kind == 0:
            del owner[last]
        elif kind == 1 and isinstance(owner, dict):
            owner[misspelt(str(last), rng)] = owner.pop(last)
        elif kind == 2 and isinstance(owner, dict):  # somewhere else
            others = [o for p in places if isinstance(o := at(recipe, p), dict)] + [recipe]
            value = owner.pop(last)
            target = rng.choice(others)
            target[last] = copy.deepcopy(value) if isinstance(value, dict | list) else value
        elif kind == 3 and isinstance(owner, dict):
            owner[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        else:
            owner[last] = copy.deepcopy(rng.choice(VALUES))
    return recipe


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        value = value[part]
    return value


def keys_of(path: Path, rng: random.Random) -> None:
    """Keys and values changed, and the file written anew."""
    recipe = mutated(load_yaml(path.read_text()), rng)
    file = Path("keys.yaml")
    try:
        file.write_text(dump_yaml(recipe), encoding="utf-8")
    except (UnicodeEncodeError, ValueError):  # half a surrogate pair, a number of 5000 digits: no file holds them
        return
    answered(lambda: load_config(file), lambda: load_yaml(file.read_text(encoding="utf-8")), file)


def text_of(path: Path, rng: random.Random) -> None:
    """The text of the file changed, whatever that makes of it."""
    text = path.read_text()
    for _ in range(rng.randrange(1, 4)):
        where, kind = rng.randrange(len(text) + 1), rng.randrange(6)
        if kind == 0:
            text = text[:where] + text[where + rng.randrange(1, 12) :]
        elif kind == 1:
            text = text[:where] + text[where : where + rng.randrange(60)] + text[where:]
        elif kind == 2:
            lines = text.split("\n")
            line = rng.randrange(len(lines))
            lines[line] = rng.choice(["  " + lines[line], lines[line].strip(), lines[line] + "\n" + lines[line]])
            text = "\n".join(lines)
        elif kind == 3 and len(places := [m.start() for m in re.finditer(r"(?<=: )\S", text)]):
            where = rng.choice(places)
            text = text[:where] + rng.choice(TEXTS) + re.sub(r"^[^\s,}\]]*", "", text[where:])
        else:
            text = text[:where] + rng.choice(TEXTS) + text[where:]
    raw = text.encode()
    if rng.random() < 0.1:
        where = rng.randrange(len(raw))
        raw = raw[:where] + bytes([rng.randrange(256)]) + raw[where + 1 :]
    file = Path("text.yaml")
    file.write_bytes(raw)
    answered(lambda: load_config(file), lambda: load_yaml(raw.decode("utf-8-sig")), file)


def overrides_of(path: Path, rng: random.Random) -> None:
    """Dotted overrides: right keys, wrong ones, odd values, no override at all."""
    raw = load_yaml(path.read_text())
    places = [".".join(map(str, place)) for place, _ in leaves(raw)]
    known = [key for keys in all_keys().values() for key in keys]
    given = []
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice([rng.choice(places), rng.choice(known), misspelt(rng.choice(known), rng), rng.choice(NAMES)])
        key += rng.choice(["", "", "", ".x", ".0", "..", ".", " "])
        value = rng.choice([str(rng.choice(VALUES)), rng.choice(TEXTS)])
        given.append(rng.choice([f"{key}={value}", f"{key}={value}", f"--{key}={value}", key, f"{key}=={value}"]))
    also: tuple[str, ...] = tuple(re.split(r"[.=]", g.strip().removeprefix("--"))[0].strip() for g in given) + tuple(
        repr(g)[:150] for g in given
    )

    def meant() -> dict[str, Any]:
        return {key: value for key, value in raw.items() if key not in also}

    answered(lambda: load_config(path, given), meant, path, (*also, *raw))


WAYS = {"keys": keys_of, "text": text_of, "overrides": overrides_of}
FEW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
WHAT = (st.sampled_from(RECIPES), st.randoms(use_true_random=False))


@pytest.mark.fault("C1")
@pytest.mark.parametrize("way", WAYS)
def test_some_mutated_recipes_are_answered(way: str) -> None:
    @FEW
    @given(*WHAT)
    def run(path: Path, rng: random.Random) -> None:
        WAYS[way](path, rng)

    run()


@pytest.mark.fault("C1")
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", WAYS)
def test_five_thousand_mutated_recipes_are_answered(way: str) -> None:
    COUNTS.clear()

    @settings(FEW, max_examples=1700, phases=(Phase.reuse, Phase.generate))
    @given(*WHAT)
    def run(path: Path, rng: random.Random) -> None:
        WAYS[way](path, rng)

    run()
    print(f"\n{way}: {dict(COUNTS)}")
    assert COUNTS["all"] >= 1600


def test_the_oracle_finds_what_was_accepted_wrongly() -> None:
    config = load_config(RECIPES[0])
    raw = load_yaml(RECIPES[0].read_text())
    is_sound(config, raw)
    for wrong in ({"trainin": 1}, {"group_size": "8"}, {"group_size": True}, {"run": "elsewhere"}):
        with pytest.raises(AssertionError):
            is_sound(config, raw | wrong)
    with pytest.raises(AssertionError):
        is_sound(config, raw | {"training": raw["training"] | {"stepz": 3}})
    assert yaml.safe_load("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}
    assert [place for place, _ in leaves({"a": [1, {"b": "c"}]})] == [("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
