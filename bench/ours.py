"""gro's side of the comparison: `gro train` on a recipe, with a source that waits for its turn.

`python bench/ours.py '<Job as JSON>'`, driven by `bench/run.py` over stdin and stdout.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import GROUP_SIZE, MAX_LENGTH, NEW_TOKENS, PAIRS_PER_STEP, PROMPTS_PER_STEP, Job, Turns, digest, read_jsonl
from rich.console import Console

from gro.assemble import Data
from gro.config import load_config
from gro.engines.base import Sampling
from gro.jobs import train
from gro.policy.policy import Policy
from gro.preflight import everything
from gro.training.loop import Source
from gro.training.recording import Recorder, StepResult
from gro.training.sources import Order, Stateless
from gro.types import Completion, Group, Prompt

JOB = Job.from_json(sys.argv[1])
TURNS = Turns()
PER_STEP = PAIRS_PER_STEP if JOB.kind == "dpo" else PROMPTS_PER_STEP

TRAINING = {
    "kl_every": 0,  # the peer measures no KL where it does not train on it
    "tokens_per_micro": 2048,  # as fast as 16,384, with less memory; the peer's batch is chosen in the same way
}


def recipe(folder: str) -> dict[str, Any]:
    """What a user would write for the same work."""
    common = {
        "run": f"{folder}/run",
        "model": {"path": JOB.model, "device": "cpu"},
        "prompts_per_step": PER_STEP,
        "training": TRAINING | {"steps": JOB.steps, "seed": JOB.seed} | JOB.options.get("training", {}),
        "optimizer": {"learning_rate": JOB.learning_rate},
    }
    if JOB.kind == "dpo":
        data = {"path": JOB.data, "kind": "preference", "max_length": MAX_LENGTH}
        return common | {"algorithm": {"name": "dpo", "beta": 0.1}, "offline": data}
    return common | {
        # The peer's standard deviation.
        "algorithm": {"name": "grpo", "beta": 0.0, "ddof": 1, "eps": 1e-4},
        "online": {"path": JOB.data, "kind": "prompt_only"},
        "rewards": [f"{Path(__file__).with_name('reward.py')}:even_share"],
        "group_size": GROUP_SIZE,
        "sampling": {"max_new_tokens": NEW_TOKENS},
    }


class InTurn:
    """A source that waits for its process's turn."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def observed(self) -> Mapping[str, float]:
        """Passed on."""
        return self.source.observed

    def take(self, step: int) -> list[Group]:
        """Waits, then takes; rewards count as generation."""
        TURNS.begin()
        with TURNS.clock("generation"):
            groups = self.source.take(step)
        if JOB.kind == "grpo":
            assert all(len(c.ids) == NEW_TOKENS for g in groups for c in g.completions), "a completion stopped early"
        return groups

    def receive(self, policy: Policy, step: int) -> None:
        """Passed on."""
        self.source.receive(policy, step)

    def state(self) -> dict[str, Any]:
        """Passed on."""
        return self.source.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Passed on."""
        self.source.load(state)


class Replay(Stateless):
    """The groups that the peer sampled, with the rewards that it gave them."""

    def __init__(self, path: str) -> None:
        self.steps: list[list[Group]] = []
        self.observed: dict[str, float] = {}
        for number, step in enumerate(read_jsonl(path)):
            rows = list(zip(step["prompts"], step["completions"], step["rewards"], strict=True))
            self.steps.append([])
            for at in range(0, len(rows), GROUP_SIZE):
                members = rows[at : at + GROUP_SIZE]
                assert all(prompt == members[0][0] for prompt, _, _ in members), "the peer's groups are not contiguous"
                completions = tuple(Completion(ids=tuple(c), reward=r, finish="length") for _, c, r in members)
                prompt = Prompt(tuple(members[0][0]), key=number * PER_STEP + at // GROUP_SIZE)
                self.steps[-1].append(Group(prompt, completions))

    def take(self, step: int) -> list[Group]:
        """What the peer learnt from in this step."""
        return self.steps[step]

    def receive(self, policy: Policy, step: int) -> None:
        """Files do not change."""

    def state(self) -> dict[str, Any]:
        """A function of the step."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """There is none."""


class Reporting(Recorder):
    """A run's recorder that also reports to the comparison.  Recording counts as work."""

    def step(self, step: int, result: StepResult) -> None:
        """Records, then stops the clock."""
        super().step(step, result)
        TURNS.stop_clock()
        kept = ("loss", "grad_norm", "entropy")
        TURNS.note(**{k: v for k, v in result.updates[0].metrics.items() if k in kept})


_source_of, _sampling_of = train.source_of, everything.sampling_of


def source_of(config: Any, data: Data, *rest: Any) -> InTurn:
    """The recipe's own source, or the peer's samples.  Everything is loaded when this is called."""
    source = Replay(JOB.options["replay"]) if "replay" in JOB.options else _source_of(config, data, *rest)
    rows = data.online if data.online is not None else data.offline[0][0]
    order = Order(len(rows), JOB.seed).rows(0, len(rows))
    taken = (rows[i] for i in order)
    TURNS.ready(
        ids=digest([g.prompt.ids, *(c.ids for c in g.completions)] for g in taken), threads=torch.get_num_threads()
    )
    return InTurn(source)


def endless(*arguments: Any) -> Sampling:
    """The recipe's sampling, but that no token ends a completion: equal work on both sides."""
    return replace(_sampling_of(*arguments), stop_ids=())


def main() -> None:
    """Runs what `gro train` runs, with three of its parts replaced by their turn-taking versions."""
    torch.set_num_threads(JOB.threads)
    train.source_of = source_of  # type: ignore[assignment]
    train.Recorder = Reporting  # type: ignore[misc]
    if JOB.kind == "grpo":
        everything.sampling_of = endless
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(recipe(folder)))  # JSON is YAML
        train.run_training(load_config(path), console=Console(file=sys.stderr))
    TURNS.done()


if __name__ == "__main__":
    main()
