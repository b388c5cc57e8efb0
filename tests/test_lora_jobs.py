"""Whole jobs that train an adapter, from a recipe."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gro.assemble import load_data, start_of
from gro.assemble.identity import identity_of
from gro.config import ConfigError, load_config
from gro.data.files import file_sha256
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel
from gro.policy.spec import LoraSettings
from gro.runs import RunReader
from gro.training.learner import PolicyLearner
from jobs_on_sums import cli, dpo, online, recipe, sft, write_data
from torture.compare import differences

LORA = {"rank": 2, "alpha": 8.0}
FAST = {"learning_rate": 1e-2}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model to start from."""
    folder = tmp_path_factory.mktemp("lora")
    write_data(folder)
    (folder / "wide.py").write_text(
        "def wide(completions, **columns):\n    return [float(len(set(text))) for text in completions]\n"
    )
    assert cli("train", sft(folder)).code == 0
    return folder


def started_from(work: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(work / "sft"), "lora": LORA} | more


def check_export(run: Path, start: Path) -> None:
    """Only linear layers have moved, and by a matrix of the adapter's rank; start and adapter lie beside each other."""
    was, now = (load_file(folder / "model.safetensors") for folder in (start, run / "model"))
    assert was.keys() == now.keys()
    moved = [name for name in was if not torch.equal(was[name], now[name])]
    assert moved
    assert all("_proj" in name for name in moved)
    for name in moved:
        size = torch.linalg.svdvals((now[name] - was[name]).double())
        assert size[1] > 0
        assert size[2:].max() < 1e-5 * size[0] + 1e-6, name
    note = json.loads((run / "model" / "adapter" / "base.json").read_text())
    assert note["base"] == str(start.resolve())
    assert (run / "model" / "adapter" / note["relative"]).resolve() == start.resolve()


JOBS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "grpo": {"algorithm": {"name": "grpo", "beta": 0.04}, "training": {"steps": 2}},
    "ppo": {"algorithm": {"name": "ppo", "kl": 0.05}, "critic": {"warmup_steps": 1}},
    "ppo-shared": {"algorithm": "ppo", "critic": {"kind": "shared", "warmup_steps": 1}},
    "ppo-other": {"algorithm": "ppo", "critic": {"lora": {"rank": 1, "targets": ["q_proj"]}}},
    "trpo": {"algorithm": "trpo"},
}


@pytest.mark.parametrize("name", JOBS)
def test_jobs(name: str, work: Path) -> None:
    make = dpo if name == "dpo" else online
    changes = {"model": started_from(work), "optimizer": FAST} | JOBS[name]
    if name != "dpo":
        changes["rewards"] = [f"{work / 'wide.py'}:wide"]
    done = cli("train", make(work, name, **changes))
    assert done.code == 0, done.err
    check_export(work / name, work / "sft" / "model")
    metrics = RunReader(work / name).metrics()
    if name == "dpo":
        assert metrics["rewards/margins"][1][0] == 0, "the reference is not the start"
        assert metrics["rewards/margins"][1][-1] > 0
    if name == "grpo":
        assert metrics["kl"][1][0] == 0
        assert metrics["kl"][1][-1] > 0


