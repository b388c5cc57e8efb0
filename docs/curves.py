"""Makes docs/curves.json again, a minute's work: `python docs/curves.py`, or of some algorithms: `… dpo ipo`.

What every algorithm of a policy does on the tests' tiny language task, with its defaults and the loop of every run.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gro.algorithms import build, names
from gro.training.recording import Recorder, StepResult

DOCS = Path(__file__).resolve().parent
FILE = DOCS / "curves.json"
COMMAND = "python docs/curves.py"
REWARD, LOG_ODDS = "expected reward", "log-odds of the better completion, nats"


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured before the first step and after each."""

    measured: str
    values: tuple[float, ...]


@cache
def task() -> Any:
    """The tests' language task; it is not part of the package."""
    tests = str(DOCS.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module("algorithms.language")


@cache
def start() -> tuple[Any, Any]:
    """(the policy that every curve starts from, the pairs of the task)."""
    policy = task().warm_policy()
    return policy, task().pairs_of(policy)


def of_policies() -> list[str]:
    """Names of the algorithms that have a curve: all but the reward models'."""
    return [name for name in names() if not build(name).scores]


def curve(name: str) -> Curve:
    """The exact expected reward by step; where only pairs are learnt from, how well they are told apart."""
    algorithm, (begun, pairs) = build(name), start()
    policy = begun.snapshot()
    policy.model.requires_grad_(True)

    def measure() -> float:
        found = task().preference(policy, pairs) if algorithm.pairs else task().expected_reward(policy)
        return round(found, 3)

    watching = Watching(measure)
    task().improve(policy, algorithm, updates=task().updates_of(algorithm), rate=task().RATE, recorder=watching)
    return Curve(LOG_ODDS if algorithm.pairs else REWARD, tuple(watching.values))


class Watching(Recorder):
    """Measures the policy before the first step and after each, and records nothing."""

    def __init__(self, measure: Callable[[], float]) -> None:
        self.measure, self.values = measure, [measure()]

    def step(self, step: int, result: StepResult) -> None:
        self.values.append(self.measure())

    def evaluated(self, step: int, evaluate: object) -> None: ...


# --- the file ---------------------------------------------------------------------------------------------------------


@cache
def published() -> dict[str, Curve]:
    """What the file holds, by algorithm."""
    curves = json.loads(FILE.read_text(encoding="utf-8"))["curves"]
    return {name: Curve(found["measured"], tuple(found["values"])) for name, found in curves.items()}


def main(chosen: Sequence[str]) -> None:
    """Measures the chosen algorithms, or all, and writes the file, a line for each."""
    known = published() if chosen else {}
    for name in chosen or of_policies():
        known |= {name: curve(name)}
        print(f"{name}: {known[name].values[0]:g} to {known[name].values[-1]:g}", flush=True)
    write({name: known[name] for name in of_policies()})


def write(curves: Mapping[str, Curve]) -> None:
    """The file, beginning with the command that makes it."""
    lines = (f'"{name}": {json.dumps({"measured": c.measured, "values": c.values})}' for name, c in curves.items())
    head = f'{{"made by": "{COMMAND}", "curves": {{\n'
    FILE.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
