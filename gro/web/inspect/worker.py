"""The process that has torch: one JSON object per line in and out.

`python -m gro.web.inspect.worker RUN DEVICE IDLE_SECONDS`

    {"id": 1, "do": "actions", "step": 4, "row": 0, "at": 3}     the distributions in the state before a token

It ends by itself when its input ends or nobody has asked for a while: the page's server starts it when it is needed.
"""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from gro.assemble.algorithm import build_algorithm
from gro.config import Config, load_config
from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.web.inspect.actions import Models, Whose, state_of
from gro.web.inspect.checkpoints import Weights, reference_after


class Worker:
    """Answers questions about one run."""

    def __init__(self, run: Path, device: str = "cpu") -> None:
        self.run, self.device = run, device
        self._config: Config | None = None
        self._models: Models | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What is asked for; GroError with the reason where it cannot be had."""
        step = int(question["step"])
        with RunReader(self.run) as reader:
            if question["do"] == "actions":
                return self._actions(reader, step, int(question["row"]), int(question["at"]))
        raise GroError(f"{question['do']!r} is not a question")

    @property
    def config(self) -> Config:
        """The run's recipe.  Its data may have gone."""
        if self._config is None:
            self._config = load_config(self.run, needs=())
        return self._config

    def _actions(self, reader: RunReader, step: int, row: int, at: int) -> dict[str, Any]:
        if self._models is None:
            if build_algorithm(self.config).scores:
                raise GroError("a reward model gives a score to a whole answer: it has no actions")
            self._models = Models(self.config, self.device)
        record = next((r for r in reader.rollouts(step) if r.row == row), None)
        if record is None or not 0 <= at < len(record.completion_ids):
            raise GroError(f"step {step} has no completion {row} with a token {at}")
        state, whose = state_of(reader, self._models, step, record, at)
        every = self.config.training.refresh_reference
        return {
            **asdict(state),
            "exact": whose.policy.after == step - 1 and (every == 0 or whose.reference is not None),
            "whose": told(whose, step, record, every, self.run),
        }


def told(whose: Whose, step: int, record: RolloutRecord, refresh_every: int, run: Path) -> list[str]:
    """Whose the probabilities are, in sentences."""
    policy, reference, sampler = whose.policy, whose.reference, whose.sampler
    away = _away(policy, step - 1)
    said = [f"Policy: {_name(policy, run)}, {f'the nearest: {away}' if away else 'exactly the weights of this step'}."]
    after = reference_after(step, refresh_every)
    if reference is not None and after:
        said.append(f"Reference: the policy after {_steps(after)}, as it was refreshed ({_name(reference, run)}).")
    elif after:
        said.append(
            f"The reference of this step is the policy after {_steps(after)}, whose weights are not on this machine."
        )
    elif reference is None:
        said.append("The model that the run started from was not found, so there is no reference.")
    if sampler is not None and record.version != step - 1:
        away = _away(sampler, record.version)
        said.append(
            f"It was sampled {_steps(step - 1 - record.version)} before: sampler is {_name(sampler, run)}"
            f"{f', the nearest: {away}' if away else ''}."
        )
    return said


def _name(weights: Weights, run: Path) -> str:
    return "the model it started from" if weights.after == 0 else str(weights.path.relative_to(run))


def _away(weights: Weights, wanted: int) -> str:
    """How far the weights are from those that are wanted; empty where they are these."""
    by = weights.after - wanted
    return f"{_steps(abs(by))} {'later' if by > 0 else 'earlier'}" if by else ""


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


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
