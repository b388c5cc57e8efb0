"""Tables in Markdown, for every page that is written by code."""

from __future__ import annotations

import re
from collections.abc import Iterable


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]


def escaped(cell: str) -> str:
    """Text for a cell: no column breaks, and outside of code no HTML."""
    parts = re.split(r"(`[^`]*`)", cell.replace("|", "\\|"))
    return "".join(p if p.startswith("`") else p.replace("<", "\\<") for p in parts)
