"""The command line as a user meets it, on tiny models: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gro.runs import RunReader
from jobs_on_sums import CREATE, REWARD, SUMS, Done, cli, dpo, online, sft, write_data, write_rows

GRO = str(Path(sys.executable).with_name("gro"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a model that was taught the form of a sum."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder)
    done = cli("train", sft(folder), "training.steps=30")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def work(folder: Path, tmp_path: Path) -> Path:
    """A directory of the test's own, with the data and the model of `folder`."""
    for name in ("sums.jsonl", "pairs.jsonl", "sft"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run(folder: Path) -> None:
    run = folder / "sft"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "run.db", "model", "start", "report.html"}
    with RunReader(run) as reader:
        assert reader.status == "finished"
        assert reader.config["training"]["steps"] == 30
        metrics = reader.metrics()
        assert reader.summary["algorithm"] == "sft"
        assert reader.summary["after"]["eval_loss"] < 0.5 * reader.summary["before"]["eval_loss"]
        assert len(reader.summary["samples"]) == 8
    assert metrics["loss"][0].tolist() == list(range(1, 31))
    assert all(math.isfinite(v) for v in metrics["loss"][1])
    assert metrics["eval_loss"][0].tolist() == [0, 30]
    assert "<svg" in (run / "report.html").read_text()


