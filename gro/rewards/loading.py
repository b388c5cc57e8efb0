"""Where a reward function is found, and whether it takes the parameters that a recipe gives it.

This module is imported by the worker processes: it must stay free of torch and of `gro.types`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gro.errors import GroError, closest
from gro.rewards.functions import RewardFunction, described, notes_of, quoted
from gro.rewards.registry import NAMED, resolved

_EVERY = ("weight", "clip", "time_limit")
"""Keys of every reward's item in a recipe."""


def load(place: str | Callable[..., Any], params: Mapping[str, Any] | None = None) -> RewardFunction:
    """The reward function at `path/to/file.py:function`, `package.module:function`, an address, or by its name.

    Raises GroError naming what is missing, with the nearest name that exists, and where it refuses its parameters.
    """
    params = dict(params or {})
    if isinstance(place, str):
        place, params = resolved(place, params)
        call = _find(place)
        name = place if place in NAMED else getattr(call, "__name__", type(call).__name__)
    else:
        call = place
        # A partial has no name of its own.
        name = getattr(getattr(call, "func", call), "__name__", type(call).__name__)
    function = _described(call, name, params)
    if (check := notes_of(call).check) is not None:
        try:
            check(function.params)
        except (TypeError, ValueError) as error:
            raise GroError(f"reward {name!r}: {error}") from error
    return function


def _find(place: str) -> Callable[..., Any]:
    file_or_module, colon, function = NAMED.get(place, place).rpartition(":")
    if not colon:
        raise GroError(
            f"reward {place!r} is not known{_similar(place, NAMED)}. Give one of {quoted(NAMED)}, "
            "path/to/file.py:function, package.module:function or http://host/path"
        )
    is_file = file_or_module.endswith(".py") or "/" in file_or_module
    module = _module_of_file(file_or_module) if is_file else _module_of_name(file_or_module)
    found = getattr(module, function, None)
    if not callable(found):
        mine = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and not inspect.isclass(v)]
        what = f"is {described(found)}, not a function" if hasattr(module, function) else "does not exist"
        raise GroError(f"reward function {function!r} {what} in {file_or_module}{nearest(function, mine)}")
    return found


def _module_of_file(text: str) -> Any:
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise GroError(f"reward file {text} does not exist{nearest(path.name, beside)}")
    spec = importlib.util.spec_from_file_location(f"gro_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # before execution, so that its dataclasses and pickles find their module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # it may import the files beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GroError(f"reward file {text} cannot be imported: {_in_a_line(error, path)}") from error
    return module


def _module_of_name(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise GroError(f"reward module {name!r} does not exist (no module {error.name!r} on the path)") from error
        raise GroError(f"reward module {name!r} cannot be imported: {_in_a_line(error)}") from error
    except Exception as error:
        raise GroError(f"reward module {name!r} cannot be imported: {_in_a_line(error)}") from error


def _described(call: Callable[..., Any], name: str, params: Mapping[str, Any]) -> RewardFunction:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature takes what it is given
        return RewardFunction(call, name, params)
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise GroError(f"reward {name!r} is called with keywords only, and has positional-only parameters")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    # **kwargs would swallow a misspelt parameter in silence, so it is searched only where there are no named ones.
    optional = any(p.default is not p.empty for p in named)
    allowed = None if takes_all and not optional else [p.name for p in named]
    allowed = list(notes_of(call).options) or allowed
    for key in params:
        if allowed is not None and key not in allowed:
            known = nearest(key, [*allowed, *_EVERY])
            raise GroError(f"reward {name!r} has no parameter {key!r}{known}")
        # What is nearly one of these is refused there too: a share that does not count would show nowhere.
        if allowed is None and key not in {p.name for p in named} and (meant := _similar(key, _EVERY, cutoff=0.8)):
            raise GroError(f"reward {name!r} names no parameter {key!r}{meant}")
    return RewardFunction(
        call=call,
        name=name,
        params=params,
        wants=None if takes_all else frozenset(p.name for p in named),
        needs=frozenset(p.name for p in named if p.default is p.empty),
    )


def _in_a_line(error: BaseException, path: Path | None = None) -> str:
    """`NameError: name 'x' is not defined (line 3)`: the last frame inside the file, if there is one."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if path is not None and trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of the names, or where none is, all of them, if they are few."""
    names = sorted(set(names))
    if close := _similar(name, names):
        return close
    return f"; there are {quoted(names)}" if 0 < len(names) <= 12 else ""


def _similar(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    close = closest(name, names, cutoff)
    return "" if close is None else f"; did you mean {close!r}?"
