"""The jobs: one for every trainer, and one for everything else that a run carries from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobs_on_sums as sums
from jobs_on_sums import MODEL, recipe, write_rows

STEPS = 6
_HELD_OUT = {"limit": 4}
_MINE = """
def digits(completions, **columns):
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def even(completions, **columns):
    return [float(text[-1:] in "02468") if text else 0.0 for text in completions]
"""


@dataclass(frozen=True)
class Case:
    """A job by its name.  It begins with the model and the data in one folder, and writes its recipe to another."""

    name: str
    make: Callable[..., Path]
    keys: dict[str, Any] = field(default_factory=dict)
    command: str = "train"

    def recipe(self, base: Path, folder: Path) -> Path:
        """Writes the recipe; the files that it names lie in `base`."""
        training = {
            "steps": STEPS,
            "resume_every": 1,
            "keep_state": True,
            "kl_every": 2,
            **self.keys.get("training", {}),
        }
        keys = _placed(self.keys, base) | {"training": training}
        return self.make(base, folder / f"{self.name}.yaml", **keys)


def _placed(value: Any, base: Path) -> Any:
    """`BASE` in a text is the folder of data and models."""
    if isinstance(value, dict):
        return {key: _placed(item, base) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, base) for item in value]
    return value.replace("BASE", str(base)) if isinstance(value, str) else value


def sft(base: Path, path: Path, **keys: Any) -> Path:
    """Demonstrations; the model is made inside the run."""
    held_out = {"data": {"path": str(base / "sums.jsonl"), "start": 80}, **_HELD_OUT}
    common = {"model": MODEL, "algorithm": "sft", "offline": {"path": str(base / "sums.jsonl"), "stop": 80}}
    optimizer = {"learning_rate": 5e-3, "warmup_steps": 2, "schedule": "cosine", "weight_decay": 0.01}
    return recipe(path, **(common | {"eval": held_out, "optimizer": optimizer} | keys))


def dpo(base: Path, path: Path, **keys: Any) -> Path:
    """Preferences, against the start."""
    held_out = {"data": {"path": str(base / "pairs.jsonl"), "start": 80}, **_HELD_OUT}
    common = {"model": str(base / "sft"), "algorithm": "dpo"}
    data = {"offline": {"path": str(base / "pairs.jsonl"), "stop": 80}, "eval": held_out}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 2, "schedule": "linear"}
    return recipe(path, **(common | data | {"optimizer": optimizer} | keys))


def online(base: Path, path: Path, **keys: Any) -> Path:
    """Answers that are rewarded."""
    data = {"online": {"path": str(base / "sums.jsonl"), "stop": 80}, "sampling": {"max_new_tokens": 3}}
    rewards = [f"{base / 'mine.py'}:digits"]  # which vary: where all are equal, hardly anything moves
    common = {"model": str(base / "sft"), "algorithm": "grpo", "rewards": rewards, "group_size": 4}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 2, "schedule": "cosine"}
    return recipe(path, **(common | data | {"optimizer": optimizer} | keys))


def judge(base: Path, path: Path, **keys: Any) -> Path:
    """A reward model."""
    data = {"path": str(base / "pairs.jsonl")}
    common = {"model": MODEL, "algorithm": {"name": "bradley_terry", "centring": 0.01}}
    rows = {"offline": data | {"stop": 80}, "eval": {"data": data | {"start": 80}, **_HELD_OUT}}
    optimizer = {"learning_rate": 5e-3, "warmup_steps": 2, "schedule": "cosine"}
    return recipe(path, **(common | rows | {"optimizer": optimizer} | keys))


_TWO = {"epochs": 2, "minibatches": 2}
_WITH_ROWS = {"offline": {"path": "BASE/unjudged.jsonl", "kind": "rewarded"}, "offline_share": 0.5}
_TWO_REWARDS = ["BASE/mine.py:digits", "BASE/mine.py:even"]

TRAINERS = (
    Case("sft", sft, {"training": {"eval_every": 3}}),
    Case("dpo", dpo, {"training": {"eval_every": 3}}),
    Case("ppo", online, {"algorithm": {"name": "ppo", "kl_target": 0.1}, "training": _TWO}),
    Case("grpo", online, {"algorithm": {"name": "grpo", "beta": 0.04}, "training": _TWO}),
    Case(
        "reward-model",
        judge,
        {"reward_model": {"members": 2, "probe_steps": 2}, "training": {"steps": 4}},
        "reward-model",
    ),
)
"""The five of which most is asked."""

VARIANTS = (
    Case("one-reward-model", judge, {"reward_model": {"label_noise": 0.2}}, "reward-model"),
    Case("trpo", online, {"algorithm": "trpo"}),
    Case("iterative-dpo", dpo, {"training": {"refresh_reference": 2}}),
    Case("online-dpo", online, {"algorithm": "dpo", "training": {"refresh_reference": 2}}),
    Case("ppo-penalty", online, {"algorithm": {"name": "ppo_penalty", "target": 0.001}, "training": _TWO}),
    Case("ppo-shared", online, {"algorithm": "ppo", "critic": {"kind": "shared", "warmup_steps": 2}}),
    Case("ppo-warmup", online, {"algorithm": "ppo", "critic": {"warmup_steps": 3}, "training": _TWO}),
    Case("reinforce", online, {"algorithm": {"name": "reinforce", "kl": 0.05}}),
    Case("kto", dpo, {"algorithm": "kto"}),
    Case("awr-replay", online, {"algorithm": "awr", "replay": {"capacity": 12, "per_step": 6}}),
    Case("mixture-judged", online, _WITH_ROWS),
    Case("resample", online, {"resample": {"rounds": 2}, "rewards": ["BASE/mine.py:even"]}),
    Case("normalised", online, {"rewards": _TWO_REWARDS, "reward_normalise": "each"}),
    Case(
        "stop-disagreement",
        online,
        {
            "rewards": _TWO_REWARDS,
            "training": {"stop": {"by": "disagreement", "patience": 2, "threshold": 0.9}, "steps": 12},
            "optimizer": {"learning_rate": 1e-2},
        },
    ),
    Case(
        "stop-gold",
        online,
        {
            "eval": {"data": {"path": "BASE/sums.jsonl", "start": 80}, **_HELD_OUT, "rewards": ["BASE/mine.py:even"]},
            "training": {"eval_every": 1, "stop": {"by": "gold", "patience": 3}, "steps": 12},
        },
    ),
    Case("lora", online, {"model": {"path": "BASE/sft", "lora": {"rank": 4}}}),
    Case("lora-dpo", dpo, {"model": {"path": "BASE/sft", "lora": {"rank": 4}}, "training": {"refresh_reference": 2}}),
    Case("exports", dpo, {"training": {"save_every": 2}}),
    Case("bfloat16", dpo, {"model": {"path": "BASE/sft", "dtype": "bfloat16"}}),
)
"""What else is carried from step to step."""

CASES = {case.name: case for case in (*TRAINERS, *VARIANTS)}


def prepare(base: Path) -> None:
    """Writes the data, and trains the model with which most jobs begin: in this process, so that those which are forked
    from it have done once what takes long the first time."""
    base.mkdir(parents=True)
    sums.write_data(base)
    rows = ({"prompt": f"{a}+{b}=", "completions": [str(a + b), str(a), str(2 * b + 1)]} for a, b in sums.SUMS[:20])
    write_rows(base / "unjudged.jsonl", rows)
    (base / "mine.py").write_text(_MINE)
    done = sums.cli("train", sft(base, base / "sft.yaml", training={"steps": 30, "resume_every": 1000}))
    assert done.code == 0, done.err
