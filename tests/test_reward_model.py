"""`gro reward-model`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gro.assemble import start_at
from gro.config import load_config
from gro.jobs.fitting import turned_round
from gro.jobs.reward_model import load_reward_model
from gro.policy.reward_model import RewardModel
from gro.runs import RunReader
from gro.types import Completion, Group, Prompt
from jobs_on_sums import MODEL, cli, recipe, write_data, write_rows

LEARNS = {"training": {"steps": 24, "eval_every": 12}, "optimizer": {"learning_rate": 5e-3}, "prompts_per_step": 16}


def test_from_pairs_to_a_model_that_plain_transformers_reads(tmp_path: Path):
    write_data(tmp_path)
    data = {"path": str(tmp_path / "pairs.jsonl")}
    path = recipe(
        tmp_path / "judge.yaml",
        model=MODEL,
        algorithm={"name": "bradley_terry", "centring": 0.01},
        offline=data | {"stop": 80},
        eval={"data": data | {"start": 80}},
        **LEARNS,
    )
    done = cli("reward-model", path)
    assert done.code == 0, done.err
    assert "20 held-out pairs" in done.out
    found = json.loads((tmp_path / "judge" / "reward-model.json").read_text())
    assert found["pairs"] == 20
    assert found["metrics"]["accuracy"]["value"] > 0.9, "a rejected sum ends in an exclamation mark"
    assert found["metrics"]["accuracy_bag_of_words"]["value"] > 0.9
    assert sum(b["pairs"] for b in found["calibration"]) == 20
    assert (tmp_path / "judge" / "reward-model.svg").read_text().lstrip().startswith("<?xml")

    run = RunReader(tmp_path / "judge")
    assert run.metrics()["eval_accuracy"][1][-1] == found["metrics"]["accuracy"]["value"]
    assert run.metrics()["rewards/accuracies"][1][-1] > 0.9

    folder = tmp_path / "judge" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()[80:]]
    with torch.no_grad():
        scores = [
            [
                float(model(torch.tensor([[*tokenizer(r["prompt"] + r[k]).input_ids, tokenizer.eos_token_id]])).logits)
                for k in ("chosen", "rejected")
            ]
            for r in rows
        ]
    assert sum(a > b for a, b in scores) / len(scores) == found["metrics"]["accuracy"]["value"]
    start = start_at(str(folder))
    for autocast, checkpointing in ((None, False), ("bfloat16", True)):
        how = [f"model.autocast={autocast or 'null'}", f"model.activation_checkpointing={str(checkpointing).lower()}"]
        loaded = load_reward_model(load_config(path, [f"model.path={folder}", "model.create=null", *how]), start)
        assert loaded.autocast == autocast
        assert any(getattr(m, "gradient_checkpointing", False) for m in loaded.model.modules()) == checkpointing
    again = cli("reward-model", path, f"model={folder}", f"run={tmp_path / 'again'}", "training.steps=1")
    assert again.code == 0, again.err
    before = RunReader(tmp_path / "again").metrics()["eval_accuracy"][1][0]
    assert before == found["metrics"]["accuracy"]["value"], "a reward model goes on from its own scores"


@pytest.mark.parametrize("algorithm", ["plackett_luce", "all_pairs"])
def test_from_rankings(tmp_path: Path, algorithm: str):
    rows = [
        {"prompt": f"{a}:", "completions": ["; ".join("abcd"[: 1 + (a + k) % 4]) for k in range(4)]}
        | {"rewards": [float(1 + (a + k) % 4) for k in range(4)]}
        for a in range(100)
    ]
    write_rows(tmp_path / "ranked.jsonl", rows)
    data = {"path": str(tmp_path / "ranked.jsonl")}
    path = recipe(
        tmp_path / "judge.yaml",
        model=MODEL,
        algorithm=algorithm,
        offline=data | {"stop": 80},
        eval={"data": data | {"start": 80}},
        **LEARNS,
    )
    done = cli("reward-model", path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "judge" / "reward-model.json").read_text())
    assert found["pairs"] == 20 * 6
    assert found["metrics"]["accuracy"]["value"] > 0.9, "more is better"
    assert found["metrics"]["length_correlation"]["value"] > 0.7


def test_a_reward_model_rewards_rollouts(tmp_path: Path):
    write_data(tmp_path)
    pairs = {"path": str(tmp_path / "pairs.jsonl")}
    judge = recipe(tmp_path / "judge.yaml", model=MODEL, algorithm="bradley_terry", offline=pairs)
    assert cli("reward-model", judge).code == 0
    keys = {"algorithm": "rloo", "online": pairs | {"kind": "prompt_only"}, "group_size": 3}
    keys |= {"sampling": {"max_new_tokens": 4}, "training": {"steps": 2}}
    rewards = [{"reward": "reward_model", "path": str(tmp_path / "judge")}]
    policy = recipe(tmp_path / "policy.yaml", model=str(tmp_path / "judge" / "start"), rewards=rewards, **keys)
    done = cli("train", policy)
    assert done.code == 0, done.err
    model = RewardModel.read(tmp_path / "judge" / "model", device="cpu")
    found = [r for r in RunReader(tmp_path / "policy").rollouts(1) if r.role == "sample"]
    assert found
    for r in found:
        group = Group(Prompt(tuple(r.prompt_ids)), (Completion(tuple(r.completion_ids)),))
        assert r.reward == pytest.approx(model.scores([group], 4096).item(), abs=1e-5)

    write_rows(tmp_path / "words.jsonl", [{"prompt": "words and words"}] * 4)
    other = keys | {"online": {"path": str(tmp_path / "words.jsonl")}, "prompts_per_step": 2}
    stranger = recipe(tmp_path / "stranger.yaml", model=MODEL, rewards=rewards, **other)
    done = cli("train", stranger)
    assert done.code == 2
    assert "has another tokenizer than the policy" in done.err
    nowhere = recipe(tmp_path / "nowhere.yaml", model=MODEL, rewards=[{"reward": "reward_model"}], **keys)
    assert "rewards.0.path: missing" in cli("check", nowhere).err


def test_a_policys_algorithm_is_refused(tmp_path: Path):
    write_data(tmp_path)
    path = recipe(tmp_path / "r.yaml", model=MODEL, algorithm="dpo", offline={"path": str(tmp_path / "pairs.jsonl")})
    done = cli("reward-model", path)
    assert done.code == 2
    assert "dpo trains a policy, which is `gro train`" in done.err
    assert not (tmp_path / "r" / "model").exists()


def test_the_average_of_several_is_compared_with_them(tmp_path: Path):
    write_data(tmp_path)
    data = {"path": str(tmp_path / "pairs.jsonl")}
    path = recipe(
        tmp_path / "warm.yaml",
        model=MODEL,
        algorithm="bradley_terry",
        offline=data | {"stop": 80},
        eval={"data": data | {"start": 80}},
        reward_model={"members": 2, "probe_steps": 3, "label_noise": 0.2},
        training={"steps": 6},
        optimizer={"learning_rate": 3e-3},
        prompts_per_step=16,
    )
    done, again = (cli("reward-model", path, f"run={tmp_path / name}") for name in ("warm", "again"))
    assert (done.code, again.code) == (0, 0), done.err + again.err
    run = tmp_path / "warm"
    found = json.loads((run / "reward-model.json").read_text())["warm"]
    assert len(found["members"]) == 2
    assert 0 <= found["mean_of_scores"]["value"] <= 1
    assert "accuracy of the mean of their scores" in done.out
    probe = RunReader(run / "probe")
    assert probe.metrics()["loss"][0].tolist() == [1, 2, 3]
    weights = [load_file(run / "members" / str(i) / "model" / "model.safetensors") for i in range(2)]
    mean = load_file(run / "model" / "model.safetensors")
    assert any(not torch.equal(weights[0][n], weights[1][n]) for n in mean), "the members saw another order of rows"
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (weights[0][name] + weights[1][name]) / 2, rtol=0, atol=1e-6)
    same = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(mean[n], same[n]) for n in mean), "the same recipe gives the same weights"


def test_label_noise_turns_its_share_of_rows_round_and_always_the_same():
    pairs = [
        Group(Prompt((1,), key=k), (Completion((2,), reward=1.0), Completion((3,), reward=-1.0))) for k in range(2000)
    ]
    noisy, _ = turned_round(0.25, pairs)
    turned = [g.completions[0].reward == -1.0 for g in noisy]
    assert 0.22 < sum(turned) / len(turned) < 0.28
    assert all({c.reward for c in g.completions} == {1.0, -1.0} for g in noisy)
    assert turned_round(0.25, pairs)[0] == noisy
    assert turned_round(0.0, pairs)[0] == pairs
