"""Batches of completions on their way through the processes of one reward function.

A call that takes too long costs its process.  Only the completions that are guilty fail: a batch call that raises,
hangs or dies is repeated completion by completion, within a bound on the time that all this may take.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gro.errors import GroError
from gro.rewards.batch import Batch, Kind, Piece, Trouble
from gro.rewards.functions import TrainerState, described, is_reward
from gro.rewards.process import GoneError, WorkerProcess
from gro.rewards.worker import Job, Setup

START_LIMIT = 120.0
"""Seconds in which a process must have imported its function; it may import torch on a busy machine."""
DEFAULT_LIMIT = 30.0
"""Seconds for one call of a function that does not say its own limit."""
LOST_LIMITS = 8
"""Once failing calls of one batch have cost this many limits, the rest of the batch fails untried."""
START_ATTEMPTS = 3
MEMORY_LIMIT = 4 << 30
FILE_LIMIT = 1 << 30


class _Worker:
    """A process with the job that it is at."""

    def __init__(self, setup: Setup) -> None:
        self.process = WorkerProcess(setup)
        self.ready = False
        self.began = time.monotonic()
        self.deadline = self.began + START_LIMIT
        self.piece: Piece | None = None
        self.number = -1
        self.at = 0
        """The call that is running, by its first completion in the piece."""

    def begin_call(self, at: int, limit: float) -> None:
        self.at = at
        self.began = time.monotonic()
        self.deadline = self.began + limit

    def rest(self) -> None:
        self.piece = None
        self.deadline = float("inf")


class Pool:
    """The processes of one reward function.

    >>> with Pool("maths") as pool:
    ...     pool.score({"completions": ["#### 4"], "answer": ["4"]}).scores
    {0: 1.0}
    """

    def __init__(
        self,
        place: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        *,
        time_limit: float | None = None,
        workers: int = 2,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Raises GroError where the function is not found or cannot be loaded.

        time_limit: seconds for one call (one completion of a samplewise reward); None: the function's own, or 30.
        workers: how many processes share a batch of a samplewise reward, or the calls of one that says `batch`; others
        get the whole batch in one call.
        """
        self._setup = Setup(_portable(place), dict(params or {}), memory_limit, FILE_LIMIT)
        self._number = 0
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end_all, self._workers, os.getpid())
        self._select = selectors.DefaultSelector()
        about = self._first_start()
        self.name: str = about["name"]
        self.samplewise: bool = about["samplewise"]
        self.batch: int | None = about["batch"]
        self.wants: frozenset[str] | None = None if about["wants"] is None else frozenset(about["wants"])
        self.time_limit: float = time_limit or about["time_limit"] or DEFAULT_LIMIT
        if self.samplewise or self.batch:
            for _ in range(workers - 1):
                self._start()

    def _first_start(self) -> dict[str, Any]:
        worker = self._start()
        try:
            answer = worker.process.first_answer(START_LIMIT)
        except GoneError:
            printed = worker.process.printed
            how = self._stop(worker, patience=0.2)
            raise GroError(f"reward {self._setup.place!r} cannot be loaded: its process {how}\n{printed}") from None
        if "refused" in answer:
            self.close()
            raise GroError(str(answer["refused"]))
        worker.ready = True
        worker.rest()
        return answer["ready"]

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState = TrainerState()) -> Batch:  # noqa: B008
        """Score a batch: `scores` of the result has a float, None or Trouble for every completion.

        columns: `completions`, `prompts`, `completion_ids` and the data's columns, lists of one length.
        Takes at most about LOST_LIMITS + 1 time limits more than the calls that succeed.
        """
        assert self._workers, "the pool is closed"
        count = len(columns["completions"])
        assert all(len(values) == count for values in columns.values()), "columns of different length"
        wanted = {k: v for k, v in columns.items() if k == "completions" or self.wants is None or k in self.wants}
        batch = Batch(wanted, state, deque(self._pieces(count)))
        began = time.monotonic()
        for worker in [w for w in self._workers if w.piece is not None]:
            self._stop(worker)  # a call of score that was interrupted left it at work
            self._start()
        self._hand_out(batch)
        while batch.queue or any(worker.piece for worker in self._workers):
            self._listen(batch)
            self._enforce(batch)
            self._hand_out(batch)
        batch.seconds = time.monotonic() - began
        return batch

    def _pieces(self, count: int) -> list[Piece]:
        size = self.batch or max(1, count)
        if self.samplewise:
            size = max(16, -(-count // (4 * len(self._workers))))  # small enough that workers end together
        return [Piece(range(at, min(at + size, count)), self.samplewise) for at in range(0, count, size)]

    def _hand_out(self, batch: Batch) -> None:
        if reason := self._given_up(batch):
            while batch.queue:
                batch.fail(batch.queue.popleft().rows, Trouble("untried", reason))
        for worker in tuple(self._workers):
            if batch.queue and worker.ready and worker.piece is None:
                self._number += 1
                job = self._job(batch, batch.queue[0], self._number)
                worker.process.forget_printed()
                if worker.process.post(job, patience=self.time_limit):
                    worker.piece, worker.number = batch.queue.popleft(), self._number
                    worker.begin_call(0, self.time_limit)
                else:  # it died while it had nothing to do, so no completion is to blame
                    batch.failed_starts += 1
                    self._stop(worker)
                    self._start()

    def _given_up(self, batch: Batch) -> str | None:
        if batch.lost > LOST_LIMITS * self.time_limit:
            return f"not tried: other calls had used up {LOST_LIMITS} time limits of {self.time_limit:g} s"
        if batch.failed_starts >= START_ATTEMPTS:
            return f"not tried: the process of the reward ended {batch.failed_starts} times without having been called"
        return None

    def _job(self, batch: Batch, piece: Piece, number: int) -> bytes:
        columns = {name: [values[row] for row in piece.rows] for name, values in batch.columns.items()}
        try:
            return pickle.dumps(Job(number, columns, piece.one_by_one, self.time_limit, batch.state))
        except Exception as error:
            raise GroError(
                f"a column of the data cannot be sent to reward {self.name!r}: {type(error).__name__}: {error}"
            ) from error

    def _listen(self, batch: Batch) -> None:
        """Wait for something to arrive or the next deadline."""
        next_deadline = min(worker.deadline for worker in self._workers)
        patience = None if next_deadline == float("inf") else max(0.0, next_deadline - time.monotonic())
        for key, _ in self._select.select(patience):
            worker: _Worker = key.data
            if key.fileobj is not worker.process.channel:
                if not worker.process.drain():
                    self._select.unregister(key.fileobj)
                continue
            try:
                for answer in worker.process.answers():
                    self._take(batch, worker, answer)
            except GoneError:
                self._lose(batch, worker, "died")
                return  # the other keys may belong to what has just been replaced

    def _take(self, batch: Batch, worker: _Worker, answer: dict[str, Any]) -> None:
        """One answer.  Raises GoneError for one that was not asked for: then the process is not to be trusted."""
        if not worker.ready:
            if "ready" not in answer:
                raise GoneError
            worker.ready = True
            worker.rest()
            return
        piece = worker.piece
        if piece is None or answer.get("job") != worker.number or answer.get("at") != worker.at:
            raise GoneError
        rows = piece.rows[worker.at : worker.at + 1] if piece.one_by_one else piece.rows
        if piece.again:
            batch.lost += time.monotonic() - worker.began
        if "error" in answer and len(rows) > 1:
            batch.repeat(rows)
        else:
            self._record(batch, rows, answer, worker)
        after = worker.at + len(rows)
        if after == len(piece.rows):
            worker.rest()
        else:
            worker.begin_call(after, self.time_limit)

    def _record(self, batch: Batch, rows: Sequence[int], answer: dict[str, Any], worker: _Worker) -> None:
        if "error" in answer or "wrong" in answer:
            text = str(answer.get("error") or answer["wrong"])
            last_line = text.strip().rpartition("\n")[2]
            kind: Kind = "raised" if "error" in answer else "return"
            batch.fail(rows, Trouble(kind, last_line, text if kind == "raised" else "", worker.process.printed))
            return
        values = answer.get("values")
        if not isinstance(values, list) or len(values) != len(rows):
            raise GoneError
        for row, value in zip(rows, values, strict=True):
            batch.scores[row] = value if value is None or is_reward(value) else _trouble(value)
        for name, value in _dictionary(answer, "metrics").items():
            if is_reward(value):
                batch.metrics.setdefault(name, []).append(value)
        for column, logged in _dictionary(answer, "extra").items():
            if isinstance(logged, list) and len(logged) == len(rows):
                batch.extra.setdefault(column, {}).update(zip(rows, logged, strict=True))

    def _enforce(self, batch: Batch) -> None:
        now = time.monotonic()
        for worker in [w for w in self._workers if w.deadline <= now]:
            self._lose(batch, worker, "hung")

    def _lose(self, batch: Batch, worker: _Worker, kind: Literal["hung", "died"]) -> None:
        """End a process that hangs, is dead or lies; its completions but the guilty one go back into the queue."""
        took = time.monotonic() - worker.began
        printed = worker.process.printed
        how = self._stop(worker, patience=0.2 if kind == "died" else 0.0)
        message = f"took longer than {self.time_limit:g} s" if kind == "hung" else f"its process {how}"
        if (piece := worker.piece) is not None:
            batch.lost += took
            if piece.one_by_one or len(piece.rows) == 1:
                batch.fail([piece.rows[worker.at]], Trouble(kind, message, "", printed))
                if rest := piece.rows[worker.at + 1 :]:
                    batch.queue.appendleft(Piece(rest, one_by_one=True, again=piece.again))
            else:
                batch.repeat(piece.rows)
        if not worker.ready:
            batch.failed_starts += 1
        self._start()

    def _start(self) -> _Worker:
        worker = _Worker(self._setup)
        self._workers.append(worker)
        self._select.register(worker.process.channel, selectors.EVENT_READ, worker)
        self._select.register(worker.process.output, selectors.EVENT_READ, worker)
        return worker

    def _stop(self, worker: _Worker, patience: float = 0.0) -> str:
        self._workers.remove(worker)
        self._select.unregister(worker.process.channel)
        if worker.process.output in self._select.get_map():
            self._select.unregister(worker.process.output)
        return worker.process.end(patience)

    def restart(self) -> None:
        """New processes in the place of the old ones, for a reward whose state cannot be trusted."""
        for worker in tuple(self._workers):
            self._stop(worker)
            self._start()

    def close(self) -> None:
        """Kill the processes."""
        self._end()
        self._select.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_all(workers: list[_Worker], owner: int) -> None:
    while workers and os.getpid() == owner:  # not from a fork of the trainer, which has the list too
        workers.pop().process.end()


def _trouble(value: Any) -> Trouble:
    """Of a value that is no reward."""
    if isinstance(value, dict) and isinstance(value.get("failed"), str):
        return Trouble("raised", value["failed"])
    name = str(value.get("unfit")) if isinstance(value, dict) else described(value)
    return Trouble("value", f"returned {name}, which is not a reward")


def _dictionary(answer: dict[str, Any], key: str) -> dict[str, Any]:
    value = answer.get(key)
    return value if isinstance(value, dict) else {}


def _portable(place: str | Callable[..., Any]) -> str | bytes:
    """What another process can find the function by."""
    if isinstance(place, str):
        return place
    name = getattr(place, "__qualname__", repr(place))
    if getattr(place, "__module__", None) == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file and "." not in name:
            return f"{file}:{name}"
    else:
        with contextlib.suppress(Exception):  # a lambda, a local function: the message below says what to do
            return pickle.dumps(place)
    raise GroError(
        f"reward {name} runs in a process of its own, which cannot find it: define it at the top of a file and give it "
        "as path/to/file.py:function"
    )
