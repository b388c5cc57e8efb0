"""`gro` in several processes on one machine, each forked from this one, which has imported everything already.

    with Ranks(2, ["train", "recipe.yaml"], folder) as ranks:
        ranks.kill(1)
        ended = ranks.finish()

They find each other as under torchrun, whose part is played here where `agent` is said: it keeps the store at which
they meet, and asks the others to end when one has failed.  Otherwise the first process keeps the store.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from torture.attempts import Attempt, Ended

Before = Callable[[], object]


class Ranks:
    """A command in `size` processes."""

    def __init__(
        self,
        size: int,
        command: list[str],
        folder: Path,
        *,
        name: str = "rank",
        agent: bool = True,
        before: Mapping[int, Before] | Before | None = None,
        commands: Mapping[int, list[str]] | None = None,
        strikes: Mapping[int, Mapping[int, str]] | None = None,
        environment: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        """name: of the logs.  before: called in every process, or in those with these ranks, before the command.
        commands, strikes, environment: of single ranks; see `Attempt`."""
        self._agent: int | None = None
        self._told = False
        self._met = mmap.mmap(-1, size)
        self.began = time.monotonic()
        self.ends: dict[int, float] = {}
        """When each was seen to have ended."""
        port = _free_port()
        if agent:
            self._agent, port = _store_of_its_own()
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "TORCHELASTIC_USE_AGENT_STORE": str(agent),
            "GLOO_SOCKET_IFNAME": "lo",
        }

        def prepared(rank: int) -> Before:
            own = before.get(rank) if isinstance(before, Mapping) else before

            def prepare() -> None:
                os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
                os.environ.update((environment or {}).get(rank, {}))
                _note_meeting(self._met, rank)
                without_pictures()
                if own is not None:
                    own()

            return prepare

        self.attempts = [
            Attempt(
                (commands or {}).get(rank, command),
                folder,
                folder / f"{name}-{rank}.log",
                before=prepared(rank),
                strikes=(strikes or {}).get(rank, {}),
            )
            for rank in range(size)
        ]

    @property
    def met(self) -> bool:
        """Whether all have begun to watch over each other."""
        return all(self._met[:])

    def signal(self, rank: int, number: int) -> None:
        """Sends a signal to one of them, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.attempts[rank].pid, number)

    def kill(self, rank: int) -> None:
        """SIGKILL."""
        self.signal(rank, signal.SIGKILL)

    def look(self) -> bool:
        """Notes who has ended, and does what torchrun does then; whether all have."""
        for rank, attempt in enumerate(self.attempts):
            if rank not in self.ends and attempt.over():
                self.ends[rank] = time.monotonic()
                code = attempt.finish().code
                if code != 0 and self._agent is not None and not self._told:
                    self._told = True
                    for other in range(len(self.attempts)):
                        if other not in self.ends:
                            self.signal(other, signal.SIGTERM)
        return len(self.ends) == len(self.attempts)

    def wait(self, until: Callable[[], bool], seconds: float = 240.0) -> bool:
        """Waits for something to become true; False where all have ended before."""
        last = time.monotonic() + seconds
        while not self.look():
            if until():
                return True
            assert time.monotonic() < last, f"waited in vain: {self.said()}"
            time.sleep(0.01)
        return False

    def finish(self, *, but: int | None = None, seconds: float = 240.0) -> list[Ended | None]:
        """Waits until all have ended, or all but one: how they did."""
        wanted = set(range(len(self.attempts))) - {but}
        self.wait(lambda: wanted <= self.ends.keys(), seconds)
        return [attempt.finish() if rank in self.ends else None for rank, attempt in enumerate(self.attempts)]

    def said(self) -> str:
        """All logs."""
        return "\n".join(f"--- {i}\n{a._log.read_text(errors='replace')}" for i, a in enumerate(self.attempts))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for rank, attempt in enumerate(self.attempts):
            if not attempt.over():
                self.kill(rank)
                attempt.finish()
        if self._agent is not None:
            os.kill(self._agent, signal.SIGKILL)
            os.waitpid(self._agent, 0)


def finished(size: int, command: list[str], folder: Path, **how: object) -> list[Ended]:
    """The command in so many processes until it has ended well."""
    with Ranks(size, command, folder, **how) as ranks:  # type: ignore[arg-type]
        ended = [one for one in ranks.finish() if one is not None]
        assert [one.code for one in ended] == [0] * size, ranks.said()
    return ended


def without_pictures() -> None:
    """The curves of the report take longer than the rest of so small a run."""
    from gro.runs import pages

    pages.inline_svg = lambda *arguments, **options: ""


def _note_meeting(met: mmap.mmap, rank: int) -> None:
    from gro.training.watchdog import Watchdog

    enter = Watchdog.__enter__

    def entered(self: Watchdog) -> Watchdog:
        enter(self)
        met[rank] = 1
        return self

    Watchdog.__enter__ = entered  # type: ignore[method-assign]


def left_behind(mark: str) -> list[int]:
    """Processes that carry this value of GRO_TEST in their environment, as all that a rank starts do."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"GRO_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _store_of_its_own() -> tuple[int, int]:
    """A process that keeps a store as torchrun's does: its number, and the store's port."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            from torch._C._distributed_c10d import TCPStore

            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(hours=1))
            os.write(writer, struct.pack("i", store.port))
            while os.getppid() != 1:
                time.sleep(0.2)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pid, struct.unpack("i", pipe.read(4))[0]
