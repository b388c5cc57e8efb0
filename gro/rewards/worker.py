"""What runs inside a reward process: load one function, answer jobs until the channel closes or the process is killed.

Jobs arrive pickled (the trainer is trusted); answers leave as lines of JSON, so that reading one can execute nothing.
The parent's half is `gro.rewards.pool`.  Free of torch and of `gro.types`: it starts in well under 0.1 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gro.errors import GroError
from gro.rewards.functions import Failed, Logged, RewardFunction, TrainerState, Unfit, WrongReturnError
from gro.rewards.loading import load

LENGTH = struct.Struct("!Q")
"""In front of every job on the channel: its size in bytes."""
ORPHAN_GRACE = 2.0
"""Seconds past the limit after which a process whose trainer was killed ends itself."""
MOST_TRACEBACK = 6_000
"""Characters of a traceback; its end says what happened."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message: what the process is for."""

    place: str | bytes
    """Where the function is, or the function itself, pickled."""
    params: Mapping[str, Any]
    memory_limit: int
    """Bytes of private memory."""
    file_limit: int
    """Bytes of one file that the process writes."""


@dataclass(frozen=True, slots=True)
class Job:
    """Completions to score."""

    number: int
    columns: Mapping[str, Sequence[Any]]
    one_by_one: bool
    """One call and one answer per completion; else one call with all of them."""
    limit: float
    """Seconds per call."""
    state: TrainerState


def main(descriptor: int) -> None:
    """The life of a reward process on the inherited socket."""
    channel = socket.socket(fileno=descriptor)
    if (message := _receive(channel)) is None:
        return
    setup: Setup = pickle.loads(message)
    _limit_resources(setup)
    try:
        place = pickle.loads(setup.place) if isinstance(setup.place, bytes) else setup.place
        function = load(place, setup.params)
        function.warm_up()
    except GroError as error:
        _send(channel, {"refused": str(error)})
        return
    except BaseException as error:
        _send(channel, {"refused": f"the reward cannot be loaded:\n{_traceback(error)}"})
        return
    _send(channel, {"ready": _description(function)})
    while (message := _receive(channel)) is not None:
        _work(channel, function, message)


def _work(channel: socket.socket, function: RewardFunction, message: bytes) -> None:
    job: Job = pickle.loads(message)
    count = len(job.columns["completions"])
    parts = ((at, at + 1) for at in range(count)) if job.one_by_one else [(0, count)]
    here = os.getpid()
    for start, stop in parts:
        columns = {name: values[start:stop] for name, values in job.columns.items()}
        # The parent kills at the limit.  Should the parent be gone, the kernel does it, even where Python is stuck.
        signal.setitimer(signal.ITIMER_REAL, job.limit + ORPHAN_GRACE)
        answer = _answer(function, columns, job.state)
        if os.getpid() != here:
            os._exit(0)  # the reward forked and this is the copy: it has no business on the channel
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(channel, {"job": job.number, "at": start, **answer})


def _answer(function: RewardFunction, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> dict[str, Any]:
    logged = Logged()
    try:
        values = function.score(columns, logged, state)
    except WrongReturnError as error:
        return {"wrong": str(error)}
    except BaseException as error:  # also SystemExit: it is the reward's failure, not the end of the process
        return {"error": _traceback(error)}
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    answer: dict[str, Any] = {"values": [_plain(value) for value in values]}
    if logged.metrics:
        answer["metrics"] = logged.metrics
    if logged.extra:
        answer["extra"] = logged.extra
    return answer


def _plain(value: Any) -> Any:
    if isinstance(value, Unfit):
        return {"unfit": value.description}
    return {"failed": value.message[:MOST_TRACEBACK]} if isinstance(value, Failed) else value


def _description(function: RewardFunction) -> dict[str, Any]:
    return {
        "name": function.name,
        "samplewise": function.samplewise,
        "batch": function.batch,
        "time_limit": function.time_limit,
        "wants": None if function.wants is None else sorted(function.wants),
    }


def _limit_resources(setup: Setup) -> None:
    """Bounds that hold without the reward's cooperation; none of them can be raised again."""
    # Private memory rather than address space: CUDA and large mappings reserve far more than they use.
    _lower(resource.RLIMIT_DATA, setup.memory_limit)
    _lower(resource.RLIMIT_FSIZE, setup.file_limit)
    _lower(resource.RLIMIT_CORE, 0)
    # A write past the limit shall be an OSError that names the file, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Inherited as ignored from a trainer in the background, an interrupt inside the reward would go unseen.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _lower(kind: int, bound: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > bound:
        resource.setrlimit(kind, (bound, bound))


def _traceback(error: BaseException) -> str:
    """From the reward's own first frame on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))[-MOST_TRACEBACK:]
    except BaseException:  # a __str__ that raises, or no memory left
        return f"{type(error).__name__} (its message cannot be shown)"


def _is_ours(file: str) -> bool:
    return os.path.dirname(file) == os.path.dirname(__file__)


def _receive(channel: socket.socket) -> bytes | None:
    """The next message; None once the trainer is gone."""
    header = _exactly(channel, LENGTH.size)
    return None if header is None else _exactly(channel, LENGTH.unpack(header)[0])


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _send(channel: socket.socket, answer: dict[str, Any]) -> None:
    channel.sendall(json.dumps(answer, default=repr).encode() + b"\n")
