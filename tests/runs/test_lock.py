from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gro.errors import GroError
from gro.runs import Run, RunReader
from gro.runs.lock import RunLock, owner

HOLDER = """
import sys, time
from gro.runs.lock import RunLock
lock = RunLock.acquire(__import__("pathlib").Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.fault("P7")
def test_a_second_process_is_refused_within_a_second_naming_the_first(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    try:
        began = time.monotonic()
        with pytest.raises(GroError) as caught:
            Run.open(tmp_path, {})
        assert time.monotonic() - began < 1.0
        expected = rf"is in use by process {process.pid} on {re.escape(socket.gethostname())}, started 20..-..-..T"
        assert re.search(expected, str(caught.value))
        assert owner(tmp_path / "lock") is not None
    finally:
        process.kill()
        process.wait()
    assert owner(tmp_path / "lock") is None  # a stale lock is no lock
    with Run.open(tmp_path, {}) as run:
        first, second = RunReader(run.path).events()
    assert first.message == "started"
    assert second.message.startswith(f"took over from process {process.pid} on ")


@pytest.mark.fault("P7")
def test_an_owner_on_another_host_is_named(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path / "lock")
    record = {"pid": 4711, "host": "node-17", "started": "2026-01-02T03:04:05Z"}
    (tmp_path / "lock").write_text(json.dumps(record))
    with pytest.raises(GroError, match="in use by process 4711 on node-17, started 2026-01-02T03:04:05Z"):
        RunLock.acquire(tmp_path / "lock")
    lock.release()


def test_the_same_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", {}):
        for _ in range(2):  # being refused must not free the lock either
            with pytest.raises(GroError, match=f"in use by process {os.getpid()} "):
                Run.open(tmp_path / "r", {})
    Run.open(tmp_path / "r", {}).close()


def test_a_released_lock_has_no_predecessor(tmp_path: Path) -> None:
    RunLock.acquire(tmp_path / "lock").release()
    lock = RunLock.acquire(tmp_path / "lock")
    assert lock.predecessor is None
    lock.release()
    lock.release()  # harmless


def test_asking_who_owns_it_does_not_get_in_the_way(tmp_path: Path) -> None:
    """Readers hold the kernel's lock for a moment; owners-to-be wait for that."""
    RunLock.acquire(tmp_path / "lock").release()
    reader = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [reader]).start()
    RunLock.acquire(tmp_path / "lock").release()


RACER = """
import sys
from pathlib import Path
from gro.errors import GroError
from gro.runs import lock as locks
locks._PATIENCE = 0.03
for line in sys.stdin:
    try:
        lock = locks.RunLock.acquire(Path(line.strip()))
        print("won", flush=True)
        sys.stdin.readline()
        lock.release()
    except GroError:
        print("lost", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.fault("P7")
def test_of_two_racing_processes_exactly_one_wins(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    racers = [subprocess.Popen([sys.executable, "-c", RACER], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for n in range(50):
        for racer in racers if n % 2 else racers[::-1]:
            assert racer.stdin is not None
            print(tmp_path / "lock", file=racer.stdin, flush=True)
        results = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
        assert sorted(results) == ["lost", "won"]
        for racer in racers:  # both have seen the outcome: the winner may let go
            print(file=racer.stdin, flush=True)
    for racer in racers:
        racer.communicate()


@pytest.mark.fault("P7")
def test_a_forked_child_does_not_keep_its_killed_parents_lock(tmp_path: Path) -> None:
    """Reward workers may outlive a killed trainer for a moment; the rerun must not be refused because of them."""
    inner, outer = os.pipe()
    parent = os.fork()
    if parent == 0:
        _lock = RunLock.acquire(tmp_path / "lock")
        worker = os.fork()
        if worker == 0:
            time.sleep(30)
            os._exit(0)
        os.write(outer, str(worker).encode())
        time.sleep(30)
        os._exit(0)
    worker = int(os.read(inner, 20))
    time.sleep(0.1)
    assert owner(tmp_path / "lock") is not None  # the child letting go did not let go for the parent
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        lock = RunLock.acquire(tmp_path / "lock")
        assert lock.predecessor is not None
        assert lock.predecessor.pid == parent
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def killed_owner(path: Path) -> int:
    """The id of a process that was killed while it held the lock."""
    inner, outer = os.pipe()
    child = os.fork()
    if child == 0:
        _lock = RunLock.acquire(path)
        os.write(outer, b".")
        signal.pause()
    assert os.read(inner, 1) == b"."
    os.close(inner)
    os.close(outer)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return child


@pytest.mark.fault("P7")
@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_lock_that_was_left_behind_is_taken_over_every_time(tmp_path: Path, times: int) -> None:
    for _ in range(times):
        child = killed_owner(tmp_path / "lock")
        lock = RunLock.acquire(tmp_path / "lock")
        assert lock.predecessor is not None
        assert (lock.predecessor.pid, lock.predecessor.host) == (child, socket.gethostname())
        lock.release()


@pytest.mark.fault("P7")
@pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_has_an_owner_is_refused_every_time_within_a_second(tmp_path: Path, times: int) -> None:
    process = holder(tmp_path / "lock")
    try:
        took = []
        for _ in range(times):
            began = time.monotonic()
            with pytest.raises(GroError, match=f"in use by process {process.pid} on "):
                Run.open(tmp_path, {})
            took.append(time.monotonic() - began)
        assert owner(tmp_path / "lock") is not None
    finally:
        process.kill()
        process.wait()
    assert max(took) < 1.0, sorted(took)[-5:]  # it waits 0.4 s for readers; the rest is this machine's
