"""A reward function: where it comes from, how it is called, what it may return.

The signature is TRL's: keywords only, `prompts`, `completions`, `completion_ids`, every extra column of the data as a
list, and `trainer_state`, `log_extra`, `log_metric`.  A function receives what its signature names; with `**kwargs`
it receives everything.  It returns one number per completion, or None where it does not apply.

This module is imported by the worker processes: it must stay free of torch and of `gro.types`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gro.errors import GroError
from gro.rewards.registry import NAMED

LARGEST_REWARD = 1e6
"""Beyond this a reward is a bug (an overflow, a sum of log-probs), and float32 statistics of it lose their digits."""

OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that every call has, whatever the columns of the data."""

_F = TypeVar("_F", bound=Callable[..., Any])


def reward(
    *,
    samplewise: bool = False,
    time_limit: float | None = None,
    options: Sequence[str] = (),
    warm_up: Callable[[], None] | None = None,
) -> Callable[[_F], _F]:
    """Says more about a reward function than its signature can.

    samplewise: each score depends on its own sample only, so that a batch may be spread over several processes and a
    sample that hangs is known at once.  time_limit: seconds for one call (one sample where samplewise).  options:
    keywords that only a recipe sets; a column of that name is not passed.  warm_up: called once in every process before
    the clock runs.

    >>> @reward(samplewise=True, time_limit=2.0)
    ... def short(completions, **columns):
    ...     return [float(len(text) < 100) for text in completions]
    """

    def note(function: _F) -> _F:
        notes = {"samplewise": samplewise, "time_limit": time_limit, "options": tuple(options), "warm_up": warm_up}
        for name, value in notes.items():
            setattr(function, name, value)
        return function

    return note


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a reward may know of the run, under TRL's name for it."""

    global_step: int = 0


@dataclass(frozen=True, slots=True)
class Unfit:
    """A returned value that is no reward, described so that a person recognises it."""

    description: str


class WrongReturnError(TypeError):
    """The function returned something other than one value per completion: a fault of the function, not of a sample."""


@dataclass(slots=True)
class Logged:
    """What a reward logged during one call."""

    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """A number for the log of the step."""
        self.metrics[name] = float(value)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """One value per completion for the table of samples."""
        self.extra[column] = list(values)


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A loaded function with the parameters that the recipe gave it."""

    call: Callable[..., Any]
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    wants: frozenset[str] | None = None
    """Keywords it accepts; None: all."""
    needs: frozenset[str] = frozenset()
    """Keywords without which it cannot be called."""

    @property
    def samplewise(self) -> bool:
        return bool(getattr(self.call, "samplewise", False))

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(getattr(self.call, "options", ()))

    @property
    def time_limit(self) -> float | None:
        return getattr(self.call, "time_limit", None)

    def warm_up(self) -> None:
        """Do what is slow once, so that it does not count against the first call."""
        if (prepare := getattr(self.call, "warm_up", None)) is not None:
            prepare()

    def score(self, columns: Mapping[str, Sequence[Any]], logged: Logged, state: TrainerState) -> list[Any]:
        """One entry per completion: a float, None (not applicable) or Unfit.

        Raises what the function raises, and WrongReturnError for anything but a list of the right length.
        """
        columns_of_data = {k: v for k, v in columns.items() if k not in self.options}
        offered = {
            **columns_of_data,
            "trainer_state": state,
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
        offered.update(self.params)  # what the recipe says beats a column of the same name
        if missing := self.needs - offered.keys():
            have = ", ".join(sorted(columns.keys() - set(OFFERED))) or "none"
            raise GroError(f"reward {self.name!r} needs {_quoted(missing)}; columns of the data: {have}")
        accepted = offered if self.wants is None else {k: v for k, v in offered.items() if k in self.wants}
        result = self.call(**accepted)
        if inspect.isawaitable(result):
            import asyncio  # late: it is half of what a process of a function without it would import

            result = asyncio.run(_awaited(result))
        return checked(result, len(columns["completions"]), self.name)


async def _awaited(result: Any) -> Any:
    return await result


def checked(result: Any, expected: int, name: str) -> list[Any]:
    """The returned list with every value a float, None or Unfit."""
    if not isinstance(result, list | tuple):
        raise WrongReturnError(
            f"reward {name!r} must return a list with one number (or None) for each of the {expected} completions, "
            f"and returned {described(result)}"
        )
    if len(result) != expected:
        raise WrongReturnError(f"reward {name!r} returned {len(result)} values for {expected} completions")
    return [_checked_value(value) for value in result]


def _checked_value(value: Any) -> float | Unfit | None:
    if value is None:
        return None
    # bool is an int in Python; True as a reward is nearly always a forgotten float().
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return Unfit(described(value))
    try:
        number = float(value)
    except OverflowError:
        return Unfit(f"{type(value).__name__} too large for a float")
    return number if is_reward(number) else Unfit(described(number))


def is_reward(value: object) -> bool:
    """A finite float of a size that can be a reward."""
    return type(value) is float and math.isfinite(value) and abs(value) <= LARGEST_REWARD


def described(value: object) -> str:
    """Type and, where it is short, the value: `str 'abc'`, `float nan`, `torch.Tensor`."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if kind is float and abs(value) > LARGEST_REWARD and math.isfinite(value):  # type: ignore[arg-type]
        return f"float {value!r}, beyond ±{LARGEST_REWARD:g}"
    if kind in (str, bool, int, float):
        text = repr(value)
        return f"{name} {text if len(text) <= 40 else text[:37] + '...'}"
    return name


# ------------------------------------------------------------------------------------------------ loading


def load(place: str | Callable[..., Any], params: Mapping[str, Any] | None = None) -> RewardFunction:
    """The reward function at `path/to/file.py:function`, `package.module:function`, or by its registered name.

    Raises GroError naming what is missing, with the nearest name that exists.
    """
    if isinstance(place, str):
        call = _find(place)
        name = place if place in NAMED else getattr(call, "__name__", type(call).__name__)
    else:
        call = place
        # A partial has no name of its own.
        name = getattr(getattr(call, "func", call), "__name__", type(call).__name__)
    return _described(call, name, dict(params or {}))


def _find(place: str) -> Callable[..., Any]:
    file_or_module, colon, function = NAMED.get(place, place).rpartition(":")
    if not colon:
        near = nearest(place, NAMED)
        raise GroError(
            f"reward {place!r} is not known{near}. Give one of {_quoted(NAMED)}, path/to/file.py:function or "
            "package.module:function"
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
    allowed = list(getattr(call, "options", ())) or allowed
    for key in params:
        if allowed is not None and key not in allowed:
            known = nearest(key, [*allowed, "weight", "time_limit"])
            raise GroError(f"reward {name!r} has no parameter {key!r}{known}")
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
    names = sorted(set(names))
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; there are {_quoted(names)}" if 0 < len(names) <= 12 else ""


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