RESUMED: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": {"name": "grpo", "beta": 0.04}, "training": {"refresh_reference": 2}},
    "ppo": {"algorithm": {"name": "ppo", "kl": 0.05}},
}


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", RESUMED)
def test_the_same_command_goes_on_to_the_bit(name: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"model": started_from(work), "optimizer": FAST, "rewards": [f"{work / 'wide.py'}:wide"]} | RESUMED[name]
    changes["training"] = {"steps": 4, "resume_every": 1, **changes.get("training", {})}
    real, calls = PolicyLearner.update, []

    def dies(self: PolicyLearner, minibatch: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise SystemError("pulled the plug")
        return real(self, minibatch)

    with monkeypatch.context() as patch, contextlib.suppress(SystemError):
        patch.setattr(PolicyLearner, "update", dies)
        cli("train", online(work, f"{name}-killed", **changes))
    assert not (work / f"{name}-killed" / "model").exists()
    states = sorted((work / f"{name}-killed" / "state").iterdir())
    assert states[-1].name == "step-3"
    kept = load_file(states[-1] / "weights.safetensors")
    assert kept
    assert all(".lora_" in tensor for tensor in kept)
    for run in (f"{name}-killed", f"{name}-whole"):
        done = cli("train", online(work, run, **changes))
        assert done.code == 0, done.err
    assert differences(work / f"{name}-whole", work / f"{name}-killed") == []


def test_a_reward_model(work: Path) -> None:
    pairs = {"path": str(work / "pairs.jsonl")}
    done = cli(
        "reward-model",
        recipe(
            work / "judge.yaml",
            model=started_from(work),
            algorithm="bradley_terry",
            offline=pairs | {"stop": 80},
            eval={"data": pairs | {"start": 80}},
            training={"steps": 8},
            prompts_per_step=16,
            optimizer=FAST,
            reward_model={"probe_steps": 2, "members": 2},
        ),
    )
    assert done.code == 0, done.err
    judge = work / "judge"
    assert json.loads((judge / "reward-model.json").read_text())["metrics"]["accuracy"]["value"] > 0.7
    for member in ("0", "1"):
        folder = judge / "members" / member / "model"
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert config["modules_to_save"] == ["score"]
        was = load_file(work / "sft" / "model" / "model.safetensors")
        now = load_file(folder / "model.safetensors")
        moved = {name for name in was.keys() & now.keys() if not torch.equal(was[name], now[name])}
        assert moved
        assert all("_proj" in name for name in moved)
        assert bool(now["score.weight"].any())
    # It goes on from there, and is a critic's start.
    again = RewardModel.read(judge / "model", device="cpu", lora=LoraSettings(rank=1))
    assert again.trained()
    done = cli(
        "train",
        online(work, "judged", model=started_from(work), algorithm="ppo", critic={"path": str(judge)}, optimizer=FAST),
    )
    assert done.code == 0, done.err


def test_from_an_adapter(work: Path) -> None:
    assert cli("train", dpo(work, "first", model=started_from(work), optimizer=FAST)).code == 0
    adapter = work / "first" / "model" / "adapter"
    start = started_from(work, path=str(adapter))
    done = cli("train", dpo(work, "second", model=start, optimizer=FAST))
    assert done.code == 0, done.err
    check_export(work / "second", work / "sft" / "model")
    assert RunReader(work / "second").metrics()["rewards/margins"][1][0] == 0, "the reference is the base"

    # What a run goes on with is the adapter and its base.
    config = load_config(work / "second.yaml")
    begun = start_of(config)
    known = identity_of(config, load_data(config, begun), begun)
    assert {key.partition(": ")[0] for key in known} >= {"model", "base"}
    assert known["model: adapter_model.safetensors"] == file_sha256(str(adapter / "adapter_model.safetensors"))

    # Commands that read a model read an adapter's folder.
    evaluated = [cli("eval", work / "first", "--model", model) for model in (adapter, work / "first")]
    assert [done.code for done in evaluated] == [0, 0], evaluated
    margins = [next(line for line in done.out.splitlines() if "margin" in line) for done in evaluated]
    assert margins[0] == margins[1]
    assert "0.0000" not in margins[0]
    greedy = ("--prompt", "3+4=", "--max-new-tokens", "3", "--temperature", "0")
    pairs = ("--data", work / "pairs.jsonl", "--limit", "4", "--algorithms", "dpo,sft", "--reference", work / "sft")
    for command in (("generate", greedy), ("compare-objectives", pairs)):
        said = [cli(command[0], model, *command[1]) for model in (adapter, work / "first")]
        assert [done.code for done in said] == [0, 0], said
        shown = [done.out.replace(str(model), "") for done, model in zip(said, (adapter, work / "first"), strict=True)]
        assert shown[0] == shown[1]

    whole = dpo(work, "whole", model=str(adapter), optimizer=FAST)
    assert cli("train", whole).code == 0
    now = load_file(work / "whole" / "model" / "model.safetensors")
    was = load_file(work / "first" / "model" / "model.safetensors")
    assert not torch.equal(now["model.embed_tokens.weight"], was["model.embed_tokens.weight"])


def test_other_settings_than_the_starts(work: Path) -> None:
    plain = Policy.load(work / "sft" / "model", device="cpu", lora=LoraSettings(rank=2))
    plain.save(work / "two")
    path = dpo(work, "three", model={"path": str(work / "two" / "adapter"), "lora": {"rank": 3}})
    done = cli("train", path)
    assert done.code != 0
    assert "rank: 2 there, 3 in the recipe" in done.err


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"model__lora": {"rank": 0}}, r"model.lora.rank: found 0; expected at least 1"),
    "key": ({"model__lora": {"dropout": 0.1}}, r"model.lora.dropout: unknown key"),
    "text": ({"model__lora": {"targets": "all"}}, r"model.lora.targets: found \"all\"; expected 'all-linear'"),
    "none": ({"model__lora": {"targets": []}}, r"model.lora.*: targets: found none"),
    "shared": (
        {"model__lora": {}, "critic": {"kind": "shared", "lora": {}}, "algorithm": "ppo"},
        r"critic.lora: given, but with critic.kind: shared",
    ),
}


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", WRONG)
def test_what_a_recipe_cannot_say(name: str, work: Path) -> None:
    changes, expected = WRONG[name]
    path = online(work, f"wrong-{name}", **({"model": {"path": str(work / "sft")}} | changes))
    with pytest.raises(ConfigError, match=expected):
        load_config(path)


def test_a_recipe_without_peft(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dpo(work, "no-peft", model=started_from(work))
    load_config(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match=r"model.lora: needs the package peft.*pip install 'gro\[lora\]'"):
        load_config(path)


def test_an_unknown_target_is_said_by_check(work: Path) -> None:
    path = dpo(work, "target", model=started_from(work, lora={"targets": ["qproj"]}))
    done = cli("check", path)
    assert done.code != 0
    assert "model: lora.targets: Qwen3ForCausalLM has no layer 'qproj', did you mean 'q_proj'?" in done.err