def test_the_model_is_plain_hugging_face(folder: Path) -> None:
    """Held-out loss by plain transformers and by the run's own evaluation are one number."""
    model = AutoModelForCausalLM.from_pretrained(folder / "sft" / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft" / "model")
    nll, count = 0.0, 0
    for a, b in SUMS[80:88]:
        prompt, answer = tokenizer(f"{a}+{b}=").input_ids, [*tokenizer(str(a + b)).input_ids, tokenizer.eos_token_id]
        logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        nll -= sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        count += len(answer)
    with RunReader(folder / "sft") as reader:
        assert reader.summary["after"]["eval_loss"] == pytest.approx(nll / count, abs=1e-5)


ONLINE = {
    "grpo": {"algorithm": {"name": "grpo", "beta": 0.04}},
    "several updates": {"algorithm": {"name": "grpo", "beta": 0.0}, "training__epochs": 2, "training__minibatches": 2},
    "rloo": {"algorithm": "rloo"},
    "reinforce": {"algorithm": "reinforce"},
    "gro": {"algorithm": "gro"},
    "online dpo": {"algorithm": "dpo", "group_size": 2},
    "more answers than slots": {"group_size": 6, "slots": 4},
    "more prompts than rows": {"online__stop": 3, "prompts_per_step": 7},
    "bfloat16": {"model": {"path": "sft", "dtype": "bfloat16"}},
    "float64": {"model": {"path": "sft", "dtype": "float64"}},
    "autocast": {"model": {"path": "sft", "autocast": "bfloat16", "activation_checkpointing": True}},
    "tiny micro-batches": {"algorithm": "gro", "training__tokens_per_micro": 1},
    "cut at once": {"sampling": {"max_new_tokens": 1}, "prompts_per_step": 1},
    "one answer": {"algorithm": "reinforce", "group_size": 1},
    "two rewards": {"rewards": [REWARD, {"reward": "exact_match", "column": "prompt_text", "weight": 0.5}]},
}


@pytest.mark.parametrize("keys", ONLINE.values(), ids=ONLINE)
def test_train_online(keys: dict[str, Any], work: Path) -> None:
    if "rewards" in keys:
        write_rows(
            work / "texts.jsonl",
            ({"prompt": f"{a}+{b}=", "completion": f"{a + b}", "prompt_text": f"{a}+{b}="} for a, b in SUMS),
        )
        keys = keys | {"online": {"path": str(work / "texts.jsonl")}}
    if isinstance(keys.get("model"), dict):
        keys = keys | {"model": keys["model"] | {"path": str(work / "sft")}}
    done = cli("train", online(work, **keys))
    assert done.code == 0, done.err
    assert len(done.steps) == 2, "one line per step"
    assert "reward" in done.steps[0]
    assert "\x1b" not in done.out + done.err
    with RunReader(work / "online") as reader:
        metrics = reader.metrics()
        assert reader.status == "finished"
    exact = not isinstance(keys.get("model"), dict) or keys["model"].get("dtype") == "float64"
    assert max(metrics["sampling/sampling_logp_difference/max"][1]) < (1e-5 if exact else 0.1)
    assert metrics["rewards/failed"][1].tolist() == [0, 0]
    before, after = (
        AutoModelForCausalLM.from_pretrained(work / run / "model", dtype=torch.float64) for run in ("sft", "online")
    )
    moved = any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    if "bfloat16" not in str(keys):  # which rounds the weights themselves
        assert moved == any(v > 0 for v in metrics["grad_norm"][1])


def test_train_on_a_mixture(work: Path) -> None:
    done = cli(
        "train",
        online(work, algorithm="gro", offline={"path": str(work / "sums.jsonl"), "stop": 80}, offline_share=0.25),
    )
    assert done.code == 0, done.err
    with RunReader(work / "online") as reader:
        roles = [r.role for r in reader.rollouts(1)]
    assert roles.count("target") == 1
    assert roles.count("sample") == 3 * 4


def test_train_on_preferences(work: Path) -> None:
    done = cli("train", dpo(work, optimizer={"learning_rate": 1e-3}, training={"steps": 4}, prompts_per_step=16))
    assert done.code == 0, done.err
    with RunReader(work / "dpo") as reader:
        metrics = reader.metrics()
    assert metrics["loss"][1][0] == pytest.approx(math.log(2), abs=1e-6), "the policy begins as its reference"
    assert metrics["eval_accuracy"][1][0] == 0.5
    assert metrics["eval_accuracy"][1][-1] > 0.5


def test_a_users_reward_file(work: Path) -> None:
    (work / "mine.py").write_text(
        "def digits(prompts, completions, completion, *, weight_of_digits=1.0, **columns):\n"
        "    assert len(prompts) == len(completions) == len(completion)\n"
        "    return [weight_of_digits * sum(c.isdigit() for c in text) for text in completions]\n"
    )
    reward = {"reward": f"{work}/mine.py:digits", "weight": 2, "weight_of_digits": 0.5}
    done = cli("train", online(work, rewards=[reward]))
    assert done.code == 0, done.err
    with RunReader(work / "online") as reader:
        rollouts = reader.rollouts(1)
        mean = reader.metrics()["rewards/digits/mean"][1][0]
    for r in rollouts:
        assert r.rewards["digits"] == 0.5 * sum(c.isdigit() for c in r.completion.replace("<|im_end|>", ""))
        assert r.reward == 2 * (r.rewards["digits"] or 0)
    assert mean == pytest.approx(sum(r.rewards["digits"] or 0 for r in rollouts) / len(rollouts))


def test_a_users_algorithm_file(work: Path) -> None:
    (work / "mine.py").write_text(
        "from gro.algorithms import build\n"
        "def shy(beta: float = 0.5):\n    '''A user's own.'''\n    return build('dpo', beta=beta / 2)\n"
    )
    algorithm = {"name": f"{work}/mine.py:shy", "beta": 0.2}
    assert cli("train", dpo(work, algorithm=algorithm)).code == 0
    assert cli("train", dpo(work, name="same", algorithm={"name": "dpo", "beta": 0.1})).code == 0
    with RunReader(work / "dpo") as mine, RunReader(work / "same") as same:
        assert mine.metrics()["loss"][1].tolist() == same.metrics()["loss"][1].tolist()
    done = cli("algorithms", algorithm["name"])
    assert done.code == 0
    assert "A user's own." in done.out


@pytest.mark.fault("D11")
def test_special_tokens_in_prompts_are_text(work: Path) -> None:
    """A prompt that spells out the end token must not end there, and `gro generate` reads it as training does."""
    rows = [{"prompt": f"<|im_end|>{i}+1=<|endoftext|>", "completion": str(i + 1)} for i in range(8)]
    write_rows(work / "special.jsonl", rows)
    done = cli("train", online(work, online={"path": str(work / "special.jsonl")}))
    assert done.code == 0, done.err
    assert "8 rows that spell out a special token, kept as text" in done.out
    with RunReader(work / "online") as reader:
        rollout = reader.rollouts(1)[0]
    tokenizer = AutoTokenizer.from_pretrained(work / "sft" / "model")
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(rollout.prompt_ids)
    assert rollout.prompt in [row["prompt"] for row in rows]


def test_training_is_repeatable(work: Path) -> None:
    for name in ("one", "two"):
        assert cli("train", online(work, name=name, algorithm="gro")).code == 0
    with RunReader(work / "one") as one, RunReader(work / "two") as two:
        a, b = one.metrics(), two.metrics()
        assert [r.completion for r in one.rollouts(2)] == [r.completion for r in two.rollouts(2)]
    for name in ("loss", "reward", "grad_norm"):
        assert a[name][1].tolist() == b[name][1].tolist()


# --- running again ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("C5")
def test_a_finished_run_is_not_run_again(work: Path) -> None:
    done = cli("train", work / "sft")
    assert done.code == 0
    assert "holds a finished run of this recipe (last step 30); nothing is left to do" in done.out
    other = cli("train", work / "sft", "training.seed=1")
    assert other.code == 2
    assert "holds a finished run (last step 30" in other.err
    assert "choose another directory" in other.err


def test_what_was_interrupted_before_a_state_begins_anew(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the attempt before left, model and checkpoints included, is gone; the result is that of one go."""
    from gro.errors import Interrupted
    from gro.jobs import train as job

    path = sft(work, name="again", training={"steps": 4, "save_every": 1}, eval=None, rewards=[])
    real, calls = job.source_of, []

    class Stopped:
        def __init__(self, source: Any) -> None:
            self.source, self.observed = source, {}

        def take(self, step: int) -> Any:
            calls.append(step)
            if len(calls) == 3:
                raise Interrupted("SIGINT")  # as the second Ctrl-C does
            return self.source.take(step)

        def receive(self, policy: Any, step: int) -> None:
            self.source.receive(policy, step)

    monkeypatch.setattr(job, "source_of", lambda *a: Stopped(real(*a)))
    first = cli("train", path)
    assert first.code == 75
    assert first.err.strip().endswith("again is not finished; the same command begins anew")
    assert sorted(p.name for p in (work / "again" / "checkpoints").iterdir()) == ["step-1", "step-2"]
    second = cli("train", path)
    assert second.code == 0, second.err
    assert "was interrupted and has no saved state; it begins anew" in second.out
    assert [line.split()[1] for line in second.steps] == ["1/4", "2/4", "3/4", "4/4"]
    whole = cli("train", path, f"run={work}/whole")
    assert whole.code == 0
    assert _weights(work / "again") == _weights(work / "whole")


def _weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_start_that_failed_leaves_nothing_behind(work: Path) -> None:
    """The first attempt makes a model of other sizes and fails on its data; the second must not train that one."""
    write_rows(work / "bad.jsonl", [{"prompt": "1", "completion": ""}])
    held_out = {"data": {"path": str(work / "bad.jsonl")}}
    small = CREATE | {"hidden_size": 16}
    assert cli("train", sft(work, name="run", model={"create": small}, eval=held_out)).code == 2
    assert cli("train", sft(work, name="run", eval=None, rewards=[])).code == 0
    assert json.loads((work / "run" / "model" / "config.json").read_text())["hidden_size"] == 32


def test_other_settings_do_not_continue_a_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gro.jobs import train as job

    path = sft(work, name="run", eval=None, rewards=[])

    def interrupted(*arguments: Any, **options: Any) -> None:
        recorder = arguments[5]
        recorder.run.record(1, {"loss": 1.0})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "train", interrupted)
        assert cli("train", path).code == 130
    done = cli("train", path, "training.seed=3", "optimizer.learning_rate=1")
    assert done.code == 2
    assert "training.seed: 0 → 3" in done.err
    assert "optimizer.learning_rate: 0.005 → 1.0" in done.err


# --- what is refused, before weights are loaded -----------------------------------------------------------------------


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails the test."""
    from gro.policy.policy import Policy

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Policy, "load", load)


def refused(done: Done) -> str:
    """The message of a command that ended as it should where something can be put right."""
    assert done.code == 2, (done.out, done.err)
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err.partition("\n")[0]
    return done.err


BOTH = pytest.mark.parametrize("command", ["train", "check"])


@BOTH
@pytest.mark.usefixtures("weightless")
def test_bad_rows_are_named(command: str, work: Path) -> None:
    (work / "bad.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n{"prompt": 3, "completion": "x"}\n{"pr\n')
    message = refused(cli(command, sft(work, name="bad", offline={"path": str(work / "bad.jsonl")})))
    assert "bad.jsonl" in message
    assert "line 2" in message
    assert "'prompt'" in message
    assert "line 3" in message
    assert "2 of 3 rows cannot be used" in message


@BOTH
@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        (sft, {"offline__path": "pairs.jsonl"}, "sft learns from demonstrations. offline.kind: "
            "prompt_completion takes the chosen completions as demonstrations"),
        (sft, {"offline__kind": "prompt_only"}, "which are prompts alone; sft learns from demonstrations"),
        (dpo, {"offline__path": "sums.jsonl"}, "which are demonstrations; dpo learns from preference pairs"),
        (dpo, {"algorithm": "grpo", "offline__path": "sums.jsonl"}, "grpo learns from completions with a reward"),
        (dpo, {"algorithm": "grpo", "offline__path": "labels.jsonl"}, "grpo compares at least 2 completions of a"),
        (dpo, {"algorithm": "rloo", "offline__kind": "prompt_only"}, "Prompts that the policy is to answer belong"),
        (online, {"online__path": "texts.jsonl"}, "found the columns 'text'"),
        (online, {"eval": {"data": {"path": "sums.jsonl", "start": 70}}}, "10 of 30 held-out rows are also trained"),
        (sft, {"eval__data__start": 0}, "80 of 100 held-out rows are also trained on (the first: row 1 of"),
        (sft, {"rewards": [], "eval__data__kind": "prompt_only"}, "there is no reward to judge answers by"),
        (sft, {"sampling__stop": ["<|end|>"]}, "sampling.stop: '<|end|>' is not a token of the model's tokenizer"),
        (online, {"model": "sft/nothing"}, "sft/nothing"),
        (online, {"model": "sums.jsonl"}, "is a file; expected the folder of a model"),
        (online, {"model": "."}, "has no config.json"),
        (sft, {"model__create__architecture": "gpt2", "model__create__kv_heads": 2, "model__create__max_positions": 6},
            "the model has positions for 6. Lower max_new_tokens, or set max_length"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_said(
    command: str, kind: Any, keys: dict[str, Any], expected: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    labelled = ({"prompt": f"{a}+{b}=", "completion": str(a + b), "label": a > b} for a, b in SUMS)
    write_rows(work / "labels.jsonl", labelled)
    write_rows(work / "texts.jsonl", [{"text": "a text"}])
    base = {
        "offline": {"path": str(work / "sums.jsonl"), "stop": 80},
        "eval": {"data": {"path": str(work / "sums.jsonl"), "start": 80}},
    }
    if kind is dpo:
        base["offline"]["path"] = str(work / "pairs.jsonl")
        base["eval"]["data"]["path"] = str(work / "pairs.jsonl")
    if kind is online:
        base = {"online": {"path": str(work / "sums.jsonl"), "stop": 80}}
    if "model__create__architecture" in keys:
        base["model"] = {"create": dict(CREATE)}
    assert expected in refused(cli(command, kind(work, name="job", **(base | keys))))


REWARDS = """
import time
def missing(completions, gold, **columns): return [0.0] * len(completions)
def raises(completions, **columns): raise RuntimeError("it does not work")
def nan(completions, **columns): return [float("nan")] * len(completions)
def words(completions, **columns): return ["good"] * len(completions)
def true(completions, **columns): return [True] * len(completions)
def short(completions, **columns): return [0.0] * (len(completions) - 1)
def number(completions, **columns): return 1.0
def hangs(completions, **columns): time.sleep(60)
def dies(completions, **columns):
    import os
    os._exit(3)
def none(completions, **columns): return [None] * len(completions)
def place(completions, **columns): return [float(i) for i in range(len(completions))]
"""


@BOTH
@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "reward 'missing' needs 'gold'; columns of the data: completion"),
        ("raises", "RuntimeError: it does not work"),
        ("nan", "float nan"),
        ("words", "str 'good'"),
        ("true", "bool True"),
        ("short", "returned 3 values for 4 completions"),
        ("number", "returned float 1.0"),
        ("hangs", "took longer than 0.5 s"),
        ("dies", "its process"),
        ("place", "mixes up its completions"),
    ],
)
def test_rewards_are_tried_first(command: str, name: str, expected: str, work: Path) -> None:
    (work / "mine.py").write_text(REWARDS)
    path = online(work, rewards=[f"{work}/mine.py:{name}"], reward_time_limit=0.5 if name == "hangs" else 20)
    message = refused(cli(command, path))
    assert "rewards: tried on 4 texts of the data before anything is loaded" in message
    assert expected in message


def test_a_reward_that_applies_to_nothing_is_noted(work: Path) -> None:
    (work / "mine.py").write_text(REWARDS)
    done = cli("check", online(work, rewards=[f"{work}/mine.py:none"]))
    assert done.code == 0
    assert "note: none applies to none of them" in done.out


@pytest.mark.fault("R1", "R4")
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("raise RuntimeError('now it breaks')", "RuntimeError: now it breaks"),
        ("return [float('inf')] * len(completions)", "float inf"),
        ("time.sleep(60)", "took longer than 0.5 s"),
    ],
)
def test_a_reward_that_breaks_later_stops_the_run(wrong: str, expected: str, work: Path) -> None:
    (work / "mine.py").write_text(
        "import time\ndef late(completions, trainer_state, **columns):\n"
        f"    if trainer_state.global_step == 1:\n        {wrong}\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    done = cli("train", online(work, rewards=[f"{work}/mine.py:late"], reward_time_limit=0.5, training={"steps": 3}))
    message = refused(done)
    assert "error: step 2: reward 'late' failed on 16 of 16 completions (100%; the run stops above 50%)" in message
    assert "an update on" not in message
    assert expected in message
    assert len(done.steps) == 1
    files = list((work / "online" / "failures").glob("reward-late-*.txt"))
    assert len(files) == 16
    text = files[0].read_text()
    assert "prompt:" in text
    assert "completion:" in text
    assert expected in text
    if "raise" in wrong:
        assert "mine.py" in text
        assert "Traceback" in text
    assert not (work / "online" / "model").exists()


def test_skipped_rows_are_counted_and_kept(work: Path) -> None:
    good = '{"prompt": "1+1=", "completion": "2"}\n'
    (work / "bad.jsonl").write_text(good * 3 + '{"prompt": 3, "completion": "x"}\n{"pr\n')
    data = {"path": str(work / "bad.jsonl"), "on_bad": "skip"}
    for name in ("job", "job2"):
        done = cli("train", sft(work, name=name, offline=data))
        assert done.code == 0, done.err
        assert "5 rows, 3 used, 2 that cannot be used" in done.out
        assert f"2 rows were left out of the data: {work}/{name}/rejected.jsonl" in done.out.splitlines()[-1]
    rejected = [json.loads(line) for line in (work / "job" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(r["why"].split(", ")[1] for r in rejected) == ["line 4", "line 5"]


def test_small_floats_are_noted(work: Path) -> None:
    done = cli("check", online(work, model={"path": str(work / "sft"), "dtype": "bfloat16"}))
    assert "note: model.dtype: bfloat16 rounds small updates away; autocast: bfloat16 keeps float32 weights" in done.out


@pytest.mark.fault("R1")
def test_single_failures_are_masked_and_never_0(work: Path) -> None:
    (work / "mine.py").write_text(
        "from gro.rewards import reward\n"
        "@reward(samplewise=True)\n"
        "def picky(completions, **columns):\n"
        "    if sum(map(ord, completions[0])) % 3 == 0: raise ValueError('not this one')\n"
        "    return [1.0 + len(completions[0])]\n"
    )
    path = online(work, rewards=[f"{work}/mine.py:picky"], reward_failure_stop_share=1.0, training={"steps": 3})
    done = cli("train", path, "training.record_groups=4")
    assert done.code == 0, done.err
    with RunReader(work / "online") as reader:
        rollouts = [r for step in (1, 2, 3) for r in reader.rollouts(step)]
        failed = reader.metrics()["rewards/failed"][1]
    assert failed.sum() == sum(r.reward is None for r in rollouts) > 0
    for r in rollouts:
        assert r.reward is None or r.reward >= 1
        if r.reward is None:
            assert not r.tokens["coefficient"].any(), "no gradient from an answer without a reward"


# --- eval -------------------------------------------------------------------------------------------------------------


def wilson(wins: float, n: int) -> tuple[float, float]:
    """The roots of (p − p₀)² = z² p₀ (1 − p₀) / n, which is how Wilson's interval is defined."""
    z2, p = 1.959963984540054**2, wins / n
    a, b, c = 1 + z2 / n, -(2 * p + z2 / n), p * p
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_eval_of_a_run_by_reward(folder: Path, tmp_path: Path) -> None:
    done = cli("eval", folder / "sft", "eval.limit=20", "--output", tmp_path / "found.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["model"] == str(folder / "sft" / "model")
    assert found["rows"] == len(found["answers"]) == 20
    solved = [float(a["answer"].strip() == str(eval(a["prompt"].rstrip("=")))) for a in found["answers"]]
    assert [a["reward"] for a in found["answers"]] == solved
    reward = found["metrics"]["reward"]
    assert reward["value"] == sum(solved) / 20
    assert (reward["low"], reward["high"]) == pytest.approx(wilson(sum(solved), 20), abs=1e-12)
    assert reward["interval"] == "95 %, Wilson"
    assert "95 % interval" in done.out


def test_greedy_answers_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    cli("eval", folder / "sft", "eval.limit=12", "--output", tmp_path / "found.json")
    answers = json.loads((tmp_path / "found.json").read_text())["answers"]
    model = AutoModelForCausalLM.from_pretrained(folder / "sft" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft" / "model")
    for answer in answers:
        ids = tokenizer(answer["prompt"], return_tensors="pt")
        out: Any = model.generate(  # type: ignore[attr-defined]
            **ids, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        text = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        assert answer["answer"] == text


def test_eval_of_preferences_against_the_start(work: Path) -> None:
    assert cli("train", dpo(work, optimizer={"learning_rate": 1e-3})).code == 0
    done = cli("eval", work / "dpo", "--output", work / "found.json")
    assert done.code == 0, done.err
    found = json.loads((work / "found.json").read_text())
    assert found["reference"] == str(work / "sft" / "model")
    tokenizer = AutoTokenizer.from_pretrained(work / "sft" / "model")
    policy, start = (AutoModelForCausalLM.from_pretrained(work / run / "model") for run in ("dpo", "sft"))

    def total(model: Any, prompt: str, answer: str) -> float:
        p, c = tokenizer(prompt).input_ids, [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(torch.tensor([p + c])).logits[0].double().log_softmax(-1)
        return sum(logp[len(p) - 1 + i, token].item() for i, token in enumerate(c))

    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()][80:95]
    margins, logps = [], []
    for row in rows:
        chosen, rejected = (total(policy, row["prompt"], row[k]) for k in ("chosen", "rejected"))
        logps.append(chosen - rejected)
        margins.append(
            chosen
            - rejected
            - total(start, row["prompt"], row["chosen"])
            + total(start, row["prompt"], row["rejected"])
        )
    metrics = found["metrics"]
    assert metrics["accuracy"]["value"] == sum(m > 0 for m in margins) / 15
    assert metrics["logp_accuracy"]["value"] == sum(m > 0 for m in logps) / 15
    assert metrics["margin"]["value"] == pytest.approx(sum(margins) / 15, abs=1e-4)
    low, high = wilson(sum(m > 0 for m in margins), 15)
    assert (metrics["accuracy"]["low"], metrics["accuracy"]["high"]) == pytest.approx((low, high), abs=1e-9)
    with RunReader(work / "dpo") as reader:
        assert reader.summary["after"]["eval_accuracy"] == metrics["accuracy"]["value"]


def test_eval_with_another_reference_and_model(work: Path) -> None:
    path = dpo(work)
    same = cli("eval", path, "--output", work / "same.json")
    assert same.code == 0, same.err
    found = json.loads((work / "same.json").read_text())
    assert found["model"] == str(work / "sft" / "model")
    assert found["reference"] is None
    assert "accuracy" not in found["metrics"], "a model has no implicit reward relative to itself"
    done = cli(
        "eval", path, "--model", work / "sft" / "start", "--reference", work / "sft", "--output", work / "o.json"
    )
    assert done.code == 0, done.err
    found = json.loads((work / "o.json").read_text())
    assert found["model"] == str(work / "sft" / "start")
    assert found["reference"] == str(work / "sft" / "model")
    assert 0 <= found["metrics"]["accuracy"]["value"] <= 1


def test_eval_says_what_it_lacks(work: Path) -> None:
    assert "the recipe has no eval section" in refused(cli("eval", online(work)))
    assert "makes its own model" in refused(cli("eval", sft(work, name="never")))
    assert "the folder" in refused(cli("eval", work / "sft", "--output", work / "none" / "x.json"))
    (work / "empty").mkdir()
    assert "is a directory without config.yaml" in refused(cli("eval", work / "empty"))


# --- the other commands -----------------------------------------------------------------------------------------------


def test_check_shows_what_is_learnt(work: Path) -> None:
    done = cli("check", sft(work, name="job"))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("the first batch: 16 completions"))
    row = int(lines[first + 1].removeprefix("row ")) - 1
    a, b = divmod(row, 10)
    assert lines[first + 2] == f"  prompt       {a}+{b}="
    assert lines[first + 4] == f"  [+0.025]     {a + b}<|im_end|>"
    assert lines[-1] == "the recipe is sound"
    assert not (work / "job").exists(), "check writes nothing"


def test_check_notes_few_rows_and_long_rows(work: Path) -> None:
    done = cli("check", online(work, prompts_per_step=100, sampling={"max_new_tokens": 200}))
    assert done.code == 0, done.err
    assert "note: online has 80 rows and a step takes 100" in done.out
    assert "more than the 64 that the model was made for" in done.out


def test_generate(work: Path) -> None:
    arguments = (
        "generate",
        work / "sft",
        "--prompt",
        "1+1=",
        "--prompt",
        "<|im_end|>",
        "-n",
        "2",
        "--max-new-tokens",
        "4",
    )
    one, two = cli(*arguments, "--seed", "1"), cli(*arguments, "--seed", "1")
    assert one.code == 0, one.err
    assert one.out == two.out != cli(*arguments, "--seed", "2").out
    assert one.out.count("nats per token]") == 4
    greedy = cli("generate", work / "sft", "--prompt", "1+1=", "--temperature", "0", "-n", "3", "--max-new-tokens", "4")
    head, text = greedy.out.splitlines()[:2]
    assert greedy.out.splitlines() == [head, text] * 3
    chat = cli("generate", work / "sft", "--prompt", "1+1=", "--chat", "--max-new-tokens", "2")
    assert chat.code == 0, chat.err
    assert "does not exist" in refused(cli("generate", "./nothing", "--prompt", "x"))


def test_algorithms() -> None:
    from gro.algorithms import names

    listing = cli("algorithms")
    assert listing.code == 0
    assert all(name in listing.out for name in names())
    page = cli("algorithms", "grpo")
    assert all(
        word in page.out for word in ("loss =", "credit", "clip_high", "0.04", "https://arxiv.org/abs/2402.03300")
    )
    assert "scale  divided by the group's standard deviation, ddof 0 (÷ G), plus ε = 1e-06\n" in page.out
    assert "KL  k3 to the reference in the loss, β = 0.04: its value estimates the reverse KL" in page.out
    assert "│ ptx " in page.out
    assert "unknown algorithm 'grpoo', did you mean 'grpo'?" in refused(cli("algorithms", "grpoo"))


def test_report(work: Path) -> None:
    run = work / "sft"
    (run / "report.html").unlink()
    done = cli("report", run)
    assert done.code == 0
    assert Path(done.out.strip()).read_text().startswith("<!")
    assert "is not a run directory" in refused(cli("report", work))


def test_usage_errors() -> None:
    assert cli("trian").code == 2
    assert cli("train").code == 2
    dashed = cli("train", "r.yaml", "--training.steps=3")
    assert dashed.code == 2
    assert "a recipe's keys are given without dashes" in dashed.err
    assert "does not exist" in refused(cli("train", "r.yaml"))
    for command in ("train", "check", "eval", "generate", "algorithms", "report", "quickstart"):
        done = cli(command, "--help")
        assert done.code == 0
        assert "Usage" in done.out


@pytest.mark.fault("C5")
def test_a_run_directory_that_cannot_be(work: Path) -> None:
    assert "cannot" in refused(cli("train", sft(work), "run=/proc/gro/run"))
    (work / "file").write_text("")
    refused(cli("train", sft(work), f"run={work}/file"))
    (work / "full").mkdir()
    (work / "full" / "thesis.tex").write_text("")
    message = refused(cli("train", sft(work), f"run={work}/full"))
    assert "is not empty and holds no run (thesis.tex)" in message


@pytest.mark.fault("C5")
def test_a_full_disk_is_seen_before_training(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 65 * 2**20 + 300_000))
    assert cli("train", online(work, name="fits")).code == 0
    message = refused(cli("train", online(work, training={"steps": 100, "save_every": 1})))
    assert "the disk has 65.3 MiB free and the run needs 74.5 MiB more" in message
    assert "101 × 98.1 KiB of exported models, 3 × 294.1 KiB of states to continue from" in message


def test_a_run_of_another_recipe_comes_first(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(cli("train", online(work, model="runs/earlier")))
    assert message.startswith("error: model: runs/earlier: there is no such folder")
    assert "If it is the run of another recipe, train that first" in message


def test_from_another_directory(
    work: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths count from the current directory, and a message says so; a run may be read from anywhere."""
    monkeypatch.chdir(work)
    path = sft(
        work, name="job", offline={"path": "sums.jsonl", "stop": 80}, eval={"data": {"path": "sums.jsonl", "start": 80}}
    )
    assert cli("train", path, "run=job").code == 0
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    message = refused(cli("eval", work / "job"))
    assert f"eval.data.path: 'sums.jsonl' does not exist (seen from {elsewhere})" in message
    assert "1 problem" in message, "an evaluation needs no training data"
    assert cli("report", work / "job").code == 0
    assert cli("generate", work / "job", "--prompt", "1", "--max-new-tokens", "1").code == 0
    assert cli("eval", work / "job", f"eval.data.path={work}/sums.jsonl", "eval.limit=2").code == 0


# --- a process of its own ---------------------------------------------------------------------------------------------


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """`gro ...` as a user starts it, with Ctrl-C as a terminal leaves it."""
    return subprocess.Popen(
        [GRO, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test starts; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.fault("P3", "P7")
def test_ctrl_c(work: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start("train", online(work, training={"steps": 100000}))
    processes.append(process)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    second = refused(cli("train", work / "online.yaml", "training.steps=100000"))
    assert f"is in use by process {process.pid}" in second
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 40
    assert process.returncode == 75
    assert "SIGINT: stops after this step; once more, and it stops at once" in err
    assert re.search(r"interrupted: SIGINT: the state after step \d+ is saved; the same command continues$", err)
    with RunReader(work / "online") as reader:
        assert reader.status == "interrupted"
        assert len(reader.metrics()["loss"][0]) >= 3
    assert not (work / "online" / "model").exists()


def piped(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's pipeline; its exit code is that of the first command that failed."""
    return subprocess.run(
        f"set -o pipefail; {command}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_closed_pipe_does_not_stop_training(work: Path) -> None:
    done = piped(f"{GRO} train {online(work, training={'steps': 5})} | head -1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("grpo: ")
    assert done.stderr == ""
    with RunReader(work / "online") as reader:
        assert reader.status == "finished"
        assert len(reader.metrics()["loss"][0]) == 5


@pytest.mark.parametrize("command", ["algorithms", "report {run}"])
def test_nobody_reads(command: str, folder: Path) -> None:
    done = piped(f"{GRO} {command.format(run=folder / 'sft')} | true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_whole_run_says_nothing_on_standard_error(work: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start("train", sft(work, name="job"), cwd=work)
    processes.append(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("step ")]) == 2
    assert lines[-2:] == ["model:  job/model", "report: job/report.html"]
