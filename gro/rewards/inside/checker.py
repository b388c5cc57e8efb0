"""Runs tests against a solution in another process, and writes one verdict per test."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

from .wire import Wire, pack, unpack


class SolutionError(Exception):
    """The solution did not load, ended, or spoke nonsense."""


class Remote:
    """Something of the solution that is not plain data: a function, a class, an instance.

    It has no equality of its own: an object that claims to equal everything would pass every test.  For the same reason
    it does not say what it contains but for the items that it lists.
    """

    def __init__(self, solution: Solution, number: int) -> None:
        self._solution, self._number = solution, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._solution.do("call", self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._solution.ask({"of": self._number, "get": name})

    def __getitem__(self, key: Any) -> Any:
        return self._solution.do("item", self._number, (key,))

    def __len__(self) -> int:
        return self._solution.do("len", self._number)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(self._solution.do("list", self._number))

    def __str__(self) -> str:
        return self._solution.do("str", self._number)

    def __repr__(self) -> str:
        return self._solution.do("repr", self._number)


class Solution:
    """The other end of the socket."""

    def __init__(self, channel: int) -> None:
        self._wire = Wire(channel)

    def await_(self, word: str) -> None:
        """Raises SolutionError where something else comes."""
        message = self._receive()
        if message != word:
            raise SolutionError(_told(message))

    def _receive(self) -> Any:
        try:
            return self._wire.receive()
        except (EOFError, OSError) as error:
            raise SolutionError("the process of the solution ended") from error
        except (ValueError, RecursionError) as error:
            raise SolutionError("the solution spoke nonsense") from error

    def do(self, what: str, number: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        packed = [pack(argument, _number_of) for argument in args]
        named = {name: pack(argument, _number_of) for name, argument in (kwargs or {}).items()}
        return self.ask({"of": number, "do": what, "args": packed, "kwargs": named}, args)

    def ask(self, request: dict[str, Any], args: tuple[Any, ...] = ()) -> Any:
        try:
            self._wire.send(request)
        except OSError as error:
            raise SolutionError("the process of the solution ended") from error
        answer = self._receive()
        if isinstance(answer, dict) and "error" in answer:
            raise _raised(answer)
        try:
            value = unpack(answer["value"], self._referred)
            for at, changed in answer.get("changed", {}).items():
                _become(args[int(at)], unpack(changed, self._referred))
        except Exception as error:
            raise SolutionError("the solution spoke nonsense") from error
        return value

    def _referred(self, number: int) -> Remote:
        return Remote(self, int(number))


def _number_of(value: Any) -> int:
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"{type(value).__name__} cannot be handed to a solution, which runs in another process")


def _raised(answer: dict[str, Any]) -> Exception:
    """The solution's exception, if it is one of Python's own: a test may expect it."""
    kind = getattr(builtins, str(answer["error"]), None)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    message = str(answer.get("message", ""))
    try:
        return kind(message) if known else RuntimeError(message)  # type: ignore[misc]
    except TypeError:  # UnicodeDecodeError and such take more
        return RuntimeError(_told(answer))


def _told(message: Any) -> str:
    return f"{message.get('error')}: {message.get('message')}" if isinstance(message, dict) else "no word"


def _become(old: Any, new: Any) -> None:
    if type(old) is list and type(new) is list:
        old[:] = new
    elif isinstance(old, dict | set) and type(new) is type(old):
        old.clear()
        old.update(new)


def same(value: Any, expected: Any) -> bool:
    """Equality of data that came as JSON: tuples are lists there, and floats may be rounded."""
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None:
        return value is expected
    if isinstance(expected, int | float):
        number = isinstance(value, int | float)
        return number and (value == expected or math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12))
    if isinstance(expected, list):
        alike = isinstance(value, list | tuple) and len(value) == len(expected)
        return alike and all(map(same, value, expected))
    if isinstance(expected, dict):
        keyed = {str(key): item for key, item in value.items()} if isinstance(value, dict) else None
        return keyed is not None and keyed.keys() == expected.keys() and all(same(keyed[k], expected[k]) for k in keyed)
    return isinstance(value, str) and value == expected


def main(code: str, channel: int, verdicts: int) -> None:
    """code: JSON of `tests` (Python text, or {call, args, kwargs, expected}), `stop` (at the first that fails) and
    `subject` (a name that is the solution's even where Python has one like it; or null).

    Verdicts are lines of JSON: "ready" once both sandboxes stand, then {passed, message} per test.
    """

    def say(verdict: Any) -> None:
        os.write(verdicts, json.dumps(verdict).encode() + b"\n")

    job = json.loads(code)
    solution = Solution(channel)
    solution.await_("ready")  # said before the code runs: where it does not come, the sandbox is at fault
    say("ready")
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        solution.await_("loaded")
        namespace |= _names(job["tests"], job["subject"], solution)
    except SolutionError as error:
        say({"passed": False, "message": str(error)})
        return
    for test in job["tests"]:
        message = _message_of(test, namespace)
        say({"passed": message is None, "message": message})
        if message is not None and job["stop"]:
            return


def _message_of(test: Any, namespace: dict[str, Any]) -> str | None:
    """Runs one test: None where it passes."""
    try:
        if isinstance(test, str):
            exec(compile(test, "tests.py", "exec"), namespace)
            return None
        value = eval(test["call"], namespace)(*test.get("args", []), **test.get("kwargs", {}))
        return None if same(value, test["expected"]) else f"{test['call']}: a wrong value"
    except BaseException as error:  # also SystemExit: a test that ends is not a test that passes
        return f"{type(error).__name__}: {error}"[:500]


def _names(tests: list[Any], subject: str | None, solution: Solution) -> dict[str, Any]:
    """What the tests use and do not define.  Raises SolutionError where none of it is the solution's.

    Python's own names and modules are never the solution's, unless they are what is asked for: one that brings its own
    `all` or `math` would be checking itself.
    """
    used: set[str] = set()
    bound: set[str] = set()
    subjects = {subject, *(test["call"].partition(".")[0].removesuffix("()") for test in tests if type(test) is dict)}
    for test in tests:
        for node in ast.walk(ast.parse(test if isinstance(test, str) else test["call"])):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).partition(".")[0])
    found: dict[str, Any] = {}
    missing = []
    for name in sorted((used - bound) | (used & subjects)):
        if name in subjects or not (hasattr(builtins, name) or name in sys.stdlib_module_names):
            try:
                found[name] = solution.ask({"of": 0, "get": name})
            except (AttributeError, TypeError):
                missing.append(name)
    if not found:
        raise SolutionError(f"the code defines nothing that the tests call{': ' * bool(missing)}{', '.join(missing)}")
    modules = {
        name: importlib.import_module(name) for name in used - bound - subjects if name in sys.stdlib_module_names
    }
    # A subject that is missing must not be replaced by what Python has of that name.
    return modules | found | {name: None for name in missing if name in subjects}
