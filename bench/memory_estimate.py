"""The memory estimate of `gro check` against the peak of a real run, on a CPU.

    python bench/memory_estimate.py ppo WORK [key=value ...]

Prints one line: what the process took beyond what it had before the run, and what was estimated.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from typing import Any

from gro.assemble import load_data, start_of
from gro.config import load_config
from gro.jobs.train import run_training
from gro.preflight import needs
from gro.preflight.machine import resident
from gro.runs.plain import dump_yaml

SHAPE = {"hidden_size": 512, "layers": 6, "heads": 8, "kv_heads": 4, "vocab_size": 4000, "max_positions": 1024}
REWARD = "def length(completions, **columns):\n    return [float(len(c) % 7) for c in completions]\n"


WORDS = ("alpha", "beta", "gamma", "delta", "one", "two", "three", "four", "five", "six", "seven")


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_rows(folder: Path) -> None:
    """Prompts of 40 words; pairs of 60, demonstrations of 120."""
    rng = random.Random(0)
    pairs = [{"prompt": text(rng, 40), "chosen": text(rng, 60), "rejected": text(rng, 60)} for _ in range(64)]
    shown = [{"prompt": text(rng, 40), "completion": text(rng, 120)} for _ in range(64)]
    for name, rows in (("pairs", pairs), ("shown", shown)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)


def recipe(algorithm: str, folder: Path) -> dict[str, Any]:
    common = {"run": str(folder / f"run-{algorithm}"), "model": {"create": SHAPE}, "algorithm": algorithm}
    common |= {"prompts_per_step": 16, "training": {"steps": 2, "tokens_per_micro": 2048}}
    if algorithm in ("dpo", "bradley_terry"):
        return common | {"offline": {"path": str(folder / "pairs.jsonl")}}
    if algorithm == "sft":
        return common | {"offline": {"path": str(folder / "shown.jsonl")}}
    more = {"online": {"path": str(folder / "shown.jsonl")}, "rewards": [f"{folder}/reward.py:length"]}
    return common | more | {"group_size": 4, "sampling": {"max_new_tokens": 96}}


def main(algorithm: str, folder: Path, overrides: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder)
    path = folder / f"{algorithm}.yaml"
    path.write_text(dump_yaml(recipe(algorithm, folder)))
    config = load_config(path, overrides)
    start = start_of(config)
    estimated = needs(config, start, load_data(config, start)).memory.peak
    before = resident()
    assert before is not None, "measured on Linux only"
    run_training(config)
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    mib = 2**20
    print(f"{algorithm}: measured {measured / mib:.0f} MiB, estimated {estimated / mib:.0f} MiB, "
          f"ratio {measured / estimated:.2f}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
