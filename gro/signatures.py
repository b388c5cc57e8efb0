"""Signatures of functions, read from their source or from the functions themselves, and arguments checked by them.

A recipe names functions: algorithms and rewards.  Their signatures say what a recipe may set.  Importing the algorithms
takes seconds (torch), and importing a user's file runs it: to find a misspelt key, reading the source is enough.
"""

from __future__ import annotations

import ast
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from gro import schema
from gro.errors import GroError, nearest


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function."""

    hint: Any
    """Its annotation as a type; Any where there is none or it cannot be told."""
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes by name."""

    parameters: Mapping[str, Parameter]
    open: bool = False
    """It also takes names that it does not list (**kwargs)."""

    def problems(self, place: str, owner: str, arguments: Mapping[str, Any]) -> list[str]:
        """One line per argument that the function does not take, or whose value is not of the annotated type.

        place: the key of the recipe under which the arguments stand.  owner: what the function is called.
        """
        lines = []
        for key, value in arguments.items():
            known = self.parameters.get(key)
            if known is None and not self.open:
                has = ", ".join(self.parameters) or "none"
                near = nearest(key, self.parameters)
                lines.append(f"{place}.{key}: {owner} has no such parameter{near}; it has {has}")
            elif known is not None and (expected := mismatch(known.hint, value)) is not None:
                default = "" if known.required else f" (default {known.default!r})"
                lines.append(f"{place}.{key}: {_short(repr(value))} is no {expected}{default}")
        missing = [key for key, known in self.parameters.items() if known.required and key not in arguments]
        return lines + [f"{place}.{key}: missing; {owner} has no default for it" for key in missing]


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


EVERYWHERE: Mapping[str, Parameter] = {"ptx": Parameter(schema.NotNegative, 0.0)}
"""What every algorithm takes beside its own parameters; `gro.algorithms.registry.build` says what it does."""


def with_everywhere(signature: Signature) -> Signature:
    """An algorithm's signature with what every algorithm takes."""
    return Signature(
        {**signature.parameters, **{k: p for k, p in EVERYWHERE.items() if k not in signature.parameters}},
        signature.open,
    )


def of(function: Callable[..., Any]) -> Signature:
    """The signature of an imported function."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return Signature(
        {p.name: Parameter(hints.get(p.name, Any), p.default) for p in named},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


@cache
def algorithms() -> Mapping[str, Signature]:
    """Every registered algorithm by name, in no particular order."""
    found = {}
    for path in sorted((Path(__file__).parent / "algorithms").glob("*.py")):
        tree = _tree(path)
        for name, function in _functions(tree).items():
            if any(isinstance(d, ast.Name) and d.id == "algorithm" for d in function.decorator_list):
                found[name] = _signature(function, tree)
    return found


def in_file(path: Path, name: str, *, decorated: bool = False) -> Signature | None:
    """The signature of a function in somebody's file; None where the file makes it in a way that only running it tells.

    decorated: its decorators are known to leave the signature as it is.  Raises GroError where there is no such file,
    it is no Python, or it has no such function.
    """
    if not os.path.isfile(path):  # (which takes a name of any length)
        beside = [p.name for p in path.parent.glob("*.py")] if os.path.isdir(path.parent) else []
        raise GroError(f"no file {str(path)!r}{nearest(path.name, beside)}")
    tree = _tree(path)
    functions = _functions(tree)
    if name in functions:
        told = decorated or not functions[name].decorator_list
        return _signature(functions[name], tree) if told else None
    if name in _bound(tree):
        return None
    raise GroError(f"{str(path)!r} defines no function {name!r}{nearest(name, functions)}")


def mismatch(hint: Any, value: Any) -> str | None:
    """What was expected where a value is not of the annotated type; annotations not known here accept anything."""
    if get_origin(hint) in (Union, UnionType):
        expected = [mismatch(member, value) for member in get_args(hint)]
        return None if None in expected else " or ".join(map(str, expected))
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        if (expected := mismatch(base, value)) is not None:
            return f"{expected} {_range(limits)}".rstrip()
        return None if _fits(hint, value) else f"{mismatch(base, object())} {_range(limits)}"
    if get_origin(hint) is Sequence:
        (member,) = get_args(hint)
        fits = isinstance(value, list | tuple) and all(mismatch(member, item) is None for item in value)
        return None if fits else f"list of {mismatch(member, object())}s"
    if get_origin(hint) is Mapping:
        return None if isinstance(value, Mapping) else "keys and values"
    if get_origin(hint) is Literal:
        *most, last = map(repr, get_args(hint))
        same = any(value == choice and type(value) is type(choice) for choice in get_args(hint))
        return None if same else f"{', '.join(most)} or {last}".removeprefix(" or ")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    matches = {
        bool: (isinstance(value, bool), "true or false"),
        int: (number and isinstance(value, int), "whole number"),
        float: (number and _finite(value), "finite number"),
        str: (isinstance(value, str), "text"),
        NoneType: (value is None, "null"),
    }
    try:
        fits, name = matches.get(hint, (True, ""))
    except TypeError:  # an annotation need not be hashable
        return None
    return None if fits else name


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _fits(hint: Any, value: Any) -> bool:
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _range(limits: Sequence[Any]) -> str:
    """`> 0 and ≤ 1` of what stands in an annotation."""
    found = [
        f"{sign} {getattr(bound, name):g}"
        for limit in limits
        for bound in (getattr(limit, "metadata", None) or [limit])
        for name, sign in _SIGNS.items()
        if getattr(bound, name, None) not in (None, schema.LARGEST)
    ]
    return " and ".join(found)


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise GroError(f"{str(path)!r} is not valid Python{line}: {getattr(error, 'msg', error)}") from error
    except OSError as error:
        raise GroError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _bound(tree: ast.Module) -> set[str]:
    """Names that the module binds in any other way: assigned, imported, a class, or inside `if` and `try`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef, tree: ast.Module) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*padding, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    known = _aliases(tree)
    parameters = {a.arg: Parameter(_hint(a.annotation, known), _default(default)) for a, default in pairs}
    return Signature(parameters, arguments.kwarg is not None)


_KNOWN: dict[str, Any] = {
    **{t.__name__: t for t in (bool, int, float, str)},
    **{name: value for name, value in vars(schema).items() if not name.startswith("_")},
    "Any": Any,
    "Literal": Literal,
    "Mapping": Mapping,
    "Sequence": Sequence,
    "Annotated": Annotated,
    "Field": Field,
}
"""What an annotation may be made of, to be understood without running its file."""


def _aliases(tree: ast.Module) -> dict[str, Any]:
    """`Kl = Literal["k3", "k2"]` at the top of a module, for use in its annotations."""
    known = dict(_KNOWN)
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            hint = _hint(node.value, known)
            if hint is not Any:
                known[node.targets[0].id] = hint
    return known


def _hint(annotation: ast.expr | None, known: Mapping[str, Any]) -> Any:
    allowed = (ast.Name, ast.Subscript, ast.BinOp, ast.BitOr, ast.Constant, ast.Tuple, ast.Load, ast.Call, ast.keyword)
    if annotation is None or not all(isinstance(node, allowed) for node in ast.walk(annotation)):
        return Any
    if isinstance(annotation, ast.Constant | ast.Tuple):
        return Any  # a value, not a type
    try:
        return eval(ast.unparse(annotation), {"__builtins__": {}}, dict(known))
    except Exception:  # whatever a name that is not known here, or one used in its own way, leads to
        return Any


def _default(expression: ast.expr | None) -> Any:
    if expression is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return None  # computed: only its presence matters
