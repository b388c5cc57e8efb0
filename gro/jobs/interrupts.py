"""Being asked to stop: Ctrl-C, the SIGTERM of a scheduler, a terminal that is closed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gro.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Signals as questions: while it is `patient`, the first one asks, and a second one stops at once.

    >>> with Interrupts() as interrupts, interrupts.patient():
    ...     train(..., keep=Keeper(..., asked=lambda: interrupts.asked))
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        """The name of the signal that has come."""
        self._patient = False
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def patient(self) -> Iterator[None]:
        """While the block looks at `asked` now and then."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While the block waits for what may take days: in it the first signal stops at once.  In any thread."""
        patient, self._patient = self._patient, False
        try:
            if self.asked is not None:
                raise Interrupted(self.asked)
            yield
        finally:
            self._patient = patient

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere there are no signals
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP, and a shell SIGINT behind &
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._patient or self.asked is not None:
            raise Interrupted(name)
        self.asked = name
        # Not through the console, in the middle of whose work this may come.
        os.write(2, f"\n{name}: stops after this step; once more, and it stops at once\n".encode())
