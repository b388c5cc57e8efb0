"""Recipes: YAML plus dotted overrides → a checked Config, or every error at once.

First everything that can be seen without torch: keys, types, ranges, names, files.  Only when that is right are the
algorithm built and the settings compared with each other, which takes seconds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from yaml.reader import ReaderError

from gro import signatures
from gro.contradictions import contradictions
from gro.errors import GroError, nearest
from gro.explain import explain
from gro.judges.spec import problems as judge_problems
from gro.raters.spec import HUMAN
from gro.raters.spec import problems as human_problems
from gro.recipe import Config, annotation_at
from gro.rewards.functions import OFFERED
from gro.rewards.registry import NAMED, REMOTE, resolved
from gro.rewards.rewards import RewardSpec
from gro.runs.plain import encodable, load_yaml
from gro.schema import LARGEST
from gro.signatures import Signature

__all__ = ["Config", "ConfigError", "check_config", "load_config"]

_DEEPEST, _MOST = 20, 100_000
"""How deeply a recipe may be nested and how many values it may have: far beyond any, and little enough to be quick."""

_LONGEST = 900
"""Characters of one problem: a value in it may be of any length."""


class ConfigError(GroError):
    """All that is wrong with a recipe, one line each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(_short(problem, _LONGEST) for problem in problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {p}" for p in self.problems))


DATA = ("offline", "online", "eval")
"""Keys under which data are named."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, needs: Collection[str] = DATA) -> Config:
    """The recipe at `path` with overrides "key.sub=value"; ConfigError with every problem of the recipe itself.

    A run directory stands for the configuration in it.  needs: the keys whose data files must exist.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise GroError(f"{path} is a directory without config.yaml; give a recipe or the directory of a run")
        path = path / "config.yaml"
    raw = _read(path)
    problems = [line for override in overrides if (line := _override(raw, override))]
    try:
        config = check_config(raw, str(path), needs=needs)
    except ConfigError as error:
        raise ConfigError(str(path), [*problems, *error.problems]) from None
    if problems:
        raise ConfigError(str(path), problems)
    return config


def check_config(raw: Mapping[str, Any], source: str, *, needs: Collection[str] = DATA) -> Config:
    """A Config of plain values; ConfigError naming every unknown key, wrong value and contradiction."""
    if problems := list(_not_plain(raw)):
        raise ConfigError(source, problems)
    full = _written_out(raw)
    one_data_set = isinstance(raw.get("offline"), Mapping) and "data" not in raw["offline"]
    config = None
    try:
        # As JSON, in which a list may stand for a tuple and keys and values for a dataclass, and nothing else is lax.
        config = Config.model_validate_json(json.dumps(full))
    except ValidationError as error:
        problems = explain(error.errors(include_url=False), one_data_set=one_data_set)
    problems += [*_algorithm_problems(full.get("algorithm")), *_reward_problems(full)]
    if config is not None:
        problems += _missing_files(config, needs, one_data_set)
        problems += [] if problems else contradictions(config)
    if problems or config is None:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return config


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise GroError(f"recipe {str(path)!r} does not exist{nearest(path.name, beside)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GroError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise GroError(f"{path}, line {line}: found the byte 0x{byte:02x}; it is not UTF-8 text") from None
    try:
        raw = load_yaml(text)
    except ReaderError as error:
        line, found = text.count("\n", 0, error.position) + 1, f"U+{ord(text[error.position]):04X}"
        raise GroError(f"{path}, line {line}: found the character {found}; it is not valid YAML") from error
    except RecursionError as error:
        raise GroError(f"{path} is not valid YAML: too large or nested too deeply") from error
    except Exception as error:  # PyYAML raises its own errors, and now and then any other
        raise GroError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"{type(raw).__name__} {str(raw)[:40]!r}"
        raise GroError(f"{path} holds {found}; expected keys and values, such as `run: runs/first`")
    return raw


def _written_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """With what may be written shortly in full."""
    full = dict(raw)
    offline, model, algorithm, rewards = (full.get(key) for key in ("offline", "model", "algorithm", "rewards"))
    if isinstance(offline, Mapping):
        full["offline"] = [offline if "data" in offline else {"data": offline}]
    if isinstance(model, str):
        full["model"] = {"path": model}
    if isinstance(algorithm, str):
        full["algorithm"] = {"name": algorithm}
    if isinstance(algorithm, Mapping) and "file" in algorithm and "name" not in algorithm:
        full["algorithm"] = {"name" if key == "file" else key: value for key, value in algorithm.items()}
    if isinstance(rewards, str | Mapping):
        full["rewards"] = [rewards]
    return full


def _not_plain(value: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """What a recipe cannot hold: dates, bytes, numbers beyond all sense, keys that are no text, too much of anything.

    Aliases can make a short YAML file endlessly large, or contain itself.
    """
    left = _MOST
    stack: list[tuple[Any, str, int]] = [(value, key, depth)]
    while stack:
        value, key, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            yield f"{key.split('.')[0]}: too large or nested too deeply for a recipe"
            return
        place = f"{key}." if key or depth else ""  # a key may be empty
        if isinstance(value, Mapping):
            for name in value:
                if isinstance(name, str) and name != encodable(name):
                    yield f"{place}{encodable(name)}: found half a surrogate pair; expected text that UTF-8 can hold"
                elif not isinstance(name, str):
                    yield f"{place}{name}: found the key {name!r}, a {type(name).__name__}; keys are text: quote it"
            stack += [(inner, f"{place}{name}", depth + 1) for name, inner in value.items()]
        elif isinstance(value, list | tuple):
            stack += [(inner, f"{place}{i}", depth + 1) for i, inner in enumerate(value)]
        elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            yield f"{key}: found a whole number beyond ±2⁵³, which no setting needs"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: found {value}; expected a finite number"
        elif isinstance(value, str) and value != encodable(value):
            yield f"{key}: found half a surrogate pair, {encodable(value)[:40]}; expected text that UTF-8 can hold"
        elif value is not None and not isinstance(value, str | int | float):
            yield f"{key}: found a {type(value).__name__}, {str(value)[:40]}; put it in quotes to have it as text"


# --- overrides --------------------------------------------------------------------------------------------------------


def _override(raw: dict[str, Any], override: str) -> str | None:
    """Puts "key.sub=value" into the recipe; returns what is wrong with it."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
        return f"{_short(override)!r}: an override is key=value or key.sub=value, without spaces around ="
    key = key.strip().removeprefix("--")
    place = tuple(key.split("."))
    try:
        value = _value(place, text)
    except GroError as error:
        return f"{key}: {error}"
    here: Any = raw
    for i, part in enumerate(place[:-1]):
        here = _step(here, place[:i], part)
        if isinstance(here, str):
            return f"{key}: {here}"
    last = place[-1]
    if isinstance(here, list):
        if not last.isdigit() or int(last) >= len(here):
            return f"{key}: {'.'.join(place[:-1])} is a list of {len(here)}; name one by its number, from 0"
        here[int(last)] = value
    else:
        here[last] = value
    return None


_SHORT = {"model": "path", "algorithm": "name"}
"""What a text alone means there."""


def _step(here: Any, above: tuple[str, ...], part: str) -> Any:
    """What an override goes through; a text says what is wrong."""
    place = ".".join((*above, part))
    if isinstance(here, list):
        if not part.isdigit() or int(part) >= len(here):
            return f"{'.'.join(above)} is a list of {len(here)}; name one by its number, from 0"
        index: Any = int(part)
    else:
        index = part
        here.setdefault(part, {})
    inner = here[index]
    if isinstance(inner, str) and (not above and part in _SHORT):
        inner = {_SHORT[part]: inner}
    elif isinstance(inner, str) and above and above[-1] == "rewards":
        inner = {"reward": inner}
    elif inner is None:
        inner = {}
    if not isinstance(inner, dict | list):
        return f"{place} is {inner!r} in the recipe, which has no keys below it"
    here[index] = inner
    return inner


def _value(place: tuple[str, ...], text: str) -> Any:
    """The text as YAML; as it stands where text belongs and YAML makes something else of it (`run=2024-01-01`)."""
    known = annotation_at(place)
    adapter = TypeAdapter(known) if known is not None else None
    try:
        value = load_yaml(text)
    except Exception as error:
        if adapter is not None and _accepts(adapter, text):
            return text
        said = " ".join(str(error).split())
        raise GroError(f"the value {_short(repr(text))} is not valid YAML: {_short(said)}") from error
    if adapter is None or isinstance(value, str) or _accepts(adapter, value) or not _accepts(adapter, text):
        return value
    return text


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _accepts(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError):
        return False
    return True


# --- names and files --------------------------------------------------------------------------------------------------


def _algorithm_problems(spec: Any) -> list[str]:
    """What is wrong with the algorithm's name and parameters, as far as its source tells."""
    if not isinstance(spec, Mapping):
        return []  # reported as missing, or as not keys and values
    if not isinstance(spec.get("name"), str):
        return ["algorithm: give its name, or {name: ..., and parameters}, or {file: mine.py:my_objective, ...}"]
    if "file" in spec:
        return ["algorithm: give its name or its file, not both"]
    name, parameters = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    known = signatures.algorithms()
    signature: Signature | None
    if name in known:
        signature = known[name]
    elif ":" in name:
        file, _, function = name.rpartition(":")
        try:
            signature = signatures.in_file(Path(file), function)
        except GroError as error:
            return [f"algorithm: {error}"]
    elif name.endswith(".py"):
        return [f"algorithm: {name!r} is a file; name the function in it too: {name}:my_objective"]
    else:
        return [f"algorithm: unknown algorithm {name!r}{nearest(name.lower(), known)}; `gro algorithms` lists all"]
    return signatures.with_everywhere(signature).problems("algorithm", name, parameters) if signature else []


def _reward_problems(full: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names and parameters of rewards; they are loaded later, in processes of their own."""
    evaluation = full.get("eval")
    lists = {"rewards": full.get("rewards")}
    lists |= {"eval.rewards": evaluation.get("rewards")} if isinstance(evaluation, Mapping) else {}
    problems = []
    for key, items in lists.items():
        for i, item in enumerate(items if isinstance(items, list | tuple) else ()):
            try:
                problems += _reward_problem(RewardSpec.parse(item), f"{key}.{i}")
            except GroError as error:
                problems.append(f"{key}.{i}: {error}")
    return problems


def _reward_problem(spec: RewardSpec, key: str) -> list[str]:
    place, arguments = resolved(str(spec.name_or_path), spec.params)
    if place == "judge":
        return judge_problems(arguments, key)
    if place == HUMAN:
        return [*human_problems(arguments, key), *_inner_problems(arguments.get("simulated"), f"{key}.simulated")]
    file, colon, function = NAMED.get(place, place).rpartition(":")
    if not colon or not file or not function:
        names = ", ".join(NAMED)
        return [f"{key}: unknown reward {place!r}{nearest(place, NAMED)}; give {names} or path/to/file.py:function"]
    ours = place in NAMED or place == REMOTE
    if ours:
        path = Path(__file__).parents[1] / (file.replace(".", "/") + ".py")
    elif file.endswith(".py") or "/" in file:
        path = Path(os.path.expanduser(file))
    else:
        return []  # of a module: only importing it tells
    signature = signatures.in_file(path, function, decorated=ours)
    if signature is None:
        return []
    # **kwargs takes the columns of the data: beside named parameters a further key is more likely a mistake.
    settings = {name: p for name, p in signature.parameters.items() if name not in OFFERED}
    closed = Signature(settings, signature.open and all(p.required for p in settings.values()))
    unknown = {name: value for name, value in arguments.items() if name not in settings}
    # Of our own it is known that what is not a column's name is a setting, with a type.
    known = {name: value for name, value in arguments.items() if name in settings}
    problems = Signature(settings).problems(key, function, known) if ours else []
    names = [*settings, "weight", "clip", "time_limit"]
    if ours or not closed.open:
        problems += [f"{key}.{name}: {place} has no such parameter{nearest(name, names)}" for name in unknown]
    return problems


def _inner_problems(simulated: Any, key: str) -> list[str]:
    """Of the reward that simulated people are made from."""
    if not isinstance(simulated, Mapping) or "reward" not in simulated:
        return []
    try:
        spec = RewardSpec.parse(simulated["reward"])
        if spec.name_or_path == HUMAN:
            return [f"{key}.reward: people are simulated from a reward that is none of people"]
        return _reward_problem(spec, f"{key}.reward")
    except GroError:
        return []  # told of with the rest of them


def _missing_files(config: Config, needs: Collection[str], one_data_set: bool) -> list[str]:
    problems = []  # (os.path knows no name that is too long to look for)
    for key, path in config.files.items():
        if key.startswith(tuple(needs)) and not os.path.isfile(path):
            what = "is a directory, expected a file" if os.path.isdir(path) else "does not exist"
            relative = "" if Path(path).is_absolute() else f" (seen from {Path.cwd()})"
            shown = key.replace("offline.0.data", "offline", 1) if one_data_set else key
            problems.append(f"{shown}: {path!r} {what}{relative}")
    return problems
