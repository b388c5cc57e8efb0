"""Code against tests, in a sandbox, with a verdict that the code cannot write itself.

Where the expected results are data, they never enter the process that runs the code: printed output is compared here,
and returned values in a second sandbox.  Where the tests are Python, they run in that second sandbox too, and call the
code's functions through a socket over which only data comes back.  So `os._exit(0)`, a patched `assert`, an object
that equals everything, or a printed "OK" lead nowhere: the verdict is a line on a pipe that the code's process lacks.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gro.rewards.functions import Params, reward
from gro.rewards.rules import code_in, gold_column, text_of
from gro.rewards.sandbox import Limits, Sandbox, SandboxError, listen, sandbox

TIMEOUT, MEMORY = 6.0, 512
"""The defaults of `code`."""
_SLACK = 5.0
"""Seconds in which sandboxes are set up and cleared away."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Tests that call the code: Python text, or {call, args, kwargs, expected}."""

    tests: tuple[Any, ...]
    subject: str | None = None
    """The function that is asked for, where the row names it."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Tests that run the code as a program: what it reads, what it must print."""

    pairs: tuple[tuple[str, str], ...]


def _check(params: Params) -> None:
    """Raises ValueError for parameters that are none, and GroError where there is no sandbox and one is needed."""
    for name, default in (("timeout", TIMEOUT), ("memory", MEMORY)):
        value = params.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} is a number above 0, not {value!r}")
    for name in ("partial", "packages", "allow_unsafe"):
        if not isinstance(params.get(name, False), bool):
            raise ValueError(f"{name} is true or false, not {params[name]!r}")
    sandbox(allow_unsafe=params.get("allow_unsafe", False), packages=params.get("packages", False))


@reward(
    samplewise=True,
    time_limit=lambda params: params.get("timeout", TIMEOUT) + _SLACK,
    options=("column", "timeout", "memory", "partial", "packages", "allow_unsafe"),
    check=_check,
)
def code(
    completions: Sequence[Any],
    *,
    column: str = "tests",
    timeout: float = 6.0,
    memory: float = 512,
    partial: bool = False,
    packages: bool = False,
    allow_unsafe: bool = False,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion's code passes all tests of its row, else 0; None where the row has no tests.

    The code is the last fenced block, or without one the whole text.  column: the tests: Python with asserts (a text or
    a list of texts; a function `check` is called with the function that the column `entry_point` names), a list of
    {input, output} for programs that read and print, a list of {call, args, kwargs, expected}, {inputs, outputs,
    fn_name} as in APPS, or any of them as JSON text.  timeout: seconds for all tests of one completion.  memory: MB of
    one process.  partial: the share of tests passed instead of all or nothing.  packages: the code may import what is
    installed beside gro.  allow_unsafe: without a sandbox, run it as an ordinary process rather than refuse.

    >>> code(["```python\\ndef double(x): return 2 * x\\n```"], tests=["assert double(2) == 4"])
    [1.0]
    """
    where = sandbox(allow_unsafe=allow_unsafe, packages=packages)
    rows = gold_column(columns, column)
    names = columns.get("entry_point") or [None] * len(completions)
    scores: list[float | None] = []
    for completion, row, name in zip(completions, rows, names, strict=True):
        if row is None:
            scores.append(None)
            continue
        tests, limits = parse_tests(row, name), Limits(timeout, int(memory * 2**20))
        text = code_in(text_of(completion))
        run = run_programs if isinstance(tests, Programs) else run_calls
        passed, of = run(where, text, tests, limits, stop=not partial)  # type: ignore[arg-type]
        scores.append(passed / of if partial else float(passed == of))
    return scores


# --- what is run -----------------------------------------------------------------------------------------------------


def parse_tests(row: Any, entry_point: Any = None) -> Calls | Programs:
    """The tests in a column's value.  Raises ValueError where they are none."""
    if isinstance(row, str):
        with contextlib.suppress(ValueError, RecursionError):
            decoded = json.loads(row)
            row = decoded if isinstance(decoded, list | dict) else row
    if isinstance(row, dict) and "inputs" in row and "outputs" in row:
        row = _of_apps(row)
    items: list[Any] = list(row) if isinstance(row, list | tuple) else [row]
    if not items or not isinstance(row, str | dict | list | tuple):
        raise ValueError(f"tests must be Python text, a list of tests, or JSON of one, not {str(row)[:80]!r}")
    if all(isinstance(item, dict) and {"input", "output"} <= item.keys() for item in items):
        return Programs(tuple((str(item["input"]), str(item["output"])) for item in items))
    if all(isinstance(item, dict) and {"call", "expected"} <= item.keys() for item in items):
        for item in items:
            if not re.fullmatch(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)*", str(item["call"])):
                raise ValueError(f"call must be a function's name, or Class().method, not {item['call']!r}")
        return Calls(tuple(items))
    if not all(isinstance(item, str) for item in items):
        raise ValueError(
            f"a test is Python text, {{input, output}} or {{call, args, expected}}, all of one kind; one is "
            f"{str(next(item for item in items if not isinstance(item, str)))[:80]!r}"
        )
    name = str(entry_point) if entry_point else None
    return Calls(tuple(_statements(items[0], name) if len(items) == 1 else items), name)


def _of_apps(row: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = list(zip(row["inputs"], row["outputs"], strict=True))
    if (name := row.get("fn_name")) is not None:
        return [{"call": name, "args": given, "expected": wanted} for given, wanted in pairs]
    return [{"input": given, "output": wanted} for given, wanted in pairs]


def _statements(text: str, entry_point: str | None) -> list[str]:
    """Each assert as a test of its own, behind what stands before it: definitions, calls, assignments."""
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"the tests are not valid Python: {error}") from error
    tests, before = [], ""
    for statement in body:
        before += ast.unparse(statement) + "\n"
        if isinstance(statement, ast.Assert | ast.For | ast.While | ast.If | ast.With | ast.Try):
            tests.append(before)
            before = ""
    if body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Call):  # check(add)
        tests.append(before)
    checks = any(isinstance(s, ast.FunctionDef) and s.name == "check" for s in body)
    if checks and entry_point and not re.search(r"^check\(", text, re.MULTILINE):
        tests.append(f"{before}check({entry_point})")
    if not tests:
        raise ValueError(f"the tests assert nothing: {text[:80]!r}")
    return tests


