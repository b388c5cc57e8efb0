"""A reward function: what is known of it, how it is called, what it may return.

The signature is TRL's: keywords only, `prompts`, `completions`, `completion_ids`, every extra column of the data as a
list, and `trainer_state`, `log_extra`, `log_metric`.  A function receives what its signature names; with `**kwargs`
it receives everything.  It returns one number per completion, None where it does not apply, or an exception where this
completion alone could not be scored.

This module is imported by the worker processes: it must stay free of torch and of `gro.types`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gro.errors import GroError

LARGEST_REWARD = 1e6
"""Beyond this a reward is a bug (an overflow, a sum of log-probs), and float32 statistics of it lose their digits."""

OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that every call has, whatever the columns of the data."""

_F = TypeVar("_F", bound=Callable[..., Any])

Params = Mapping[str, Any]
"""The keywords that a recipe gave a reward."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What `reward` was told of a function."""

    samplewise: bool = False
    batch: Callable[[Params], int] | int | None = None
    time_limit: Callable[[Params], float] | float | None = None
    options: tuple[str, ...] = ()
    check: Callable[[Params], None] | None = None
    warm_up: Callable[[Params], None] | None = None


def notes_of(function: Callable[..., Any]) -> Notes:
    """What `reward` was told of a function; the defaults where it was never called on it."""
    return getattr(function, _NOTES, Notes())


_NOTES = "_gro_reward"


def reward(
    *,
    samplewise: bool = False,
    batch: Callable[[Params], int] | int | None = None,
    time_limit: Callable[[Params], float] | float | None = None,
    options: Sequence[str] = (),
    check: Callable[[Params], None] | None = None,
    warm_up: Callable[[Params], None] | None = None,
) -> Callable[[_F], _F]:
    """Says more about a reward function than its signature can.

    samplewise: each score depends on its own sample only, so that a batch may be spread over several processes and a
    sample that hangs is known at once.  batch: most completions of one call; calls may run side by side.  time_limit:
    seconds for one call (one sample where samplewise).  Both may be functions of the recipe's keywords.  options:
    keywords that only a recipe sets; a column of that name is not passed.  check: called with the recipe's keywords
    when the reward is loaded; what it raises refuses them.  warm_up: called with them in every process before the clock
    runs.

    >>> @reward(samplewise=True, time_limit=2.0)
    ... def short(completions, **columns):
    ...     return [float(len(text) < 100) for text in completions]
    """

    def note(function: _F) -> _F:
        setattr(function, _NOTES, Notes(samplewise, batch, time_limit, tuple(options), check, warm_up))
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


@dataclass(frozen=True, slots=True)
class Failed:
    """A returned exception: this completion alone could not be scored."""

    message: str


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
        return notes_of(self.call).samplewise

    @property
    def options(self) -> tuple[str, ...]:
        return notes_of(self.call).options

    @property
    def time_limit(self) -> float | None:
        limit = notes_of(self.call).time_limit
        return limit(self.params) if callable(limit) else limit

    @property
    def batch(self) -> int | None:
        """Most completions of one call; None: all of them."""
        batch = notes_of(self.call).batch
        return batch(self.params) if callable(batch) else batch

    def warm_up(self) -> None:
        """Do what is slow once, so that it does not count against the first call."""
        if (prepare := notes_of(self.call).warm_up) is not None:
            prepare(self.params)

    def score(self, columns: Mapping[str, Sequence[Any]], logged: Logged, state: TrainerState) -> list[Any]:
        """One entry per completion: a float, None (not applicable), Unfit or Failed.

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
            raise GroError(f"reward {self.name!r} needs {quoted(missing)}; columns of the data: {have}")
        accepted = offered if self.wants is None else {k: v for k, v in offered.items() if k in self.wants}
        result = self.call(**accepted)
        if inspect.isawaitable(result):
            import asyncio  # late: it is half of what a process of a function without it would import

            result = asyncio.run(_awaited(result))
        return checked(result, len(columns["completions"]), self.name)


async def _awaited(result: Any) -> Any:
    return await result


def checked(result: Any, expected: int, name: str) -> list[Any]:
    """The returned list with every value a float, None, Unfit or Failed."""
    if not isinstance(result, list | tuple):
        raise WrongReturnError(
            f"reward {name!r} must return a list with one number (or None) for each of the {expected} completions, "
            f"and returned {described(result)}"
        )
    if len(result) != expected:
        raise WrongReturnError(f"reward {name!r} returned {len(result)} values for {expected} completions")
    return [_checked_value(value) for value in result]


def _checked_value(value: Any) -> float | Unfit | Failed | None:
    if value is None:
        return None
    if isinstance(value, Exception):
        return Failed(f"{type(value).__name__}: {value}")
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


def quoted(names: Iterable[str]) -> str:
    """`'a', 'b'`, sorted."""
    return ", ".join(repr(name) for name in sorted(names))
