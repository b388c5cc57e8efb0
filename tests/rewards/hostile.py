"""Reward functions that misbehave on the completions that ask for it; every other completion scores 1.

A completion `"hang:sleep"` makes the reward do `CASES["hang:sleep"]`.  Loaded from its path by the reward processes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from gro.rewards import reward


def _spin() -> None:
    for _ in count():
        pass


def _dead_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _wait_for_thread() -> None:
    thread = threading.Thread(target=_spin, daemon=True)
    thread.start()
    thread.join()


def _deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)


def _catch_everything() -> None:
    while True:
        try:  # noqa: SIM105  (the plain form is what people write)
            time.sleep(1000)
        except BaseException:
            pass


def _full_pipe() -> None:
    _read, write = os.pipe()
    while True:
        os.write(write, b"x" * 65536)


def _allocate_slowly() -> None:
    held = []
    while True:
        held.append(bytearray(32 << 20))


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _recurse_in_c() -> None:
    sys.setrecursionlimit(10**9)
    json.loads("[" * 1_000_000)


def _flood(stream: Any) -> None:
    while True:
        stream.write("x" * 65536)


def _children(number: int, *, leave_session: bool = False) -> None:
    """Children that outlive the call unless somebody looks after them."""
    for _ in range(number):
        if os.fork() == 0:
            if leave_session:
                os.setsid()
            time.sleep(1000)
            os._exit(0)


def _orphan_and_hang() -> None:
    _children(3, leave_session=True)
    time.sleep(1000)


def _grandchildren_and_hang() -> None:
    if os.fork() == 0:
        os.setsid()
        _children(2)
        os._exit(0)
    time.sleep(1000)


def _raise_odd() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no message")

    raise Odd


def _write_big_file() -> None:
    with open(os.path.join(os.environ.get("TMPDIR", "/tmp"), f"gro-test-{os.getpid()}"), "wb") as file:
        os.unlink(file.name)
        os.ftruncate(file.fileno(), 8 << 30)


def _forge() -> None:
    """Write something like an answer to every descriptor."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'{"job": 1, "at": 0, "values": [1e300]}\n{"job": [\n')
        except OSError:
            continue
    time.sleep(0.05)
    os._exit(0)


def _bytes_on_channel() -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff" * 100_000 + b"\n")
        except OSError:
            continue


HANGS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(1000),
    "spin": _spin,
    "lock": _dead_lock,
    "condition": lambda: threading.Event().wait(),
    "thread that spins": _wait_for_thread,
    "sleep, deaf to signals": _deaf,
    "catches every exception": _catch_everything,
    "regex (a+)+$": lambda: re.match(r"(a+)+$", "a" * 60 + "!"),
    "regex (a|aa)+$": lambda: re.match(r"(a|aa)+$", "a" * 80 + "!"),
    "regex (.*)*x": lambda: re.match(r"(.*a){25}$", "a" * 60 + "!"),
    "regex nested words": lambda: re.match(r"^(\w+\s?)*$", "word " * 20 + "!"),
    "power tower": lambda: 9**9**9,
    "factorial": lambda: __import__("math").factorial(10**8),
    "digits of a power": lambda: str(7 ** (10**7)) if not sys.set_int_max_str_digits(0) else None,
    "sum of a huge range": lambda: sum(range(10**12)),
    "sort in C": lambda: sorted(range(10**9, 0, -1)) if not time.sleep(1000) else None,
    "fibonacci": lambda: (f := lambda f, n: n if n < 2 else f(f, n - 1) + f(f, n - 2))(f, 60),
    "reads a pipe that nobody writes": lambda: os.read(os.pipe()[0], 1),
    "writes a pipe that nobody reads": _full_pipe,
    "waits for a child": lambda: subprocess.run(["sleep", "1000"], check=False),
    "waits for a shell": lambda: os.system("sleep 1000"),
    "stops itself": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "pauses": signal.pause,
    "prints for ever": lambda: _flood(sys.stdout),
    "prints errors for ever": lambda: _flood(sys.stderr),
    "orphans that left the session": _orphan_and_hang,
    "grandchildren of a dead child": _grandchildren_and_hang,
    "leaves, while its copy holds the channel": lambda: os._exit(3) if os.fork() else time.sleep(1000),
    "sympy: nested exponents": lambda: __import__("sympy").Integer(5) ** (5 ** (5**5)),
    "sympy: expand": lambda: __import__("sympy").expand("(a+b+c+d+e+f+g)**60"),
    "sympy: factor an integer": lambda: __import__("sympy").factorint((2**521 - 1) * (2**607 - 1)),
    "C sleep that holds the interpreter": lambda: ctypes.PyDLL(None).sleep(1000),
}
"""Never return."""

