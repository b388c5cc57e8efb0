"""Code against tests: right code passes in every form of test, and nothing else does, whatever it tries."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.rewards import sandbox as sandbox_module
from gro.rewards.batch import Trouble
from gro.rewards.code import Calls, Programs, code, parse_tests, run_calls, run_programs
from gro.rewards.loading import load
from gro.rewards.pool import Pool
from gro.rewards.rules import code_in
from gro.rewards.sandbox import Limits, Sandbox, SandboxError, sandbox
from rewards.hostile_code import ATTACKS, FORGERIES, GOOD, GOOD_PROGRAM, HANGS, PAIRS, TESTS

why_not = sandbox_module._unusable(False)
needs_sandbox = pytest.mark.skipif(why_not is not None, reason=f"no sandbox on this machine: {why_not}")
PATIENT = 60.0
"""Seconds for code that ends by itself, on a busy machine."""


def score(text: str, tests: Any, **params: Any) -> float | None:
    params = {"timeout": PATIENT, "allow_unsafe": True} | params
    (result,) = code([text], tests=[tests], **params)
    return result


# --- what is right ---------------------------------------------------------------------------------------------------

CLASS = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
"""
RIGHT: dict[str, tuple[str, Any]] = {
    "asserts": (GOOD, TESTS),
    "a list of asserts": (GOOD, ["assert add(1, 1) == 2", "assert add('a', 'b') == 'ab'"]),
    "asserts as JSON": (GOOD, json.dumps(["assert add(1, 1) == 2"])),
    "programs": (GOOD_PROGRAM, PAIRS),
    "programs as in APPS": (GOOD_PROGRAM, {"inputs": ["1 2\n", "3 4"], "outputs": ["3\n", " 7 "]}),
    "calls": (GOOD, [{"call": "add", "args": [0.1, 0.2], "expected": 0.3}]),
    "calls with keywords": (GOOD, [{"call": "add", "kwargs": {"a": [1], "b": [2]}, "expected": [1, 2]}]),
    "calls as in APPS": (GOOD, json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]})),
    "a method": (CLASS, [{"call": "Stack().__len__", "expected": 0}]),
    "a class": (CLASS, "s = Stack()\ns.push(1).push((2, 'x'))\nassert s.pop() == (2, 'x')\nassert len(s) == 1\n"),
    "an instance's data": (CLASS, "s = Stack()\ns.push(3)\nassert s.items == [3] and list(s) == [3]\n"),
    "in place": ("def order(x): x.sort()", "x = [3, 1, 2]\norder(x)\nassert x == [1, 2, 3]\n"),
    "a dictionary in place": ("def put(d): d['a'] = {1}", "d = {}\nput(d)\nassert d == {'a': {1}}\n"),
    "an exception": (
        "def half(x):\n    if x % 2: raise ValueError('odd')\n    return x // 2",
        "try:\n    half(3)\nexcept ValueError as e:\n    assert 'odd' in str(e)\nelse:\n    assert False\n"
        "assert half(4) == 2",
    ),
    "check(candidate)": (GOOD, "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n"),
    "a constant": ("LIMIT = 7", "assert LIMIT == 7"),
    "plain data of all kinds": (
        "def same(*a): return a",
        "v = (None, True, 1, 2**200, 1.5, 1e400, 'é', b'x', 1j, [1, (2, {3})], {(1, 2): [3]}, frozenset({1}))\n"
        "assert same(*v) == v and [type(x) for x in same(*v)] == [type(x) for x in v]",
    ),
    "a function among the results": ("def adder(n): return lambda x: x + n", "assert adder(2)(3) == 5"),
    "a generator": ("def up(n): yield from range(n)", "assert list(up(3)) == [0, 1, 2]"),
    "its own imports": (
        "import math\ndef root(x): return math.isqrt(x)",
        "import math\nassert root(9) == math.isqrt(9)",
    ),
    "threads": (
        "import threading\nout = []\nt = threading.Thread(target=out.append, args=(3,))\nt.start(); t.join()",
        "assert out == [3]",
    ),
    "prints along the way": ("print('hello')\n" + GOOD, TESTS),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right_code_passes(case: str) -> None:
    text, tests = RIGHT[case]
    assert score(f"Here it is:\n```python\n{text}\n```\nDone.", tests) == 1.0


