"""Runs to look at: tiny ones that were really trained, each made once, and one written by hand."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gro.runs import Run, RunReader
from gro.runs.records import TERMS, RolloutRecord
from jobs_on_sums import SUMS, cli, dpo, online, sft, write_data, write_rows

REWARD = "def letters(completions, **_):\n    return [sum(map(ord, c)) % 7 / 7 for c in completions]\n"


@cache
def folder() -> Path:
    """With the data, and `sft` trained."""
    made = Path(tempfile.mkdtemp(prefix="gro-inspect-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    write_data(made)
    (made / "letters.py").write_text(REWARD)
    _train(sft(made, training__steps=3))
    return made


@cache
def trained(name: str) -> Path:
    """A run: sft, grpo, twice, ppo, gro, dpo, kto, lora, refreshed or judge, a reward model.

    grpo records half of its groups, has checkpoints and restricted samples; twice makes four updates of a step.
    """
    made = folder()
    if name == "sft":
        return made / "sft"
    rewards = [{"reward": f"{made / 'letters.py'}:letters"}]
    common: dict[str, Any] = {"rewards": rewards, "optimizer": {"learning_rate": 1e-2}, "training__steps": 3}
    if name == "grpo":
        sampling = {"max_new_tokens": 5, "temperature": 0.8, "top_p": 0.9, "top_k": 40}
        more = {"sampling": sampling, "training__record_groups": 2, "training__save_every": 2}
        _train(online(made, "grpo", **(common | more)))
    elif name == "twice":
        _train(online(made, name, **(common | {"training__epochs": 2, "training__minibatches": 2})))
    elif name in ("lora", "refreshed"):
        adapter = {"path": str(made / "sft"), "lora": {"rank": 2, "alpha": 4.0}}
        keys = {"training__steps": 5, "training__resume_every": 1, "training__keep_state": True}
        keys |= {"training__refresh_reference": 2} if name == "refreshed" else {"model": adapter}
        _train(online(made, name, **(common | keys)))
    elif name == "kto":
        labels = (
            {"prompt": f"{a}+{b}=", "completion": str(a + b + (a + b) % 2), "label": (a + b) % 2 == 0} for a, b in SUMS
        )
        data = {"path": str(write_rows(made / "labels.jsonl", labels))}
        keys = {"algorithm": name, "eval": None, "optimizer": {"learning_rate": 1e-2}, "training__steps": 2}
        _train(dpo(made, name, offline=data, prompts_per_step=16, **keys))
    elif name in ("dpo", "judge"):
        keys = {"algorithm": "bradley_terry"} if name == "judge" else {}
        _train(dpo(made, name, **keys, eval=None, optimizer={"learning_rate": 1e-2}, training__steps=2))
    else:
        _train(online(made, name, algorithm=name, **common))
    return made / name


def _train(recipe: Path) -> None:
    done = cli("reward-model" if recipe.stem == "judge" else "train", recipe)
    assert done.code == 0, done.err


def written(
    path: Path,
    steps: Sequence[Sequence[RolloutRecord]],
    config: dict[str, Any] | None = None,
    terms: Sequence[str] = (),
) -> Path:
    """A run directory that holds these records at steps 1, 2, …, and the names of the algorithm's terms."""
    with Run.open(path, config or {"algorithm": {"name": "grpo"}}) as run:
        run.keep(TERMS, list(terms))
        for step, records in enumerate(steps, 1):
            run.record_rollouts(step, records)
            run.record(step, {"reward": step / 10})
        run.finish()
    return path


def records(run: Path, step: int) -> list[RolloutRecord]:
    """Those of a step."""
    with RunReader(run) as reader:
        return reader.rollouts(step)
