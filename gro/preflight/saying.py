"""Lines for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from gro.runs.terminal import printable


def say(console: Console, *lines: str) -> None:
    """Plain lines, whatever is in them."""
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)
