"""Recipes: everything that is wrong is said at once, by key, at once; everything that is right means what it says."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gro.assemble import build_algorithm
from gro.config import Config, ConfigError, check_config, load_config
from gro.contradictions import advice
from gro.errors import GroError
from gro.recipe import all_keys
from gro.runs.plain import load_yaml

GRO = Path(sys.executable).with_name("gro")


@pytest.fixture(autouse=True, scope="module")
def _somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A directory with two data files, a reward and an algorithm; recipes name them relative to it."""
    folder, before = tmp_path_factory.mktemp("config"), Path.cwd()
    (folder / "a.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    (folder / "b.jsonl").write_text('{"prompt": "1+2=", "completion": "3"}\n')
    (folder / "mine.py").write_text(
        "def short(completions, *, most=100, **columns):\n    return [float(len(c) < most) for c in completions]\n"
        "def plain(completions, solution):\n    return [0.0 for c in completions]\n"
        "made_otherwise = short\n"
    )
    (folder / "algo.py").write_text(
        "import torch\nfrom gro.algorithms import build\n"
        "from gro.objective import Algorithm, Term\n"
        "from gro.objective.credit import Labels, Versus\n"
        "from gro.objective.shares import per_pair\n"
        "from gro.objective.units import total\n"
        "def versus():\n"
        "    term = Term(unit=total, share=per_pair, rows='versus')\n"
        "    return Algorithm('versus', Versus(), (term,))\n"
        "def both():\n"
        "    return Algorithm('both', Labels(), (Term(share=per_pair, rows='paired'), Term()))\n"
        "def shy(beta: float = 0.5):\n    return build('dpo', beta=beta / 2)\n"
        "needy = lambda: shy()\n"
        "def near(delta: float = 0.01):\n"
        "    from dataclasses import replace\n    from gro.objective.estimator import TrustRegion\n"
        "    return replace(build('grpo', beta=0.0), step=TrustRegion(delta))\n"
    )
    (folder / "broken.py").write_text("def f(:\n")
    os.chdir(folder)
    yield
    os.chdir(before)


ONLINE: dict[str, Any] = {
    "run": "runs/x",
    "model": "some/model",
    "algorithm": {"name": "grpo", "beta": 0.1},
    "online": {"path": "a.jsonl"},
    "prompts_per_step": 4,
    "training": {"steps": 3},
    "rewards": ["exact_match"],
}
OFFLINE: dict[str, Any] = {
    "run": "runs/x",
    "model": {"create": {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 300}},
    "algorithm": "sft",
    "offline": {"path": "a.jsonl"},
    "prompts_per_step": 4,
    "training": {"steps": 3},
}
JUDGE: dict[str, Any] = OFFLINE | {"algorithm": {"name": "bradley_terry"}}
MIXED: dict[str, Any] = ONLINE | {"algorithm": "gro", "offline": {"path": "b.jsonl"}, "offline_share": 0.25}
FULL: dict[str, Any] = MIXED | {
    "offline": [{"data": {"path": ["a.jsonl", "b.jsonl"], "columns": {"prompt": "question"}}, "weight": 2}],
    "online": {"path": "a.jsonl", "kind": "prompt_only", "start": 1, "stop": 5, "max_length": 99, "overlong": "skip"},
    "model": {"path": "some/model", "dtype": "bfloat16", "device": "cuda:1", "activation_checkpointing": True},
    "algorithm": {"name": "gro", "kappa": 2, "credit": "zscore"},
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2, "beta1": 0},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 12, "stop": ["<|im_end|>"]},
    "rewards": [{"reward": "mine.py:short", "weight": -0.5, "most": 10}, "maths"],
    "reward_time_limit": 2,
    "eval": {"data": {"path": "b.jsonl"}, "limit": 3, "rewards": ["exact_match"]},
    "slots": 7,
}
GOOD = {"online": ONLINE, "offline": OFFLINE, "judge": JUDGE, "mixed": MIXED, "full": FULL}


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted keys set, or removed where they are `...`."""
    recipe = copy.deepcopy(recipe)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = recipe
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return recipe


def problems(recipe: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    """What is wrong with a recipe after these changes; a double underscore stands for a dot."""
    with pytest.raises(ConfigError) as error:
        check_config(changed(recipe, {key.replace("__", "."): value for key, value in changes.items()}), "r.yaml")
    return error.value.problems


# --- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", GOOD.values(), ids=GOOD)
def test_a_resolved_recipe_means_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    config = check_config(recipe, "r.yaml")
    resolved = config.resolved()
    assert check_config(resolved, "resolved") == config
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(resolved))
    assert load_config(tmp_path) == config, "a run directory stands for its recipe"
    assert load_config(tmp_path).resolved() == resolved


def test_short_forms_are_written_out() -> None:
    config = check_config(MIXED, "r.yaml")
    assert config.model.path == "some/model"
    assert config.algorithm == {"name": "gro"}
    by_file = check_config(OFFLINE | {"algorithm": {"file": "algo.py:shy", "beta": 0.2}}, "r")
    assert by_file.algorithm == {"name": "algo.py:shy", "beta": 0.2}
    assert [(w.data.path, w.weight) for w in config.offline] == [("b.jsonl", 1.0)]
    assert check_config(MIXED | {"rewards": "maths"}, "r").rewards == ("maths",)
    assert check_config(MIXED | {"rewards": {"reward": "maths", "weight": 2}}, "r").rewards == (
        {"reward": "maths", "weight": 2},
    )
    weighted = {"data": {"path": "b.jsonl"}, "weight": 3}
    assert check_config(MIXED | {"offline": weighted}, "r").offline[0].weight == 3
    assert config.files == {"offline.0.data.path": "b.jsonl", "online.path": "a.jsonl"}


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(OFFLINE) + "optimizer: {learning_rate: 3e-4, eps: 1E-9}\n")
    assert load_config(recipe).optimizer.learning_rate == 3e-4
    assert load_config(recipe).optimizer.eps == 1e-9


ALSO_RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pairs from many answers": (ONLINE, {"algorithm": "dpo", "resample": {"by": "exact_match"}}),
    "demonstrations beside answers": (ONLINE, {"algorithm": "hpt", "online.kind": "prompt_completion"}),
    "no rewards": (ONLINE, {"algorithm": "algo.py:versus", "group_size": 1, "rewards": ...}),
    "thresholds that rise": (ONLINE, {"algorithm": {"name": "rest", "thresholds": [0, 0.5]}, "training.epochs": 3}),
    "an exponential value replayed": (
        ONLINE, {"algorithm": {"name": "awr", "baseline": "group"}, "replay": {"capacity": 4, "per_step": 4}},
    ),
    "resampling beside a KL term": (ONLINE, {"resample": {"rounds": 2}}),
    "a reward model of several": (JUDGE, {"reward_model": {"members": 3}, "eval": {"data": {"path": "b.jsonl"}}}),
    "a reference that follows": (OFFLINE, {"algorithm": "dpo", "training.refresh_reference": 5}),
    "rows to be judged": (OFFLINE, {"algorithm": "dpo", "offline.kind": "rewarded", "rewards": ["exact_match"]}),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "changes"), ALSO_RIGHT.values(), ids=ALSO_RIGHT)
def test_what_goes_together(recipe: dict[str, Any], changes: dict[str, Any]) -> None:
    check_config(changed(recipe, changes), "r.yaml")


def test_what_was_hardly_meant_is_pointed_out() -> None:
    def notes(**changes: Any) -> list[str]:
        config = check_config(changed(ONLINE, {k.replace("__", "."): v for k, v in changes.items()}), "r.yaml")
        return list(advice(config, build_algorithm(config)))

    assert notes() == []
    (two,) = notes(group_size=2)
    assert two.startswith("group_size: of 2 rewards that differ, the z-scores are the same two numbers")
    assert notes(group_size=2, algorithm="dr_grpo") == []
    (alone,) = notes(group_size=1, algorithm="kto")
    assert alone.startswith("group_size: kto takes an answer alone for good or bad by the sign of its reward")
    assert notes(group_size=2, algorithm="kto") == []
    ppo = {"name": "ppo", "max_kl": 0.02}
    assert notes(algorithm=ppo, training__epochs=2) == []
    (early,) = notes(algorithm=ppo)
    assert "above a KL of 0.02, but training.epochs × training.minibatches is one update" in early


# --- what is wrong ----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # unknown keys
    (ONLINE, {"trainin": {}}, "trainin: unknown key, did you mean 'training'?"),
    (ONLINE, {"training.step": 3}, "training.step: unknown key, did you mean 'steps'?"),
    (ONLINE, {"online.pth": "x"}, "online.pth: unknown key, did you mean 'path'?"),
    (OFFLINE, {"offline.pth": "x"}, "offline.pth: unknown key, did you mean 'path'?"),
    (FULL, {"eval.data.strat": 1}, "eval.data.strat: unknown key, did you mean 'start'?"),
    (OFFLINE, {"model.create.hiden": 1}, "model.create.hiden: unknown key, did you mean 'hidden_size'?"),
    (ONLINE, {"learning_rate": 1e-3}, "learning_rate: unknown key; there is optimizer.learning_rate"),
    (ONLINE, {"training.learning_rate": 1e-3}, "training.learning_rate: unknown key; there is optimizer.learning_rate"),
    (ONLINE, {"num_generations": 4}, "num_generations: unknown key; here it is group_size"),
    (ONLINE, {"max_completion_length": 4}, "unknown key; here it is sampling.max_new_tokens"),
    # missing
    (ONLINE, {"run": ...}, "run: missing; it has no default"),
    (ONLINE, {"training": ...}, "training: missing; it has no default"),
    (ONLINE, {"training.steps": ...}, "training.steps: missing; it has no default"),
    (ONLINE, {"online.path": ...}, "online.path: missing; it has no default"),
    (OFFLINE, {"offline.path": ...}, "offline.path: missing; it has no default"),
    # types
    (ONLINE, {"training.steps": "ten"}, 'training.steps: found "ten"; expected a whole number'),
    (ONLINE, {"training.steps": 2.5}, "training.steps: found 2.5; expected a whole number"),
    (ONLINE, {"training.steps": True}, "training.steps: found true; expected a whole number"),
    (ONLINE, {"training.steps": None}, "training.steps: found null; expected a whole number"),
    (ONLINE, {"training": 3}, "training: found 3; expected keys and values (steps, epochs"),
    (ONLINE, {"training": [3]}, "training: found [3]; expected keys and values"),
    (ONLINE, {"sampling.temperature": "1"}, 'sampling.temperature: found "1"; expected a number'),
    (ONLINE, {"sampling.temperature": True}, "sampling.temperature: found true; expected a number"),
    (ONLINE, {"sampling.stop": "x"}, 'sampling.stop: found "x"; expected a list'),
    (ONLINE, {"online.path": 5}, "online.path: found 5; expected text or a list"),
    (ONLINE, {"online.path": ["a.jsonl", 5]}, "online.path.1: found 5; expected text"),
    (ONLINE, {"online": "a.jsonl"}, 'online: found "a.jsonl"; expected keys and values (path, kind'),
    (ONLINE, {"online.columns": ["prompt"]}, "online.columns: found"),
    (ONLINE, {"online.columns": {"prompt": 3}}, "online.columns.prompt: found 3; expected text"),
    (ONLINE, {"rewards": 5}, "rewards: found 5; expected a list"),
    (ONLINE, {"algorithm": 5}, "algorithm: found 5; expected keys and values"),
    (ONLINE, {"run": ""}, 'run: found ""; expected some text'),
    # YAML's yes and no
    (ONLINE, {"run": False}, "run: found false; expected text. YAML reads yes, no, on and off as true and false"),
    (ONLINE, {"online.kind": False}, "online.kind: found false; expected"),
    (ONLINE, {"sampling.stop": [True]}, "sampling.stop.0: found true; expected text. YAML reads yes"),
    (ONLINE, {"model": {"path": "m", "allow_pickle": "no"}}, 'found "no"; expected true or false, without quotes'),
    (ONLINE, {"run": 5}, "run: found 5; expected text: put it in quotes"),
    # ranges
    (ONLINE, {"training.steps": 0}, "training.steps: found 0; expected at least 1"),
    (ONLINE, {"group_size": -2}, "group_size: found -2; expected at least 1"),
    (ONLINE, {"sampling.top_p": 1.5}, "sampling.top_p: found 1.5; expected at most 1"),
    (ONLINE, {"sampling.temperature": 0}, "sampling.temperature: found 0; expected a number above 0"),
    (ONLINE, {"optimizer.beta1": 1}, "optimizer.beta1: found 1; expected a number below 1"),
    (ONLINE, {"optimizer.learning_rate": -1e-3}, "optimizer.learning_rate: found -0.001; expected a number above 0"),
    (ONLINE, {"optimizer.learning_rate": math.nan}, "optimizer.learning_rate: found nan; expected a finite number"),
    (ONLINE, {"optimizer.learning_rate": math.inf}, "optimizer.learning_rate: found inf; expected a finite number"),
    (ONLINE, {"algorithm.beta": math.nan}, "algorithm.beta: found nan; expected a finite number"),
    (ONLINE, {"training.steps": 10**30}, "training.steps: found a whole number beyond ±2⁵³"),
    (ONLINE, {"training.steps": 10**5000}, "training.steps: found a whole number beyond ±2⁵³"),
    (ONLINE, {"offline_share": 1.5}, "offline_share: found 1.5; expected at most 1"),
    (ONLINE, {"online.start": -1}, "online: rows from start=-1"),
    (ONLINE, {"online.start": 5, "online.stop": 5}, "online: rows from start=5 up to stop=5 are none"),
    (ONLINE, {"online.kind": "promt_only"}, "did you mean 'prompt_only'?"),
    (ONLINE, {"optimizer.schedule": "cosin"}, "did you mean 'cosine'?"),
    (ONLINE, {"model": {"path": "m", "dtype": "fp32"}}, "model.dtype: found \"fp32\"; expected 'float32', 'bfloat16'"),
    (ONLINE, {"model": {"path": "m", "device": "gpu"}}, 'model.device: found "gpu"; expected auto, cpu'),
    (OFFLINE, {"model.create.architecture": "bert"}, "model.create: architecture 'bert' is not one of llama"),
    (OFFLINE, {"model.create.vocab_size": 100}, "model.create.vocab_size: found 100; expected at least 259"),
    (OFFLINE, {"model.create.heads": 3}, "model.create: hidden_size 32 is not a multiple of heads 3"),
    # algorithms
    (ONLINE, {"algorithm": "grpoo"}, "algorithm: unknown algorithm 'grpoo', did you mean 'grpo'?"),
    (ONLINE, {"algorithm": "GRPO"}, "algorithm: unknown algorithm 'GRPO', did you mean 'grpo'?"),
    (ONLINE, {"algorithm": {"beta": 1}}, "algorithm: give its name"),
    (ONLINE, {"algorithm.betta": 1}, "algorithm.betta: grpo has no such parameter, did you mean 'beta'?"),
    (ONLINE, {"algorithm.beta": "x"}, "algorithm.beta: 'x' is no finite number ≥ 0 (default 0.04)"),
    (ONLINE, {"algorithm.clip": -1}, "algorithm.clip: -1 is no finite number ≥ 0 and ≤ 1 (default 0.2)"),
    (ONLINE, {"algorithm.clip_high": "x"}, "algorithm.clip_high: 'x' is no finite number ≥ 0 or null"),
    (
        OFFLINE,
        {"algorithm": {"name": "dpo", "label_smoothing": 0.5}},
        "label_smoothing: 0.5 is no finite number ≥ 0 and",
    ),
    (ONLINE, {"algorithm.kl": "k4"}, "algorithm.kl: 'k4' is no 'k3', 'k2' or 'rk3'"),
    (OFFLINE, {"algorithm": {"file": "algo.py:sly"}}, "'algo.py' defines no function 'sly', did you mean 'shy'?"),
    (OFFLINE, {"algorithm": {"file": "algo.py"}}, "algorithm: 'algo.py' is a file; name the function in it too"),
    (OFFLINE, {"algorithm": {"file": 3}}, "algorithm: give its name"),
    (OFFLINE, {"algorithm": {"name": "dpo", "file": "algo.py:shy"}}, "algorithm: give its name or its file, not both"),
    (OFFLINE, {"algorithm": {"file": "algo.py:shy", "betta": 1}}, "algorithm.betta: algo.py:shy has no such parameter"),
    (ONLINE, {"algorithm.ptx": -1}, "algorithm.ptx: -1 is no finite number ≥ 0 (default 0.0)"),
    (OFFLINE, {"algorithm": {"name": "sft", "ptx": 1.0}}, "algorithm sft: ptx adds the likelihood of demonstrations"),
    (OFFLINE, {"algorithm": "algo.py:sly"}, "'algo.py' defines no function 'sly', did you mean 'shy'?"),
    (OFFLINE, {"algorithm": "alg.py:shy"}, "no file 'alg.py', did you mean 'algo.py'?"),
    (OFFLINE, {"algorithm": "broken.py:f"}, "'broken.py' is not valid Python, line 1"),
    (OFFLINE, {"algorithm": {"name": "algo.py:shy", "betta": 1}}, "algorithm.betta: algo.py:shy has no such parameter"),
    (OFFLINE, {"algorithm": {"name": "algo.py:shy", "beta": -1}}, "beta: -0.5 is no finite number > 0"),
    # rewards
    (ONLINE, {"rewards": ["math"]}, "rewards.0: unknown reward 'math', did you mean 'maths'?"),
    (ONLINE, {"rewards": ["maths", "x.py:f"]}, "rewards.1: no file 'x.py'"),
    (ONLINE, {"rewards": ["mine.py:shrt"]}, "'mine.py' defines no function 'shrt', did you mean 'short'?"),
    (ONLINE, {"rewards": ["broken.py:f"]}, "rewards.0: 'broken.py' is not valid Python, line 1"),
    (ONLINE, {"rewards": [{"rewrd": "maths"}]}, "rewards.0: an item of rewards has no key 'reward'"),
    (ONLINE, {"rewards": [{"reward": "maths", "weight": "2"}]}, "rewards.0: weight of reward 'maths' must be"),
    (ONLINE, {"rewards": [{"reward": "maths", "wieght": 2}]}, "rewards.0.wieght: maths has no such parameter, did you"),
    (ONLINE, {"rewards": [{"reward": "mine.py:short", "mst": 2}]}, "no such parameter, did you mean 'most'?"),
    (ONLINE, {"rewards": [3]}, "rewards.0: an item of rewards is a name or a mapping"),
    (FULL, {"eval.rewards": ["math"]}, "eval.rewards.0: unknown reward 'math'"),
    # files
    (ONLINE, {"online.path": "c.jsonl"}, "online.path: 'c.jsonl' does not exist (seen from "),
    (OFFLINE, {"offline.path": ["a.jsonl", "c.jsonl"]}, "offline.path.1: 'c.jsonl' does not exist"),
    (ONLINE, {"online.path": "a" * 500}, "does not exist (seen from "),
    (ONLINE, {"rewards": ["~nobody-at-all/x.py:f"]}, "rewards.0: no file '~nobody-at-all/x.py'"),
    (ONLINE, {"run": "a\ud800"}, "run: found half a surrogate pair, a\\ud800; expected text that UTF-8 can hold"),
    (ONLINE, {"online.path": "."}, "online.path: '.' is a directory, expected a file"),
    (ONLINE, {"online.chat_template": "x.jinja"}, "online.chat_template: 'x.jinja' does not exist"),
    # contradictions
    (ONLINE, {"group_size": 1}, "group_size: 1, but grpo compares a prompt's completions: at least 2"),
    (
        ONLINE,
        {"algorithm": {"name": "reinforce", "kl": 0.0}, "training.epochs": 2, "training.minibatches": 2},
        "training: 2 epochs × 2 minibatches are 4 updates on one batch, but reinforce as given has no ratio",
    ),
    (
        ONLINE,
        {"algorithm": "algo.py:near", "training.epochs": 3},
        "training: 3 epochs × 1 minibatches are 3 updates on one batch, but grpo takes one step per batch",
    ),
    (ONLINE, {"training.minibatches": 5}, "training.minibatches: 5 of 4 groups; a group is never split"),
    (ONLINE, {"critic.kind": "shared"}, "critic: given, but grpo reads no values"),
    (ONLINE, {"algorithm": "a_lol"}, "critic.warmup_steps: 0, but a_lol fits its critic before the policy moves"),
    (ONLINE, {"algorithm": "ppo", "critic.warmup_steps": 10**6}, "critic.warmup_steps: 1000000 of training.steps: "),
    (
        ONLINE,
        {"algorithm": "ppo", "critic.kind": "shared", "critic.path": "somewhere"},
        "critic.path: given, but with critic.kind: shared the critic has no model of its own",
    ),
    (
        ONLINE,
        {"algorithm": "trpo", "critic.kind": "shared"},
        "critic.kind: shared, but trpo moves the policy without the critic (a trust region is for the policy alone)",
    ),
    (
        ONLINE,
        {"algorithm": "a_lol", "critic.kind": "shared", "critic.warmup_steps": 1},
        "critic.kind: shared, but a_lol moves the policy without the critic (its critic stays as it is): own",
    ),
    (ONLINE, {"offline_share": 0.5}, "offline_share: 0.5 given, but it belongs to recipes with both"),
    (MIXED, {"offline_share": ...}, "offline_share: needed where both offline and online are given"),
    (ONLINE, {"online": ...}, "offline, online: give at least one; there is nothing to learn from"),
    (ONLINE, {"rewards": ...}, "rewards: none given, but the answers to online prompts must be rewarded"),
    (OFFLINE, {"rewards": ["maths"]}, "rewards: given, but there are neither online prompts nor an eval section"),
    (ONLINE, {"algorithm": "sft"}, "offline: none given, but sft learns from demonstrations only"),
    (MIXED, {"algorithm": "sft"}, "online: given, but sft learns from demonstrations only"),
    (ONLINE, {"algorithm": "dpo", "group_size": 1}, "group_size: 1, but dpo learns from the best and the worst of a"),
    (ONLINE, {"algorithm": "algo.py:both"}, "group_size: 8, but both learns from samples both alone and in pairs: 2"),
    (
        ONLINE,
        {"algorithm": "algo.py:versus", "rewards": ...},
        "group_size: 8, but versus compares a demonstration with one answer to its prompt: 1",
    ),
    (
        ONLINE,
        {"algorithm": "algo.py:versus", "group_size": 1},
        "rewards: given, but versus reads none, and there is no eval section with answers to reward",
    ),
    (
        ONLINE,
        {"algorithm": "hpt", "online.kind": "prompt_only"},
        "online.kind: prompt_only, but hpt needs a demonstration with every prompt: prompt_completion",
    ),
    (OFFLINE, {"algorithm": "remax"}, "online: none given, but remax subtracts the reward of a prompt's greedy answer"),
    (
        OFFLINE,
        {"algorithm": "hpt"},
        "online: none given, but hpt compares demonstrations with the policy's own answers",
    ),
    (
        ONLINE,
        {"algorithm": "rest", "training.epochs": 2},
        "training.epochs: 2, but rest has 3 thresholds (0.5, 0.7, 0.9), one for each pass: the later ones would never",
    ),
    (
        ONLINE,
        {"training.refresh_reference": 10, "algorithm.beta": 0},
        "training.refresh_reference: 10, but grpo as given does not read the reference",
    ),
    (
        ONLINE,
        {"algorithm": "remax", "reward_normalise": "each"},
        "reward_normalise: each compares the answers to a prompt, and remax subtracts the reward of a greedy one",
    ),
    (ONLINE, {"resample": {"round": 3}}, "resample.round: unknown key, did you mean 'rounds'?"),
    (OFFLINE, {"resample": {}}, "resample: given, but there are no online prompts"),
    (OFFLINE, {"replay": {"capacity": 9}}, "replay: given, but there are no online prompts"),
    (
        ONLINE,
        {"resample": {}, "algorithm": {"name": "awr", "baseline": "group"}},
        "resample: given, but awr has the value exp(A/β), which is 1 where all rewards are equal",
    ),
    (
        ONLINE,
        {"resample": {}, "algorithm": "reinforce"},
        "resample: given, but the credit of reinforce, R − mean of earlier steps, does not compare a prompt's answers",
    ),
    (ONLINE, {"resample": {}, "algorithm": "best_of_n"}, "resample: given, but the credit of best_of_n, R, does not"),
    (ONLINE, {"resample": {}, "algorithm": "hpt"}, "resample: given, but hpt learns from the demonstration where all"),
    (ONLINE, {"replay": {"capacity": 3}}, "replay.capacity: 3, but every step adds 4 groups (prompts_per_step)"),
    (ONLINE, {"replay": {"capacity": 9, "per_step": 10}}, "replay.per_step: 10, but only 9 groups are kept"),
    (ONLINE, {"replay": {}}, "replay.capacity: missing; it has no default"),
    (
        ONLINE,
        {"replay": {"capacity": 9}, "algorithm": {"name": "reinforce", "kl": 0.0}},
        "replay: given, but reinforce as given has no ratio to an old policy and is right only for answers of the",
    ),
    *(
        (ONLINE, {"algorithm": name, "rewards": ...}, f"online: given, but {name} trains a reward model, which answers")
        for name in ("bradley_terry", "plackett_luce", "all_pairs")
    ),
    (
        JUDGE,
        {"replay": {"capacity": 9}},
        "replay: given, but bradley_terry trains a reward model: there are no answers",
    ),
    (JUDGE, {"resample": {}}, "resample: given, but bradley_terry trains a reward model: there are no answers"),
    (
        JUDGE,
        {"rewards": ["maths"], "offline.kind": "rewarded"},
        "rewards: given, but bradley_terry trains a reward model, from the preferences and ratings of the data",
    ),
    (JUDGE, {"critic": {}}, "critic: given, but bradley_terry reads no values"),
    (
        JUDGE,
        {"training.refresh_reference": 2},
        "training.refresh_reference: 2, but bradley_terry trains a reward model",
    ),
    (
        JUDGE,
        {"eval": {"data": {"path": "b.jsonl"}, "rewards": ["maths"]}},
        "eval.rewards: given, but a reward model is measured by the preferences and ratings of eval.data",
    ),
    (JUDGE, {"eval": {"data": {"path": "b.jsonl"}, "samples": 4}}, "eval.samples: given, but a reward model is"),
    (JUDGE, {"algorithm.ptx": 0.5}, "algorithm bradley_terry: ptx adds the likelihood of demonstrations, and a reward"),
    (OFFLINE, {"reward_model.members": 3}, "reward_model: given, but sft trains a policy"),
    (ONLINE, {"training.eval_every": 5}, "training.eval_every: 5, but there is no eval section"),
    (ONLINE, {"model": {"dtype": "float32"}}, "model: give either path or create"),
    (OFFLINE, {"model.path": "m"}, "model: give either path or create, not both"),
    (OFFLINE, {"model.create.architecture": "gpt2"}, "model.create.kv_heads: 1 of 2 heads, but gpt2 has no grouped"),
    # what no recipe can hold
    (ONLINE, {"sampling": {1: 2}}, "sampling.1: found the key 1, a int; keys are text"),
    (ONLINE, {"run": load_yaml("2024-01-01")}, "run: found a date, 2024-01-01; put it in quotes"),
    (ONLINE, {"run": b"x"}, "run: found a bytes"),
]


@pytest.mark.fault("C1", "C2")
@pytest.mark.parametrize(
    ("recipe", "changes", "expected"), WRONG, ids=lambda v: str(v)[:60] if isinstance(v, str) else ""
)
def test_what_is_wrong_is_named(recipe: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(changed(recipe, changes), "r.yaml")
    assert any(expected in problem for problem in error.value.problems), error.value
    assert len(error.value.problems) == 1, f"one mistake, one problem: {error.value}"


@pytest.mark.fault("C1")
def test_everything_is_said_at_once() -> None:
    found = problems(
        ONLINE,
        trainin=1, run=..., group_size=0, optimizer__learning_rate=-1.0, algorithm__betta=3, algorithm__clip="x",
        rewards=["math", "x.py:f"], online__kind="pairs", sampling__top_k=1.5,
    )  # fmt: skip
    keys = [line.split(":")[0] for line in found]
    assert sorted(keys) == sorted(
        ["trainin", "run", "group_size", "optimizer.learning_rate", "algorithm.betta", "algorithm.clip", "rewards.0",
         "rewards.1", "online.kind", "sampling.top_k"]
    )  # fmt: skip


@pytest.mark.fault("C2")
def test_contradictions_are_said_together() -> None:
    keys = [line.split(":")[0] for line in problems(ONLINE, group_size=1, training__minibatches=9, offline_share=0.5)]
    assert sorted(keys) == ["group_size", "offline_share", "training.minibatches"]


@pytest.mark.fault("C1")
def test_endless_recipes_are_refused_at_once() -> None:
    layers = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12)
    )
    begun = time.process_time()
    for text in (layers, "a: &a [*a]", "a: &a {b: *a}", "a: " + "[" * 90 + "]" * 90):
        raw = load_yaml(text)
        with pytest.raises(ConfigError, match="too large or nested too deeply"):
            check_config(ONLINE | raw, "r.yaml")
    assert time.process_time() - begun < 2


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "holds nothing; expected keys and values"),
        (b"# only a comment\n", "holds nothing"),
        (b"- a\n- b\n", "holds list"),
        (b"just text", "holds str 'just text'"),
        (b"a: [1, 2", "is not valid YAML"),
        (b"a: b: c", "is not valid YAML"),
        (b"\ta: 1", "is not valid YAML"),
        (b"run: \xff\xfe", "is not UTF-8 text"),
        (b"run: a\nmodel: b\nrun: c\n", "line 3"),
        (b"training:\n  steps: 1\n  steps: 2\n", "'steps'"),
        (b"a: !!python/object/apply:os.system ['echo hacked']", "is not valid YAML"),
        (b"training: {steps: " + b"9" * 5000 + b"}", "line 1"),
        (b"a: 1\nrun: 2024-13-45\n", 'month must be in 1..12\n  in "<unicode string>", line 2'),
        (b"a: 1\nrun: !!timestamp x\n", "line 2"),
        (b"a: 1\nrun: \0\n", "r.yaml, line 2: found the character U+0000"),
        (b"a: " + b"[" * 100_000, "is not valid YAML"),
        (b"? [a, b]\n: c\n", "r.yaml"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_files_that_are_no_recipes(text: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(GroError, match=r"r\.yaml") as error:
        load_config(tmp_path / "r.yaml")
    assert expected in str(error.value)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(OFFLINE).encode())
    assert load_config(tmp_path / "r.yaml") == check_config(OFFLINE, "r")


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = yaml.safe_dump(OFFLINE | {"training": None}).replace(
        "training: null", "training: {<<: {steps: 5, seed: 1}, seed: 2}"
    )
    (tmp_path / "r.yaml").write_text(text)
    assert load_config(tmp_path / "r.yaml").training.seed == 2


def test_a_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("")
    with pytest.raises(GroError, match=r"does not exist, did you mean 'first.yaml'\?"):
        load_config(tmp_path / "frst.yaml")
    with pytest.raises(GroError, match=r"is a directory without config\.yaml"):
        load_config(tmp_path)


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(FULL))
    return tmp_path / "r.yaml"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MIXED))
    return tmp_path / "r.yaml"


def _at(config: Config, key: str) -> Any:
    value: Any = config.resolved()
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.steps=7", "training.steps", 7),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("sampling.stop=[a, 'b, c']", "sampling.stop", ["a", "b, c"]),
        ("sampling.stop=[]", "sampling.stop", []),
        ("offline.0.weight=5", "offline.0.weight", 5.0),
        ("offline.0.data.path=b.jsonl", "offline.0.data.path", "b.jsonl"),
        ("offline.0.data.path.1=a.jsonl", "offline.0.data.path.1", "a.jsonl"),
        ("rewards.0.most=3", "rewards.0.most", 3),
        ("rewards.1.weight=3", "rewards.1", {"reward": "maths", "weight": 3}),
        ("rewards=[maths]", "rewards", ["maths"]),
        ("rewards=maths", "rewards", ["maths"]),
        ("algorithm.kappa=1", "algorithm.kappa", 1),
        ("algorithm={name: grpo, beta: 0}", "algorithm", {"name": "grpo", "beta": 0}),
        ("algorithm=grpo", "algorithm", {"name": "grpo"}),
        ("run=a b/c=d", "run", "a b/c=d"),
        ("run='quoted'", "run", "quoted"),
        ("run=2024-01-01", "run", "2024-01-01"),
        ("run=no", "run", "no"),
        ("run=12", "run", "12"),
        ("model=other/model", "model.path", "other/model"),
        ("model.path=other/model", "model.path", "other/model"),
        ("online.prompt_template=Question: {question}", "online.prompt_template", "Question: {question}"),
        ("online.prompt_template={prompt}", "online.prompt_template", "{prompt}"),
        ('online.prompt_template="a\\n{prompt}"', "online.prompt_template", "a\n{prompt}"),
        ("online.system=[be brief", "online.system", "[be brief"),
        ("online.columns={prompt: question}", "online.columns", {"prompt": "question"}),
        ("online.columns.prompt=question", "online.columns.prompt", "question"),
        ("online.stop=null", "online.stop", None),
        ("eval=null", "eval", None),
        ("--training.steps=7", "training.steps", 7),
    ],
)
def test_overrides(full: Path, override: str, key: str, value: Any) -> None:
    assert _at(load_config(full, [override]), key) == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("algorithm.kappa=2", "algorithm", {"name": "gro", "kappa": 2}),
        ("model.dtype=bfloat16", "model.path", "some/model"),
        ("offline.stop=5", "offline.0.data.stop", 5),
        ("rewards.0.ignore_case=true", "rewards.0", {"reward": "exact_match", "ignore_case": True}),
        ("eval.data.path=a.jsonl", "eval.data.path", "a.jsonl"),
    ],
)
def test_overrides_reach_below_short_forms(short: Path, override: str, key: str, value: Any) -> None:
    assert _at(load_config(short, [override]), key) == value


def test_later_overrides_win_and_keep_what_they_do_not_name(full: Path) -> None:
    config = load_config(full, ["training.steps=5", "training.seed=2", "training.steps=6"])
    assert (config.training.steps, config.training.seed) == (6, 2)
    assert config.optimizer == check_config(FULL, "r").optimizer


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps", "'training.steps': an override is key=value"),
        ("=3", "'=3': an override is key=value"),
        (".steps=3", "'.steps=3': an override is key=value"),
        ("training..steps=3", "an override is key=value"),
        ("training.step=3", "training.step: unknown key, did you mean 'steps'?"),
        ("training.steps.x=3", "training.steps.x: training.steps is 3 in the recipe, which has no keys below it"),
        ("training.steps=", "training.steps: found null; expected a whole number"),
        ("training.steps=many", 'training.steps: found "many"; expected a whole number'),
        ("training.steps=[1", "training.steps: the value '[1' is not valid YAML"),
        ("rewards.5.weight=3", "rewards.5.weight: rewards is a list of 2; name one by its number, from 0"),
        ("rewards.5=3", "rewards.5: rewards is a list of 2; name one by its number, from 0"),
        ("offline.path=a.jsonl", "offline.path: offline is a list of 1; name one by its number, from 0"),
        ("online.prompt_template=null", ""),
    ],
)
def test_wrong_overrides(full: Path, override: str, expected: str) -> None:
    if not expected:
        assert load_config(full, [override]).online == check_config(FULL, "r").online
        return
    with pytest.raises(ConfigError) as error:
        load_config(full, [override])
    assert [p for p in error.value.problems if expected in p], error.value
    assert len(error.value.problems) == 1, error.value


@pytest.mark.fault("C1")
def test_wrong_overrides_and_a_wrong_recipe_are_said_together(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(ONLINE | {"trainin": 3}))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "r.yaml", ["what", "training.steps=no"])
    assert sorted(p.split(":")[0] for p in error.value.problems) == ["'what'", "trainin", "training.steps"]


# --- at the keyboard --------------------------------------------------------------------------------------------------


def gro(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [str(GRO), *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120, check=False
    )


@pytest.mark.fault("C1")
@pytest.mark.parametrize("command", ["train", "check", "eval"])
def test_a_wrong_recipe_at_the_keyboard(command: str, tmp_path: Path) -> None:
    recipe = changed(ONLINE, {"trainin": 3, "algorithm.betta": 1, "group_size": 0})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(recipe))
    done = gro(command, "bad.yaml", "run=other", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    head, *lines = done.stderr.splitlines()
    assert head == "error: bad.yaml: 3 problems"
    assert sorted(lines) == [
        "  algorithm.betta: grpo has no such parameter, did you mean 'beta'?; it has "
        "clip, clip_high, beta, kl, ddof, eps, ptx",
        "  group_size: found 0; expected at least 1",
        "  trainin: unknown key, did you mean 'training'?",
    ]
    assert not (tmp_path / "other").exists(), "nothing is written"


@pytest.mark.fault("C1")
def test_the_answer_comes_without_torch(tmp_path: Path) -> None:
    """Time depends on the machine; what takes it does not.  Without torch it was 0.25 s of processor time."""
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed(ONLINE, {"trainin": 3})))
    code = (
        "import sys, time; from gro.config import load_config; from gro.errors import GroError\n"
        f"try: load_config({str(tmp_path / 'bad.yaml')!r})\n"
        "except GroError as e: print(len(e.problems))\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow') if m in sys.modules])\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, modules, seconds = done.stdout.splitlines()
    assert (count, modules) == ("1", "[]")
    assert float(seconds) < 1.5


def test_a_right_recipe_needs_no_transformers(tmp_path: Path) -> None:
    code = (
        f"import sys; from gro.config import check_config; check_config({ONLINE!r}, 'r')\n"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# --- mutations --------------------------------------------------------------------------------------------------------

KEYS = sorted(set(all_keys()) | {"name", "beta", "kappa", "reward", "most", "0", "1", "", " ", "é", "__class__"})
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=3), st.dates(),
    st.sampled_from([0, -1, 1, 10**400, 2**63, "sft", "a.jsonl", "mine.py:short", "algo.py:shy", "x.py:f", ":", "a:b"]),
    st.sampled_from([{}, [], [[]], {"path": "a.jsonl"}, {"create": {}}, {"name": "dpo"}, {"reward": "maths"}, [None]]),
)  # fmt: skip


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a recipe, leaves and what holds them."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*place, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid recipe with one to four things set, removed, renamed or added."""
    recipe = copy.deepcopy(draw(st.sampled_from(list(GOOD.values()))))
    for _ in range(draw(st.integers(1, 4))):
        places = list(leaves(recipe))
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        owner: Any = recipe
        for part in parents:
            owner = owner[part]
        change = draw(st.sampled_from(["set", "set", "remove", "add", "rename"]))
        if change == "set":
            owner[last] = copy.deepcopy(draw(VALUES))
        elif change == "remove":
            del owner[last]
        elif isinstance(owner, dict):
            owner[draw(st.sampled_from(KEYS))] = owner.pop(last) if change == "rename" else copy.deepcopy(draw(VALUES))
        else:
            owner.append(copy.deepcopy(draw(VALUES)))
    return recipe


