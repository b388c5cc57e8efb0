"""The process that has torch: one JSON object per line in and out.

`python -m gro.web.inspect.worker RUN DEVICE IDLE_SECONDS`

    {"id": 1, "do": "parts", "step": 4}                          the factors of every recorded coefficient of a step
    {"id": 2, "do": "actions", "step": 4, "row": 0, "at": 3}     the distributions in the state before a token

It ends by itself when its input ends or nobody has asked for a while: the page's server starts it when it is needed.
"""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from gro.assemble import build_algorithm
from gro.config import Config, load_config
from gro.errors import GroError
from gro.objective import Algorithm
from gro.runs import RunReader
from gro.web.inspect.actions import Models, state_of
from gro.web.inspect.quantities import StepParts, parts_of
from gro.web.inspect.stored import numbers


class Worker:
    """Answers questions about one run."""

    def __init__(self, run: Path, device: str = "cpu") -> None:
        self.run, self.device = run, device
        self._config: Config | None = None
        self._algorithm: Algorithm | None = None
        self._models: Models | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What is asked for; GroError with the reason where it cannot be had."""
        step = int(question["step"])
        with RunReader(self.run) as reader:
            if question["do"] == "parts":
                return self._parts(reader, step)
            if question["do"] == "actions":
                return self._actions(reader, step, int(question["row"]), int(question["at"]))
        raise GroError(f"{question['do']!r} is not a question")

    @property
    def config(self) -> Config:
        """The run's recipe.  Its data may have gone."""
        if self._config is None:
            self._config = load_config(self.run, needs=())
        return self._config

    def _parts(self, reader: RunReader, step: int) -> dict[str, Any]:
        if self._algorithm is None:
            self._algorithm = build_algorithm(self.config)
        groups = len({record.group for record in reader.rollouts(step)})
        training = self.config.training
        alone = training.minibatches == 1 and groups >= self.config.prompts_per_step
        whole = groups < training.record_groups or alone
        return plain_parts(parts_of(reader, step, self._algorithm, whole=whole))

    def _actions(self, reader: RunReader, step: int, row: int, at: int) -> dict[str, Any]:
        if self._models is None:
            self._models = Models(self.config, self.device)
        record = next((r for r in reader.rollouts(step) if r.row == row), None)
        if record is None or not 0 <= at < len(record.completion_ids):
            raise GroError(f"step {step} has no completion {row} with a token {at}")
        state, weights = state_of(reader, self._models, step, record, at)
        return {
            "ids": state.ids,
            "policy": state.policy,
            "reference": state.reference,
            "sampler": state.sampler,
            "rank": state.rank,
            "entropy": state.entropy,
            "after": weights.after,
            "wanted": step - 1,
            "from": str(weights.path.relative_to(self.run) if weights.path.is_relative_to(self.run) else weights.path),
            "refreshed": bool(self.config.training.refresh_reference),
        }


def plain_parts(found: StepParts) -> dict[str, Any]:
    """As JSON has it: by term and row, lists of numbers."""
    return {
        "error": found.error,
        "notes": found.notes,
        "terms": [
            {
                "label": term.label,
                "clips": term.clips,
                "determined": term.determined,
                "rows": {
                    str(row): {
                        name: numbers(values.tolist())
                        for name, values in parts.items()
                        if term.determined or name != "share"
                    }
                    for row, parts in term.rows.items()
                },
            }
            for term in found.terms
        ],
    }


def main(run: Path, device: str, out: TextIO, idle: float) -> None:
    """Answers line by line until the input ends or nobody asks any more."""
    worker = Worker(run, device)
    pending = b""
    while select.select([0], [], [], idle)[0]:
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            question = json.loads(line)
            try:
                answer: dict[str, Any] = {"answer": worker.answer(question)}
            except (GroError, OSError) as error:
                answer = {"error": str(error)}
            except (
                Exception
            ) as error:  # a bug, or too little memory: the page gets a sentence and the terminal the rest
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps({"id": question["id"]} | answer) + "\n")
            out.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    main(Path(sys.argv[1]), sys.argv[2], answers, float(sys.argv[3]))
