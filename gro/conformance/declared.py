"""Checks that an algorithm is a value, and its declaration a schema."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import yaml

from gro.algorithms.registry import parameters
from gro.conformance.bandit import STEPS, improvement
from gro.conformance.check import Measurement, Subject, check, claim


@check("Make every slot member a dataclass(frozen=True) at the top of its file, with fields that compare by value.")
def a_value(subject: Subject) -> Iterator[Measurement]:
    """It compares, hashes, pickles, prints and cannot be changed."""
    algorithm = subject.algorithm
    hash(algorithm)
    again = pickle.loads(pickle.dumps(algorithm))
    yield claim(again == algorithm and hash(again) == hash(algorithm), "pickled", "it comes back as another value")
    yield claim(" object at " not in repr(algorithm), "printed", "a slot prints as an address")
    for name, member in _members(algorithm, "algorithm"):
        if is_dataclass(member) and fields(member):
            attribute = fields(member)[0].name
            try:
                setattr(member, attribute, getattr(member, attribute))
            except FrozenInstanceError:
                yield claim(True, name)
            else:
                yield claim(False, name, f"{type(member).__name__} can be changed")
    if subject.declare is not None:
        same = subject.declare(**subject.parameters) == algorithm
        yield claim(same, "declared twice", "the same parameters make two different algorithms")


def _members(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every dataclass inside, with its place."""
    if isinstance(value, tuple):
        for i, item in enumerate(value, 1):
            yield from _members(item, f"{name} {i}")
    elif is_dataclass(value):
        yield name, value
        for f in fields(value):
            yield from _members(getattr(value, f.name), f.name)


@check("Parameters must be plain YAML: numbers, text, true or false, null.")
def recipe(subject: Subject) -> Iterator[Measurement]:
    """Written into a recipe and read again, its parameters make the same algorithm."""
    if subject.declare is None:
        return
    defaults = {key: p.default for key, p in parameters(subject.declare).items() if p.default is not p.empty}
    for where, given in (("as given", dict(subject.parameters)), ("all defaults written out", defaults)):
        again = yaml.safe_load(yaml.safe_dump(given))
        expected = subject.algorithm if where == "as given" else subject.declare()
        yield claim(subject.declare(**again) == expected, where, f"{given} comes back as {again}: another algorithm")


@check("Give every parameter a default, an annotation, and a line `name: meaning` in the declaration's docstring.")
def documented(subject: Subject) -> Iterator[Measurement]:
    """It says what it is and what each parameter means, and runs without any."""
    if subject.declare is None:
        return
    text = inspect.getdoc(subject.declare) or ""
    yield claim(bool(text.split("\n\n")[0].strip()), "docstring", "the declaration has no docstring")
    for key, parameter in parameters(subject.declare).items():
        yield claim(parameter.default is not parameter.empty, key, f"{key} has no default")
        yield claim(parameter.annotation is not parameter.empty, key, f"{key} has no annotation")
        line = re.search(rf"^(?:\w+, )*{key}(?:, \w+)*:", text, re.MULTILINE)
        yield claim(line is not None, key, f"the docstring has no line `{key}: ...`")


@check("The sign of v·w, the credit or the rows are wrong, or the weights vanish: look at the coefficients.")
def improves(subject: Subject) -> Iterator[Measurement]:
    """On a bandit it comes at least half of the way from its start to the best policy."""
    before, after = improvement(subject.algorithm)
    where = f"expected reward {before:.2f} → {after:.2f} of 1 in {STEPS} steps"
    yield Measurement(1 - after, 0.5 * (1 - before), where, where)