DEATHS: dict[str, Callable[[], object]] = {
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(7)": lambda: os._exit(7),
    "os.abort": os.abort,
    "null pointer": lambda: ctypes.string_at(0),
    "SIGKILL to itself": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM to its group": lambda: os.killpg(0, signal.SIGTERM),
    "stack overflow in C": _recurse_in_c,
    "becomes another program": lambda: os.execv("/bin/true", ["true"]),
    "closes all descriptors": lambda: os.closerange(0, 4096),
    "forges answers": _forge,
    "writes bytes on every descriptor": _bytes_on_channel,
}
"""End the process or its channel."""

ERRORS: dict[str, Callable[[], object]] = {
    "ZeroDivisionError": lambda: 1 // 0,
    "sys.exit": lambda: sys.exit(0),
    "KeyboardInterrupt": lambda: signal.raise_signal(signal.SIGINT),
    "recursion": _recurse,
    "allocates 1 TB": lambda: bytearray(10**12),
    "allocates slowly": _allocate_slowly,
    "an error without a message": _raise_odd,
    "a huge message": lambda: (_ for _ in ()).throw(ValueError("x" * 10**7)),
    "eight gigabytes of file": _write_big_file,
}
"""Raise, or are made to."""

HARMLESS: dict[str, Callable[[], object]] = {
    "prints": lambda: print("a line\n" * 1000),
    "prints JSON": lambda: print('{"job": 1, "at": 0, "values": [5.0]}', flush=True),
    "prints binary": lambda: os.write(1, bytes(range(256)) * 100),
    "closes its output": lambda: (sys.stdout.close(), sys.stderr.close()),
    "closes descriptors 0 to 2": lambda: os.closerange(0, 3),
    "leaves a child": lambda: _children(1),
    "leaves children outside the session": lambda: _children(2, leave_session=True),
    "leaves a thread": lambda: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(),
    "changes the directory": lambda: os.chdir("/"),
    "empties the environment": os.environ.clear,
    "switches off the collector": gc.disable,
    "forks and returns twice": os.fork,
}
"""Odd, but the call returns: the completion has its score."""

CASES = HANGS | DEATHS | ERRORS | HARMLESS


@reward(samplewise=True)
def obedient(completions: Sequence[str], **columns: Any) -> list[float]:
    """1 for every completion, after doing what it says."""
    for text in completions:
        if text in CASES:
            CASES[text]()
    return [1.0 for _ in completions]


def whole(completions: Sequence[str], **columns: Any) -> list[float]:
    """The same as an ordinary function, called with the whole batch."""
    return obedient(completions=completions)


VALUES: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "1e30": 1e30,
    "-2e6": -2e6,
    "huge int": 10**400,
    "str": "1.0",
    "True": True,
    "list": [1.0],
    "dict": {"values": 1.0},
    "complex": 1j,
    "bytes": b"1",
    "object": object(),
    "int": 3,
    "none": None,
}


def values(completions: Sequence[str], **columns: Any) -> list[Any]:
    """Whatever the completion names."""
    return [VALUES.get(text, 1.0) for text in completions]


def tensors(completions: Sequence[str], **columns: Any) -> list[Any]:
    """A scalar tensor per completion, as somebody forgets `.item()`."""
    import torch

    return [torch.tensor(1.0) for _ in completions]


def too_few(completions: Sequence[str], **columns: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


def one_number(completions: Sequence[str], **columns: Any) -> Any:
    return 1.0


def by_place(completions: Sequence[str], **columns: Any) -> list[float]:
    """Wrong order: the score belongs to the place in the list."""
    return [float(at) for at in range(len(completions))]


def sorted_scores(completions: Sequence[str], **columns: Any) -> list[float]:
    """Wrong order: right numbers, sorted."""
    return sorted(float(len(text)) for text in completions)


def relative(completions: Sequence[str], **columns: Any) -> list[float]:
    """Depends on the batch, rightly."""
    mean = sum(len(text) for text in completions) / len(completions)
    return [len(text) - mean for text in completions]


_calls = count()


def moody(completions: Sequence[str], **columns: Any) -> list[float]:
    """Another score each time."""
    return [float(next(_calls)) for _ in completions]
