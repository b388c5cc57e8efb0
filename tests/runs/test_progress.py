from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from gro.runs.progress import Progress, progress

STEP = {"loss": 0.1234, "reward": 0.512, "kl": 0.0031, "tokens/s": 5230.4, "grad_norm": 1.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.fault("P9")
def test_one_plain_line_per_step_without_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(300, "grpo", out, clock) as p:
        for step in range(1, 13):
            p.generating(3, 100)
            clock.now += 0.25
            p.step(step, STEP)
    lines = out.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[-1] == "step 12/300  loss 0.1234  reward 0.512  kl 0.0031  tokens/s 5230  eta 1m12s"


def test_time_left_follows_the_last_steps_and_a_resumed_start() -> None:
    clock = Clock()
    p = Progress(200, "", io.StringIO(), clock)
    assert math.isnan(p.seconds_left)
    for step in range(101, 131):  # the first ten steps were slow
        clock.now += 100.0 if step <= 110 else 2.0
        p.step(step, {})
    assert p.seconds_left == pytest.approx(2.0 * 70)
    clock.now += 30
    assert p.seconds_left == pytest.approx(2.0 * 70 - 30)


def test_only_what_is_there_is_shown_and_nan_is_nan() -> None:
    out = io.StringIO()
    with Progress(2, "", out, Clock()) as p:
        p.step(1, {"rewards/accuracies": 0.75, "rewards/margins": 0.1, "loss": math.nan})
        p.step(2, {})
        p.note("saved \x1b[2J[bold]here")
    assert out.getvalue().splitlines() == [
        "step 1/2  loss nan  accuracy 0.75  margin 0.1  eta 0s",
        "step 2/2  eta 0s",
        "saved \\x1b[2J[bold]here",
    ]


PROGRAM = """
import os, sys, time
from gro.runs import progress
with progress(total=200, title="t [red]x") as p:
    for step in range(1, int(sys.argv[1]) + 1):
        p.generating(4, 99)
        print("a reward function prints", "x" * 500)
        time.sleep(float(sys.argv[2]))
        p.step(step, {"loss": 1.0, "reward": 0.5})
    p.note("the end")
print("and a print after it", flush=True)
os.write(2, b"survived")
"""


PIPED = """
import os, sys
from gro.runs import progress
with progress(total=9) as p:
    p.step(1, {"loss": 1.0})
    sys.stdin.readline()
    if sys.argv[1] == "print":
        print("a reward function prints", flush=True)
    for step in range(2, 10):
        p.step(step, {})
    p.note("the end")
print("and a print after it", flush=True)
os.write(2, b"survived")
"""


@pytest.mark.fault("P10")
@pytest.mark.parametrize("first", ["print", "step"])
def test_a_closed_pipe_stops_nothing(first: str) -> None:
    """`gro train | head -1`, whoever is the first to write after that."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PIPED, first], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("step 1/9  loss 1  eta")
    process.stdout.close()
    process.stdin.write("go on\n")
    process.stdin.close()
    assert process.stderr.read() == "survived"  # no traceback, no complaint at exit either
    assert process.wait() == 0


def on_terminal(arguments: list[str], until: Callable[[str], bool] = lambda text: False) -> tuple[str, int, str]:
    """Run the program on a pseudo-terminal: what it wrote there, its status, its standard error.

    The terminal goes away as soon as `until` holds for what was written.
    """
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=slave, stderr=subprocess.PIPE, env=environment
    )
    os.close(slave)
    text = ""
    try:
        while (data := os.read(master, 65536)) and not until(text):
            text += data.decode()
    except OSError:  # the program has ended
        pass
    os.close(master)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    return text, process.wait(), errors


def test_a_bar_on_a_terminal() -> None:
    text, status, errors = on_terminal(["4", "0.15"])
    assert (status, errors) == (0, "survived")
    assert "t [red]x" in text  # a title is text, not markup
    assert "4/200" in text
    assert "━" in text
    assert "loss 1  reward 0.5" in text
    assert "generating: 4 completions done, 99 tokens" in text
    assert text.count("a reward function prints") == 4
    assert "the end" in text
    assert "step 1/200" not in text


@pytest.mark.fault("P10")
def test_a_terminal_that_goes_away_stops_nothing() -> None:
    _, status, errors = on_terminal(["20", "0.05"], until=lambda text: "2/200" in text)
    assert (status, errors) == (0, "survived")


def test_an_error_inside_is_not_swallowed() -> None:
    def fail() -> None:
        with progress(3, "x", io.StringIO()):
            raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        fail()
    assert threading.active_count() < 10