@pytest.mark.parametrize("case", [c for c in RIGHT if c not in ("a constant", "threads")])
def test_the_same_tests_do_not_pass_without_the_code(case: str) -> None:
    assert score("pass", RIGHT[case][1]) == 0.0


def test_rows_without_tests_and_the_share_of_tests() -> None:
    completions = [GOOD, "def add(a, b): return 5", GOOD]
    params = {"timeout": PATIENT, "allow_unsafe": True}
    assert code(completions, tests=[TESTS, TESTS, None], **params) == [1.0, 0.0, None]
    assert code(completions, tests=[TESTS, TESTS, None], partial=True, **params) == [1.0, 1 / 3, None]
    assert score("print(5)", PAIRS, partial=True) == 0.5
    assert code([GOOD], column="unit", unit=[TESTS], tests=["assert False"], **params) == [1.0]


def test_the_entry_point_is_what_check_is_called_with() -> None:
    check = "def check(candidate):\n    assert candidate([3, 4]) == 8\n"
    params = {"timeout": PATIENT, "allow_unsafe": True}
    texts = ["def sum(x): return 8", "def total(x): return 8"]
    # A function that bears a name of Python's own is the solution's, and where it is missing Python's does not step in.
    assert code(texts, tests=[check] * 2, entry_point=["sum"] * 2, **params) == [1.0, 0.0]
    assert score("pass", [{"call": "sum", "args": [[3, 4]], "expected": 7}]) == 0.0
    assert score("pass", "assert sum([3, 4]) == 7") == 0.0  # tests that call nothing of the code prove nothing


