"""The first thing that runs in a sandbox: read what to run, put the limits on, run it.

Arguments: what to be (program, solution or checker), limits as JSON, the descriptor that holds the code, and the
descriptors of that program.
"""

from __future__ import annotations

import importlib
import json
import sys

from .confine import confine


def main() -> None:
    """Called by the command line that `gro.rewards.sandbox` writes."""
    what, limits, code, *descriptors = sys.argv[2:]
    with open(int(code), encoding="utf-8", errors="surrogatepass") as file:
        text = file.read()
    # Imported before the limits, and before the code could put a module of its own in the way.
    role = importlib.import_module(f"{__package__}.{what}")
    confine(json.loads(limits))
    role.main(text, *map(int, descriptors))
