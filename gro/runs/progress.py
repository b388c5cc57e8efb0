"""How far long work is: a progress bar on a terminal, elsewhere exactly one plain line per step."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gro.runs.terminal import PatientStream, console, duration, number, patient_stdout, printable

_SHOWN = {  # metric → its name on the line, in this order; what a step lacks is left out
    "loss": "loss",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "mean_token_accuracy": "token accuracy",
    "accuracy": "accuracy",
    "kl": "kl",
    "tokens/s": "tokens/s",
}
_RECENT = 20  # steps over which the pace is taken: long enough to be calm, short enough to follow the lengths


class Progress:
    """Shows steps as they are done.  Never raises because nobody reads what it writes."""

    def __init__(
        self, total: int, title: str = "", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`total` steps; written to `stream` or standard output.  `clock` counts seconds and never jumps."""
        self._total, self._title, self._clock = total, printable(title, " "), clock
        output = sys.stdout if stream is None else stream
        self._console: Console = console(output)
        self._plain = PatientStream(output)
        self._on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._stdout = ExitStack()
        self._live: Live | None = None
        self._step = 0
        self._metrics: Mapping[str, float] = {}
        self._generating, self._waiting = "", ""
        self._generation_began = (0, 0.0)
        self._times: deque[tuple[int, float]] = deque(maxlen=_RECENT + 1)
        self._began = clock()

    def __enter__(self) -> Progress:
        self._began = self._clock()
        stdout = self._plain.stream is sys.stdout
        if stdout:
            self._stdout.enter_context(patient_stdout())
        if self._on_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=8,
                redirect_stdout=stdout,  # a print in between goes above the bar
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._generating = self._waiting = ""
            self._live.stop()
            self._live = None
        self._stdout.close()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done (so the first call says 1); `metrics` are those of this step.

        Shown of them: loss, reward, accuracy, margin, kl and tokens/s, as far as they are there.
        """
        now = self._clock()
        if not self._times:
            self._times.append((step - 1, self._began))
        self._times.append((step, now))
        self._step, self._metrics, self._generating = step, metrics, ""
        if not self._on_terminal:
            parts = [f"step {step}/{self._total}", *self._numbers(), f"eta {duration(self.seconds_left)}"]
            self._plain.write("  ".join(parts) + "\n")
            self._plain.flush()

    def generating(self, finished: int, tokens: int) -> None:
        """Within a step: `finished` completions and `tokens` tokens so far; an engine's `on_progress`.

        On a terminal a line under the bar, elsewhere nothing.
        """
        now = self._clock()
        if not self._generating:
            self._generation_began = (tokens, now)
        first, since = self._generation_began
        rate = f", {number((tokens - first) / (now - since))} tokens/s" if now > since else ""
        self._generating = f"generating: {finished} completions done, {tokens} tokens{rate}"

    def waiting(self, text: str) -> None:
        """Within a step: what it waits for, "" for nothing any more.

        On a terminal a line under the bar that follows it, elsewhere a line when it begins.
        """
        if text and not self._waiting and not self._on_terminal:
            self._plain.write(printable(text) + "\n")
            self._plain.flush()
        self._waiting = printable(text)

    def note(self, text: str) -> None:
        """Show a line of its own, above the bar: an alarm, where something was saved."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    @property
    def seconds_left(self) -> float:
        """Time left at the pace of the last steps; NaN before the first."""
        if not self._times:
            return float("nan")
        (first, since), (last, until) = self._times[0], self._times[-1]
        left = (until - since) / max(1, last - first) * (self._total - last)
        return max(0.0, left - (self._clock() - until))

    def _numbers(self) -> list[str]:
        return [f"{name} {number(self._metrics[key])}" for key, name in _SHOWN.items() if key in self._metrics]

    def _draw(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        finished = self._step >= self._total
        left = "" if finished else f"eta {duration(self.seconds_left)}"
        bar.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=30),
            Text(f"{self._step}/{self._total}"),
            Text(left, style="cyan"),
        )
        lines: list[RenderableType] = [bar]
        if self._metrics:
            lines.append(Text("  ".join(self._numbers()), style="dim"))
        if self._waiting or self._generating:
            lines.append(Text(self._waiting or self._generating, style="" if self._waiting else "dim"))
        return Group(*lines)


def progress(total: int, title: str = "", stream: TextIO | None = None) -> Progress:
    """The display for `total` steps of work.

    >>> with progress(total=300, title="grpo") as p:
    ...     p.step(12, {"loss": 0.1234, "reward": 0.512, "kl": 0.0031, "tokens/s": 5230})
    step 12/300  loss 0.1234  reward 0.512  kl 0.0031  tokens/s 5230  eta 1m12s
    """
    return Progress(total, title, stream)