def _answered(recipe: dict[str, Any]) -> None:
    """A Config that means what it says, or problems that each name a key of the recipe or one that is missing."""
    config, wrong = _tried(lambda: check_config(recipe, "r.yaml"))
    if config is not None:
        assert check_config(config.resolved(), "resolved") == config
        assert json.loads(json.dumps(config.resolved())) == config.resolved()
        return
    assert wrong
    assert len(set(wrong)) == len(wrong)
    for problem in wrong:
        assert names_a_key(problem), problem
        first = problem.partition(": ")[0].split(".")[0].split(",")[0]
        assert first in {*Config.model_fields, *map(str, recipe)}, problem
        assert "Traceback" not in problem
        assert len(problem) < 700, problem


def _tried(make: Callable[[], Config]) -> tuple[Config | None, tuple[str, ...]]:
    try:
        return make(), ()
    except ConfigError as error:
        return None, error.problems


def names_a_key(problem: str) -> bool:
    """Whether it begins with dotted keys, the first of which a recipe has or this one had, and says something."""
    place, colon, said = problem.partition(": ")
    return bool(colon) and bool(said.strip()) and "\n" not in place


FEW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(mutated())
@example(ONLINE | {"rewards": {"reward": 3}})
@example(ONLINE | {"algorithm": {"name": ["grpo"]}})
@example(ONLINE | {"": [b""]})
def test_mutated_recipes_are_answered(recipe: dict[str, Any]) -> None:
    _answered(recipe)


@pytest.mark.slow
@settings(FEW, max_examples=5000)
@given(mutated())
def test_many_mutated_recipes_are_answered(recipe: dict[str, Any]) -> None:
    _answered(recipe)


@settings(FEW, max_examples=150)
@given(st.lists(st.tuples(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), st.text(max_size=12)), max_size=3))
def test_any_override_is_answered(overrides: Sequence[tuple[list[str], str]]) -> None:
    Path("fuzz.yaml").write_text(yaml.safe_dump(FULL))
    texts = [f"{'.'.join(key)}={text}" for key, text in overrides]
    _, wrong = _tried(lambda: load_config("fuzz.yaml", texts))
    assert all(map(names_a_key, wrong)), wrong
