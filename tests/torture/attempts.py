"""One command in one process: forked, watched through shared memory, killed from outside or struck from within."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gro.runs import files, operations

Strike = str
"""What happens at an operation: the name of a signal that comes then, as SIGKILL, or of an error with which the disk
refuses it, as ENOSPC."""

NOTHING: Mapping[int, Strike] = {}
_PATIENCE = 300.0
"""Seconds after which an attempt counts as one that hangs, on however busy a machine."""


def preload() -> None:
    """Imports what jobs import when they need it: else every attempt would do it again."""
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    from transformers import Qwen3ForCausalLM, Qwen3ForSequenceClassification  # noqa: F401

    import gro.jobs.reward_model
    import gro.jobs.train
    import gro.runs.report  # noqa: F401


class Board:
    """What a process tells about itself while it runs and after its death, in memory that both sides share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)

    def _get(self, place: int) -> int:
        return struct.unpack_from("q", self._memory, 8 * place)[0]

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)

    @property
    def operations(self) -> int:
        """Operations on files that were announced."""
        return self._get(0)

    @operations.setter
    def operations(self, value: int) -> None:
        self._set(0, value)

    @property
    def saves(self) -> int:
        """States that were written to the end, older ones removed."""
        return self._get(1)

    @saves.setter
    def saves(self, value: int) -> None:
        self._set(1, value)

    @property
    def inside(self) -> int:
        """Above 0: a state or a model is being written."""
        return self._get(2)

    @inside.setter
    def inside(self, value: int) -> None:
        self._set(2, value)


@dataclass(frozen=True)
class Ended:
    """How an attempt came to its end."""

    code: int
    """The exit code; minus a signal's number."""
    said: str
    operations: int
    saves: int
    inside: bool
    """Whether it ended while a state or a model was being written."""
    seconds: float
    cpu: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Attempt:
    """A command that runs; the process is ended with `kill`, or `finish` waits for it."""

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        log: Path,
        *,
        strikes: Mapping[int, Strike] = NOTHING,
        before: Callable[[], object] | None = None,
        listing: Path | None = None,
    ) -> None:
        """strikes: what happens at which operation.  before: called in the process before the command.  listing: a
        file that gets the names of all operations."""
        self.board, self._log, self._start = Board(), log, time.monotonic()
        log.write_bytes(b"")  # it may be killed before it can do so
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, folder, strikes, before, listing)
        self._ended: tuple[int, float] | None = None

    def over(self) -> bool:
        """Whether the process has come to its end."""
        if self._ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._note(status, usage)
            elif time.monotonic() - self._start > _PATIENCE:
                os.kill(self.pid, signal.SIGKILL)
                raise RuntimeError(f"an attempt hangs; what it said: {self._log.read_text()}")
        return self._ended is not None

    def cpu(self) -> float:
        """Seconds of processor time that it took so far; another machine load does not change it."""
        try:
            return time.clock_gettime(_clock_of(self.pid))
        except OSError:
            return float("inf")

    def wait(self, until: Callable[[], bool]) -> bool:
        """Waits for something to become true; False where the process ended before."""
        while not self.over():
            if until():
                return True
            time.sleep(0.001)
        return False

    def kill(self) -> Ended:
        """SIGKILL."""
        if not self.over():
            os.kill(self.pid, signal.SIGKILL)
        return self.finish()

    def finish(self) -> Ended:
        """How it ended."""
        while not self.over():
            time.sleep(0.002)
        assert self._ended is not None
        status, cpu = self._ended
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._log.read_text(encoding="utf-8", errors="replace"),
            self.board.operations,
            self.board.saves,
            self.board.inside > 0,
            time.monotonic() - self._start,
            cpu,
        )

    def _note(self, status: int, usage: Any) -> None:
        self._ended = status, usage.ru_utime + usage.ru_stime

    def _run(
        self,
        arguments: list[str],
        folder: Path,
        strikes: Mapping[int, Strike],
        before: Callable[[], object] | None,
        listing: Path | None,
    ) -> None:
        """In the process itself; never returns."""
        code = 1
        try:
            descriptor = os.open(self._log, os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.chdir(folder)
            # In a fork torch makes its pool of threads anew at the first use, and not safely if that is in several
            # threads at once: where transformers loads a model it may say "Invalid thread pool!".
            torch.set_num_threads(1)
            seen: list[str] = []
            operations.on_operation = _hook(self.board, strikes, seen)
            if before is not None:
                before()
            with _watched(self.board):
                code = _command(arguments)
            if listing is not None:
                listing.write_text("".join(seen))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _hook(board: Board, strikes: Mapping[int, Strike], seen: list[str]) -> operations.OnOperation:
    def hook(operation: str, path: Path) -> None:
        number = board.operations
        board.operations = number + 1
        seen.append(f"{operation}\t{path.name}\t{board.saves}\n")
        what = strikes.get(number)
        if what is None:
            return
        if what.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[what])
            return
        refusal: int = getattr(errno, what)
        raise OSError(refusal, os.strerror(refusal))

    return hook


@contextmanager
def _watched(board: Board) -> Iterator[None]:
    """Within this block it is known when states and models are written."""
    from gro.training.checkpoint import Keeper

    save, directory = Keeper.save, files.new_directory

    def saved(self: Any, *arguments: Any) -> None:
        board.inside += 1
        try:
            save(self, *arguments)
        finally:
            board.inside -= 1
        board.saves += 1

    @contextmanager
    def filled(*arguments: Any, **options: Any) -> Iterator[Path]:
        board.inside += 1
        try:
            with directory(*arguments, **options) as folder:
                yield folder
        finally:
            board.inside -= 1

    Keeper.save, files.new_directory = saved, filled  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Keeper.save, files.new_directory = save, directory  # type: ignore[method-assign, assignment]


def _command(arguments: list[str]) -> int:
    """`gro ...`, with its exit code."""
    from gro.cli import main

    sys.argv = ["gro", *arguments]
    try:
        main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _clock_of(pid: int) -> int:
    """Linux: the clock of another process's processor time (clock_getcpuclockid)."""
    return (~pid << 3) | 2
