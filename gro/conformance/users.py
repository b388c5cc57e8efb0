"""From what a user names to what is checked: an algorithm by name, or of a file that may hold its loss too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from gro.algorithms import registry
from gro.algorithms.registry import Declaration
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
    problems = registry.check_parameters(name, declare, parameters)
    if problems:
        raise GroError("\n".join(problems))
    declare = _beside_demonstrations(declare)
    try:
        algorithm = declare(**parameters)
    except Exception as error:  # of the user's own code
        raise GroError(f"algorithm {name} cannot be made: {told(error)}") from error
    make = for_algorithm(algorithm)
    return Subject(algorithm, make, loss=_loss(declare, parameters), declare=declare, parameters=parameters)


def _beside_demonstrations(declare: Declaration) -> Declaration:
    """The declaration, which then also takes what every algorithm takes, `ptx`."""

    @wraps(declare)
    def declared(**given: Any) -> Algorithm:
        ptx = 0.0 if "ptx" in registry.parameters(declare) else given.pop("ptx", 0.0)
        algorithm = declare(**given)
        if not isinstance(algorithm, Algorithm):
            raise TypeError(f"it returns {type(algorithm).__name__}; a declaration returns gro.objective.Algorithm")
        return registry.with_demonstrations(algorithm, ptx)

    return declared


def _declaration(name: str) -> Declaration:
    try:
        return registry.declaration(name)
    except GroError as error:
        if error.__cause__ is None:
            raise
        raise GroError(f"algorithm file {name.rpartition(':')[0]!r} cannot be imported: {told(error.__cause__)}") from (
            error.__cause__
        )


def _loss(declare: Declaration, parameters: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """The loss beside the declaration, with those of its parameters that it takes."""
    written: Callable[..., Tensor] | None = inspect.unwrap(declare).__globals__.get(f"{declare.__name__}_loss")
    if written is None:
        return None
    own = registry.parameters(declare)
    given = {key: p.default for key, p in own.items() if p.default is not p.empty} | dict(parameters)
    known = inspect.signature(written).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    loss = partial(written, **{key: value for key, value in given.items() if everything or key in known})
    ptx = 0.0 if "ptx" in own else given.get("ptx", 0.0)
    if not ptx:
        return loss
    return lambda update: loss(update) - ptx * torch.cat([y.logp for y in update.targets]).mean()
