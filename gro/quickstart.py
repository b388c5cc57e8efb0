"""`gro quickstart`: from nothing to a model that adds, through the same recipes and commands as everything else."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gro.config import check_config
from gro.errors import GroError
from gro.jobs.train import run_training
from gro.runs.files import write_yaml
from gro.runs.reader import RunReader
from gro.runs.terminal import samples_table, sparkline

LARGEST = 99
HELD_OUT = 500
"""Sums that neither stage trains on."""
FORGETFUL = 0.65
"""Share of the demonstrations whose author never carries: 38+47 = 75.  Imitation cannot be better than its teachers;
learning from rewards can."""


def quickstart(directory: Path, seed: int = 0) -> None:
    """Makes a tiny model and a task, warm-starts it by imitation, and trains it online with GRO.

    Raises GroError where the directory holds something already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise GroError(f"{directory} is not empty; remove it, or choose another with --run")
    console = Console()
    begun = time.perf_counter()
    console.print(Text("1. The task: sums of two numbers below 100, checked by exact match", style="bold"))
    _write_data(directory / "data", seed)
    recipes = _recipes(directory, seed)
    for name, recipe in recipes.items():
        write_yaml(directory / f"{name}.yaml", recipe)
    console.print(
        Text(
            "\n2. Supervised start: a tiny model from nothing imitates people, two thirds of whom forget to carry",
            style="bold",
        )
    )
    run_training(check_config(recipes["sft"], "sft.yaml"), console=console)
    console.print(
        Text("\n3. Online: the model answers, answers are rewarded, GRO learns from the groups", style="bold")
    )
    run = run_training(check_config(recipes["gro"], "gro.yaml"), console=console)
    _conclude(console, directory, run, time.perf_counter() - begun)


def _write_data(directory: Path, seed: int) -> None:
    """Every pair of numbers once: held out, or a prompt with a demonstration that may be wrong."""
    rng = random.Random(seed)
    sums = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    rng.shuffle(sums)
    directory.mkdir(parents=True)
    for name, part, forgetful in (("held_out", sums[:HELD_OUT], 0.0), ("train", sums[HELD_OUT:], FORGETFUL)):
        rows = ((a, b, without_carry(a, b) if rng.random() < forgetful else a + b) for a, b in part)
        _write_rows(
            directory / f"{name}.jsonl",
            ({"prompt": f"{a:02}+{b:02}=", "completion": f"{c:03}", "solution": f"{a + b:03}"} for a, b, c in rows),
        )


def without_carry(a: int, b: int) -> int:
    """The sum of two numbers of two digits by someone who forgets to carry.

    >>> without_carry(38, 47)
    75
    """
    return (a // 10 + b // 10) % 10 * 10 + (a + b) % 10


def _write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _recipes(directory: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The two recipes, as they are also written beside the runs."""
    held_out = {"path": f"{directory}/data/held_out.jsonl"}
    shared = {"rewards": [{"reward": "exact_match", "column": "solution"}], "sampling": {"max_new_tokens": 5}}
    sft = {
        "run": f"{directory}/sft",
        "model": {
            "create": {
                "hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2, "vocab_size": 16, "all_bytes": False,
                "max_positions": 64, "seed": seed,
            }
        },
        "algorithm": "sft",
        "offline": {"path": f"{directory}/data/train.jsonl", "kind": "prompt_completion"},
        "prompts_per_step": 128,
        "training": {"steps": 500, "seed": seed, "record_groups": 1},
        "optimizer": {"learning_rate": 2e-3, "schedule": "linear", "warmup_steps": 20},
        "eval": {"data": held_out},
        **shared,
    }  # fmt: skip
    gro = {
        "run": f"{directory}/gro",
        "model": f"{directory}/sft",
        "algorithm": {"name": "gro", "kappa": 1.0},
        "online": {"path": f"{directory}/data/train.jsonl", "kind": "prompt_only"},
        "prompts_per_step": 64,
        "group_size": 8,
        "training": {"steps": 200, "seed": seed, "eval_every": 50},
        "optimizer": {"learning_rate": 2e-4, "schedule": "linear", "warmup_steps": 10},
        "slots": 512,
        "eval": {"data": held_out | {"kind": "prompt_only"}},
        **shared,
    }
    return {"sft": sft, "gro": gro}


def _conclude(console: Console, directory: Path, run: Path, seconds: float) -> None:
    """Before and after, the curve, where everything lies, what to try next."""
    reader = RunReader(run)
    summary, metrics = reader.summary, reader.metrics()
    first, last = (summary[when]["eval_reward"] for when in ("before", "after"))
    steps, rewards = metrics["reward"]
    console.print(Text("\n4. What it learnt", style="bold"))
    console.print(samples_table(summary["samples"]))
    console.print(Text(f"reward while training  {sparkline(list(rewards))}  (steps 1 to {steps[-1]})"))
    console.print(
        Text(f"held-out sums solved: {first:.1%} before, {last:.1%} after GRO ({seconds:.0f} s in all)", style="bold")
    )
    for line in (
        f"run       {directory}/gro   (report.html, model/, run.db)",
        f"recipes   {directory}/sft.yaml, {directory}/gro.yaml",
        "",
        "Next:",
        f"  gro generate {directory}/gro --prompt '38+47=' --temperature 0",
        f"  gro train {directory}/gro.yaml run=runs/mine algorithm.kappa=10     separate more sharply",
        f"  gro train {directory}/gro.yaml run=runs/grpo 'algorithm={{name: grpo, beta: 0}}'   another algorithm",
        f"  gro inspect {directory}/gro     the run, token by token",
        f"  gro compare {directory}     its runs beside each other",
        "  gro algorithms                     what there is, and what each computes",
        "  recipes/ and docs/guide.md         your own model, data and reward",
    ):
        console.print(Text(line), soft_wrap=True)