# --- how it is run ---------------------------------------------------------------------------------------------------


def run_programs(where: Sandbox, code: str, tests: Programs, limits: Limits, *, stop: bool) -> tuple[int, int]:
    """Runs the code once for each pair: how many it passed, of how many.  stop: at the first that it does not."""
    deadline = time.monotonic() + limits.seconds
    passed = 0
    for given, wanted in tests.pairs:
        if _prints(where, code, given, limits, deadline) == _lines(wanted):
            passed += 1
        elif stop:
            break
    return passed, len(tests.pairs)


def _prints(where: Sandbox, code: str, given: str, limits: Limits, deadline: float) -> list[str] | None:
    """The printed lines; None where the program failed or went past a limit."""
    reader, writer = os.pipe()
    with open(reader, "rb") as ready, where.run("program", limits, code, [writer], given) as process:
        os.close(writer)
        pipes = {"ready": ready.fileno(), "out": _descriptor(process.stdout), "error": _descriptor(process.stderr)}
        heard, ended = listen(pipes, "out", deadline)
        if not heard["ready"] and not _rest(ready.fileno()):
            raise SandboxError(_reason(heard["error"] + _rest(pipes["error"])))
        if ended is not None:
            return None
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
    return _lines(heard["out"].decode(errors="replace")) if status == 0 else None


def _lines(text: str) -> list[str]:
    """White space at the ends of lines and of the text does not count."""
    return [line.rstrip() for line in text.strip().splitlines()]


def run_calls(where: Sandbox, code: str, tests: Calls, limits: Limits, *, stop: bool) -> tuple[int, int]:
    """Runs the tests against the code: how many passed, of how many.  stop: at the first that does not."""
    job = json.dumps({"tests": tests.tests, "stop": stop, "subject": tests.subject})
    deadline = time.monotonic() + limits.seconds
    reader, writer = os.pipe()
    near, far = socket.socketpair()
    with (
        open(reader, "rb") as verdicts,
        where.run("checker", limits, job, [near.fileno(), writer]) as checker,
        where.run("solution", limits, code, [far.fileno()]) as solution,
    ):
        os.close(writer)
        near.close()
        far.close()
        pipes = {"verdicts": verdicts.fileno(), "error": _descriptor(checker.stderr)}
        pipes |= {"printed": _descriptor(checker.stdout), "out": _descriptor(solution.stdout)}
        heard, ended = listen(pipes | {"solution": _descriptor(solution.stderr)}, "verdicts", deadline)
        lines = heard["verdicts"].splitlines(keepends=True)
        if not lines and ended != "output":  # who has printed so much was running
            said = heard["error"] + _rest(pipes["error"]) or heard["solution"]
            raise SandboxError(_reason(said))
    verdicts_of_tests = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    return sum(verdict["passed"] for verdict in verdicts_of_tests), len(tests.tests)


def _descriptor(stream: Any) -> int:
    return stream.fileno()


def _rest(descriptor: int) -> bytes:
    """What is there to be read, without waiting for more."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _reason(said: bytes) -> str:
    return f"the sandbox could not be set up in time: {said[-500:].decode(errors='replace').strip() or 'no word'}"