def test_where_the_code_stands() -> None:
    assert code_in("a\n```py\none\n```\nb\n~~~\ntwo\n~~~\n") == "two\n"
    assert code_in("````md\n```\nx\n```\n````") == "```\nx\n```\n"
    assert code_in("cut:\n```python\nx = 1\n") == "x = 1\n"
    assert code_in("x = 1") == "x = 1"
    assert code_in("```\n```") == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "tests must be Python text, a list of tests, or JSON of one, not '[]'"),
        (3, "tests must be Python text"),
        ("x = 1\n", "the tests assert nothing: 'x = 1"),
        ("def f(:", "the tests are not valid Python"),
        (["assert x", {"input": "", "output": ""}], "all of one kind"),
        ([{"call": "os.system('x')", "expected": 0}], "call must be a function's name"),
        ([{"inputs": ""}], "a test is Python text, {input, output} or {call, args, expected}"),
    ],
)
def test_what_is_no_test_is_refused(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_tests(row)


def test_kinds_of_tests() -> None:
    assert parse_tests(PAIRS) == Programs((("2 3\n", "5"), ("10 7\n", "17\n")))
    assert parse_tests("import re\nassert f(1)\ng = 2\nassert f(g)") == Calls(
        ("import re\nassert f(1)\n", "g = 2\nassert f(g)\n")
    )


# --- what is not -----------------------------------------------------------------------------------------------------


class Listener:
    """Somebody on this machine's network, who notes who calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def strays() -> list[str]:
    """Processes that a sandbox left behind; killed ones need a moment to be gone."""
    until = time.monotonic() + 10
    while (found := in_sandboxes()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def in_sandboxes() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"inside.boot" in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.fault("R6", "R8")
@needs_sandbox
@pytest.mark.parametrize(("good", "tests", "every"), [(GOOD, TESTS, 1), (GOOD_PROGRAM, PAIRS, 3)])
def test_no_forgery_passes_and_right_code_beside_it_does(good: str, tests: Any, every: int) -> None:
    """Between them stands right code, whose score must not change."""
    forgeries = {name: f"```\n{text}\n```" for name, text in list(FORGERIES.items())[::every]}
    completions = [good, *forgeries.values(), good]
    with Pool("code", {"timeout": PATIENT}) as pool:
        scores = list(pool.score({"completions": completions, "tests": [tests] * len(completions)}).scores.values())
    assert {name: s for name, s in zip(forgeries, scores[1:-1], strict=True) if s != 0.0} == {}
    assert (scores[0], scores[-1]) == (1.0, 1.0)


@pytest.mark.fault("R5", "R6")
@needs_sandbox
def test_no_attack_reaches_anything(tmp_path: Path, listener: Listener) -> None:
    canary = tmp_path / "canary"
    fill = {"CANARY": str(canary), "PARENT": str(os.getpid()), "PORT": str(listener.port)}
    attacks = list(ATTACKS.values())
    for name, value in fill.items():
        attacks = [text.replace(name, value) for text in attacks]
    patient = Pool("code", {"timeout": PATIENT})
    with patient, Pool("code", {"timeout": 1.0, "memory": 256}) as pool:
        before = {worker.process._process.pid for worker in pool._workers}
        scores = pool.score({"completions": attacks, "tests": [PAIRS] * len(attacks)}).scores
        assert dict(zip(ATTACKS, scores.values(), strict=True)) == dict.fromkeys(ATTACKS, 0.0)
        assert {worker.process._process.pid for worker in pool._workers} == before  # nobody's process was killed
        assert patient.score({"completions": [GOOD_PROGRAM], "tests": [PAIRS]}).scores[0] == 1.0
    assert not canary.exists()
    assert listener.calls == 0
    assert strays() == []


@pytest.mark.fault("R4")
@needs_sandbox
def test_what_hangs_ends_at_its_limit() -> None:
    limit = 2.0
    cases = [(text, tests) for text in HANGS.values() for tests in (TESTS, PAIRS)]

    def took(case: tuple[str, Any]) -> float:
        began = time.monotonic()
        assert score(*case, timeout=limit, allow_unsafe=False) == 0.0, case[0]
        return time.monotonic() - began

    with ThreadPoolExecutor(len(cases)) as threads:
        assert max(threads.map(took, cases)) < limit + 8
    assert strays() == []


@pytest.mark.fault("R6")
@needs_sandbox
def test_nothing_of_this_machine_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is seen without the sandbox, so it is the sandbox that hides it."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    inquiries = {
        f"print(open({str(secret)!r}).read())": "hunter2",
        "import os\nprint(len([p for p in os.listdir('/proc') if p.isdigit()]) > 3)": "True",
        "import os\nprint(os.path.exists('/etc/passwd'))": "True",
        f"import os\nprint(os.path.exists({str(Path(__file__))!r}))": "True",
        f"print(open('/proc/{os.getpid()}/environ').read().count('hunter2') >= 0)": "True",
    }
    for inquiry, answer in inquiries.items():
        row = [{"input": "", "output": answer}]
        assert score(inquiry, row, allow_unsafe=False) == 0.0, inquiry
        with monkeypatch.context() as patch:
            patch.setattr(sandbox_module, "_unusable", lambda packages: "switched off for this test")
            assert score(inquiry, row) == 1.0, inquiry


REFUSED_ANYWHERE = {
    "fork": "import os\nos.fork()",
    "spawn": "import subprocess\nsubprocess.run(['true'])",
    "socket": "import socket\nsocket.socket()",
    "socket of this machine": "import socket\nsocket.socket(socket.AF_UNIX)",
    "memory in no process": "import os\nos.memfd_create('x')",
    "memory": "x = bytearray(400 << 20)",
    "a large file": "import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 30)",
    "many descriptors": "import os\nfor _ in range(100): os.pipe()",
    "more of a limit": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (999, 999))\n"
    "import os\nfor _ in range(100): os.pipe()",
}
"""Code → what the limits of a process must answer with an error."""
REFUSED_IN_A_SANDBOX = {
    "a full scratch folder": "for n in range(12): open(str(n), 'wb').write(b'x' * (15 << 20))",
    "writing to the root": "open('/x', 'w')",
    "writing to devices' folder": "open('/dev/shm/x', 'w')",
    "writing to the system": "open('/usr/x', 'w')",
    "writing to the checker": "open('/gro/inside/checker.py', 'a')",
    "another process": "import os\nfor n in range(3, 30000):\n    if n != os.getpid(): os.kill(n, 0)",
    "names of users": "open('/etc/passwd')",
    "environment": "import os\nos.environ['PATH']",
}


@pytest.mark.fault("R5", "R6")
@pytest.mark.parametrize("unsafe", [True, pytest.param(False, marks=needs_sandbox)])
def test_limits_hold(unsafe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if unsafe:
        monkeypatch.setattr(sandbox_module, "_unusable", lambda packages: "switched off for this test")
    row = [{"input": "", "output": "refused"}]
    for name, text in (REFUSED_ANYWHERE | ({} if unsafe else REFUSED_IN_A_SANDBOX)).items():
        if unsafe and name == "more of a limit" and os.getuid() == 0:
            continue  # root may raise its own limits: one more reason for a sandbox
        body = "".join(f"    {line}\n" for line in text.splitlines())
        program = f"try:\n{body}except (OSError, MemoryError, KeyError, ValueError): print('refused')\n"
        assert score(program, row, memory=256) == 1.0, name


@needs_sandbox
def test_packages_are_there_only_when_asked_for() -> None:
    text, row = "import numpy\nprint(numpy.arange(3).sum())", [{"input": "", "output": "3"}]
    assert score(text, row, allow_unsafe=False) == 0.0
    assert score(text, row, allow_unsafe=False, packages=True, memory=4096) == 1.0


# --- where there is no sandbox ---------------------------------------------------------------------------------------


@pytest.fixture
def no_bwrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox_module._unusable.cache_clear()
    yield
    sandbox_module._unusable.cache_clear()


@pytest.mark.fault("R6")
def test_without_a_sandbox_it_is_refused_with_the_way_out(no_bwrap: None) -> None:
    for refused in (lambda: sandbox(), lambda: load("code"), lambda: Pool("code")):
        with pytest.raises(
            GroError, match=r"there is no program bwrap\. Install bubblewrap .* or say allow_unsafe: true"
        ):
            refused()


def test_a_bwrap_that_may_not_work_is_found_out_by_running_it(no_bwrap: None, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!{sys.executable}\nimport sys; sys.exit('bwrap: No permissions to create a new namespace')\n")
    fake.chmod(0o755)
    with pytest.raises(GroError, match=r"bwrap does not work here .*No permissions to create a new namespace"):
        sandbox()


def test_allowed_unsafe_runs_as_an_ordinary_process_with_limits(no_bwrap: None) -> None:
    assert sandbox(allow_unsafe=True) == Sandbox(unsafe=True)
    with Pool("code", {"allow_unsafe": True, "timeout": PATIENT, "memory": 256}) as pool:
        texts = [GOOD, FORGERIES["leaves before the tests"], ATTACKS["fork bomb"], ATTACKS["memory bomb"]]
        scores = pool.score({"completions": texts, "tests": [TESTS] * len(texts)}).scores
    assert list(scores.values()) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.fault("R1")
def test_a_sandbox_that_breaks_is_a_failure_and_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Sandbox(unsafe=True)
    monkeypatch.setattr(Sandbox, "command", lambda *_: ["sh", "-c", "echo no namespaces >&2; exit 1"])
    limits = Limits(PATIENT, 1 << 30)
    with pytest.raises(SandboxError, match="could not be set up in time: no namespaces"):
        run_calls(broken, GOOD, Calls((TESTS,)), limits, stop=True)
    with pytest.raises(SandboxError, match="could not be set up in time: no namespaces"):
        run_programs(broken, GOOD, Programs((("", ""),)), limits, stop=True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"timeout": 0}, "reward 'code': timeout is a number above 0, not 0"),
        ({"memory": "1G"}, "reward 'code': memory is a number above 0, not '1G'"),
        ({"partial": "yes"}, "reward 'code': partial is true or false, not 'yes'"),
        ({"timeot": 3}, "reward 'code' has no parameter 'timeot'; did you mean 'timeout'?"),
    ],
)
def test_wrong_parameters_are_refused_at_once(params: dict[str, Any], message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)):
        load("code", params)


def test_faulty_tests_fail_the_sample() -> None:
    with Pool("code", {"allow_unsafe": True, "timeout": PATIENT}) as pool:
        scores = pool.score({"completions": [GOOD, GOOD], "tests": ["x = 1", TESTS]}).scores
    assert isinstance(scores[0], Trouble)
    assert scores[0].message == "ValueError: the tests assert nothing: 'x = 1'"
    assert scores[1] == 1.0


def test_what_runs_inside_needs_nothing_but_python() -> None:
    folder = Path(sandbox_module.__file__).parent
    names = "boot, checker, confine, program, solution, wire"
    command = f"import sys; sys.path.insert(0, {str(folder)!r}); from inside import {names}"
    subprocess.run([sys.executable, "-I", "-S", "-c", command], check=True)
