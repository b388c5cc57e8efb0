"""From what a user names to what is checked: an algorithm by name, or of a file that may hold its loss too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from gro.algorithms.registry import Declaration, check_parameters, declaration
from gro.conformance.check import Subject, told
from gro.conformance.updates import for_algorithm
from gro.errors import GroError
from gro.objective import Algorithm


def subject(name: str, parameters: Mapping[str, Any]) -> Subject:
    """The algorithm of this name, or of `path/to/file.py:function`, with these parameters.

    A function `<name>_loss(update, **parameters)` in the same file is its paper's loss.  Raises GroError with file and
    line where the user's code fails.
    """
    declare = _declaration(name)
    problems = check_parameters(name, declare, parameters)
    if problems:
        raise GroError("\n".join(problems))
    try:
        algorithm = declare(**parameters)
    except Exception as error:  # of the user's own code
        raise GroError(f"algorithm {name} cannot be made: {told(error)}") from error
    if not isinstance(algorithm, Algorithm):
        raise GroError(f"{name} returns {type(algorithm).__name__}; a declaration returns gro.objective.Algorithm")
    make = for_algorithm(algorithm)
    return Subject(algorithm, make, loss=_loss(declare, parameters), declare=declare, parameters=parameters)


def _declaration(name: str) -> Declaration:
    try:
        return declaration(name)
    except GroError as error:
        if error.__cause__ is None:
            raise
        raise GroError(f"algorithm file {name.rpartition(':')[0]!r} cannot be imported: {told(error.__cause__)}") from (
            error.__cause__
        )


def _loss(declare: Declaration, parameters: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """The loss beside the declaration, with those of its parameters that it takes."""
    loss: Callable[..., Tensor] | None = inspect.unwrap(declare).__globals__.get(f"{declare.__name__}_loss")
    if loss is None:
        return None
    defaults = {k: p.default for k, p in inspect.signature(declare).parameters.items() if p.default is not p.empty}
    known = inspect.signature(loss).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    given = {**defaults, **parameters}
    return partial(loss, **{k: v for k, v in given.items() if everything or k in known})
