"""The entry point, and what it says where a command ends badly."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, TextIO

from gro.cli.app import app
from gro.errors import GroError, Interrupted

WRONG, RESUMABLE, INTERRUPTED = 2, 75, 130
"""Exit codes: something that the user can put right; stopped, and the same command goes on; Ctrl-C elsewhere."""


def main() -> None:
    """Entry point: errors meant for the user end with their message, not with a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "RANK" in os.environ:  # what a lost connection means is said by gro, and without frames of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.showwarning = _warn
    from gro.runs.terminal import patient_stdout

    try:
        with patient_stdout():
            app()
    except GroError as error:
        _complain(f"error: {error}")
        sys.exit(WRONG)
    except Interrupted as why:
        _complain(f"interrupted: {why}")
        sys.exit(RESUMABLE)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # so typer turns KeyboardInterrupt
            _complain("interrupted")
        elif leaving.code == WRONG and any(a.startswith("--") and "=" in a and "." in a for a in sys.argv[1:]):
            _complain("a recipe's keys are given without dashes: training.steps=10")
        raise
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(INTERRUPTED)


def _complain(text: str) -> None:
    from gro.runs.terminal import printable

    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[31m{printable(text)}\x1b[0m" if red else printable(text), file=sys.stderr)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    """A warning as a line, without the place in the code that raised it."""
    print(f"warning: {message}", file=file or sys.stderr)
