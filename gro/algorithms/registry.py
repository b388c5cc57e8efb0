"""The registry: an algorithm's name, its declaration, and its parameters, which are the declaration's signature."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gro import signatures
from gro.errors import GroError, nearest
from gro.objective import Algorithm, Term
from gro.objective.shares import token_mean
from gro.objective.values import one

Declaration = Callable[..., Algorithm]

_DECLARATIONS: dict[str, Declaration] = {}


def algorithm(declare: Declaration) -> Declaration:
    """Decorator: registers a declaration under its function's name."""
    assert declare.__name__ not in _DECLARATIONS, f"two algorithms named {declare.__name__}"
    _DECLARATIONS[declare.__name__] = declare
    return declare


def names() -> tuple[str, ...]:
    """All registered names, in order of declaration."""
    return tuple(_DECLARATIONS)


def declaration(name: str) -> Declaration:
    """The declaration of this name, or of `path/to/file.py:function`.

    Raises GroError naming the nearest algorithm, or what the file lacks.
    """
    if name in _DECLARATIONS:
        return _DECLARATIONS[name]
    if ":" in name:
        return _from_file(name)
    raise GroError(f"unknown algorithm {name!r}{nearest(name.lower(), _DECLARATIONS)}; `gro algorithms` lists all")


def parameters(declare: Declaration) -> dict[str, inspect.Parameter]:
    """A declaration's parameters by name: its configuration schema."""
    return dict(inspect.signature(declare).parameters)


def build(name: str, **params: Any) -> Algorithm:
    """The algorithm of this name with these parameters; GroError for an unknown name, parameter or a bad value.

    Beside an algorithm's own parameters, every algorithm that does not learn from demonstrations by itself takes `ptx`:
    the factor on their mean log-likelihood, which then joins its terms (Ouyang et al. 2022, eq. 2).
    """
    declare = declaration(name)
    problems = check_parameters(name, declare, params)
    if problems:
        raise GroError("\n".join(problems))
    ptx = 0.0 if "ptx" in parameters(declare) else params.pop("ptx", 0.0)
    try:
        return with_demonstrations(declare(**params), ptx)
    except (ValueError, TypeError, GroError) as error:
        raise GroError(f"algorithm {name}: {error}") from error


def with_demonstrations(algorithm: Algorithm, ptx: float) -> Algorithm:
    """The algorithm with + ptx · the mean log-likelihood of the demonstrations' tokens."""
    if not ptx:
        return algorithm
    if imitates(algorithm):
        raise ValueError("ptx adds the likelihood of demonstrations, from which this algorithm learns already")
    if algorithm.scores:
        raise ValueError("ptx adds the likelihood of demonstrations, and a reward model has scores, no likelihoods")
    return replace(algorithm, terms=(*algorithm.terms, Term(value=one, share=token_mean, rows="targets", scale=ptx)))


def imitates(algorithm: Algorithm) -> bool:
    """Whether it learns from demonstrations by itself."""
    return bool(algorithm.roles & {"targets", "versus"})


def check_parameters(name: str, declare: Declaration, params: Mapping[str, Any]) -> list[str]:
    """One line per unknown parameter or value of a wrong type or out of its range."""
    return signatures.with_everywhere(signatures.of(declare)).problems("algorithm", name, params)


def _from_file(spec: str) -> Declaration:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise GroError(f"algorithm file {file!r} does not exist")
    module_spec = importlib.util.spec_from_file_location(f"gro_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # or what it defines could not be pickled
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise GroError(f"algorithm file {file!r} cannot be imported: {type(error).__name__}: {error}") from error
    declare: Declaration | None = getattr(module, function, None)
    if not callable(declare):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise GroError(f"{file!r} defines no function {function!r}{nearest(function, own)}")
    return declare
