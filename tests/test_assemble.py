"""The parts of a job: what ends a completion, which texts a tokenizer sees, which model a path means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from gro import assemble
from gro.config import Config, check_config
from gro.errors import GroError
from gro.preflight import check_data
from gro.runs import Run, RunReader
from gro.runs.terminal import console
from jobs_on_sums import CREATE, cli, online, sft, write_data, write_rows
from tiny import tiny_model, tiny_tokenizer


def config(**keys: Any) -> Config:
    """A recipe of these keys over what every recipe needs."""
    base = {"run": "runs/x", "algorithm": "sft", "prompts_per_step": 2, "training": {"steps": 1}}
    return check_config(base | keys, "test")


@pytest.fixture
def chat(tmp_path: Path) -> str:
    rows = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}] for i in range(6)]
    return str(write_rows(tmp_path / "chat.jsonl", ({"messages": turns} for turns in rows)))


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A model whose end-of-sequence token is not the one that ends a turn of its chat template, as base models are."""
    tiny = tiny_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.backend_tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=tiny.chat_template,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    folder = tmp_path / "base"
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=[0, 9])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_sampling_stops_at_what_training_teaches_to_end_with(chat: str, base_model: Path) -> None:
    """The template's closing token, the tokenizer's, the generation configuration's, and the recipe's own."""
    recipe = config(model=str(base_model), offline={"path": chat}, sampling={"stop": ["!"]})
    start = assemble.start_of(recipe)
    assert start.ends == (0, 9)
    data = assemble.load_data(recipe, start)
    last = {group.completions[0].ids[-1] for group in data.offline[0][0]}
    closing, own = (start.tokenizer.get_vocab()[token] for token in ("<|im_end|>", "!"))
    assert last == {closing}
    sampling = assemble.sampling_of(recipe, start.tokenizer, data.ends)
    assert set(sampling.stop_ids) == {0, 9, closing, own}


def test_generate_stops_there_too(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gro.engines.local import LocalEngine

    seen: dict[str, Any] = {}
    real = LocalEngine.generate

    def generate(self: LocalEngine, prompts: Any, n: int, sampling: Any, **more: Any) -> Any:
        seen.update(prompts=prompts, sampling=sampling)
        return real(self, prompts, n, sampling, **more)

    monkeypatch.setattr(LocalEngine, "generate", generate)
    text = "<|im_end|> a <|endoftext|>"
    assert cli("generate", base_model, "--prompt", text, "--max-new-tokens", "2").code == 0
    tokenizer = tiny_tokenizer()
    ids = seen["prompts"][0].ids
    assert {0, 1, 2}.isdisjoint(ids), "special tokens in a prompt are text"
    assert tokenizer.decode(list(ids)) == text
    assert {0, 9} <= set(seen["sampling"].stop_ids)
    assert cli("generate", base_model, "--prompt", "a<|im_end|>", "--chat", "--max-new-tokens", "2").code == 0
    ids = seen["prompts"][0].ids
    assert tokenizer.decode(list(ids)) == "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(2) == 1, "the template's own only"
    assert 2 in seen["sampling"].stop_ids


def test_a_new_tokenizer_sees_training_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the held-out range, and not what cannot be read: that is reported with all other faults."""
    one = write_rows(tmp_path / "one.jsonl", ({"prompt": f"p{i}", "completion": {"deep": [f"c{i}"]}} for i in range(4)))
    with one.open("a") as file:
        file.write("{broken\n")
    two = write_rows(tmp_path / "two.jsonl", ({"prompt": f"q{i}", "n": 3} for i in range(4)))
    seen: list[str] = []

    def train_tokenizer(texts: Any, size: int, **_: Any) -> Any:
        seen.extend(texts)
        return tiny_tokenizer(290)

    monkeypatch.setattr("gro.assemble.models.train_tokenizer", train_tokenizer)
    offline = {"path": [str(one), str(two)], "start": 1, "stop": 7}
    held_out = {"data": {"path": str(two), "start": 2}}
    start = assemble.start_of(config(model={"create": CREATE}, offline=offline, eval=held_out))
    assert sorted(seen) == ["c1", "c2", "c3", "p1", "p2", "p3", "q0", "q1"]
    assert start.path is None


@pytest.mark.parametrize(
    ("create", "expected"),
    [
        ({"all_bytes": False, "vocab_size": 3}, "model.create: the tokenizer has"),
        ({"vocab_size": 259, "max_positions": 8}, ""),
    ],
)
def test_a_model_that_cannot_be_made_is_the_users_matter(
    create: dict[str, Any], expected: str, tmp_path: Path, chat: str
) -> None:
    recipe = config(model={"create": CREATE | create}, offline={"path": chat})
    if not expected:
        assert Path(assemble.start_of(recipe, tmp_path).path or "").is_dir()
        return
    for where in (tmp_path, None):
        with pytest.raises(GroError, match=expected):
            assemble.start_of(recipe, where)


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    write_data(tmp_path)
    with Run.open(tmp_path / "unfinished", {}):
        pass
    with pytest.raises(GroError, match=r"has exported no model: it is not finished$"):
        assemble.model_folder(str(tmp_path / "unfinished"))
    for step in (2, 10, 9):
        (tmp_path / "unfinished" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    with pytest.raises(GroError, match=r"step-10 is its latest checkpoint"):
        assemble.model_folder(str(tmp_path / "unfinished"))
    (tmp_path / "unfinished" / "model").mkdir()
    assert assemble.model_folder(str(tmp_path / "unfinished")) == str(tmp_path / "unfinished" / "model")
    assert assemble.model_folder("some/hub-name") == "some/hub-name"


def test_evaluation_has_rewards_of_its_own(tmp_path: Path) -> None:
    """eval.rewards judge held-out answers; what is learnt from is still `rewards`."""
    write_data(tmp_path)
    assert cli("train", sft(tmp_path), "training.steps=5").code == 0
    (tmp_path / "mine.py").write_text(
        "def two(completions, **columns):\n    return [2.0] * len(completions)\n"
        "def long(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    held_out = {
        "data": {"path": f"{tmp_path}/sums.jsonl", "start": 80},
        "limit": 3,
        "rewards": [f"{tmp_path}/mine.py:two"],
    }
    done = cli("train", online(tmp_path, rewards=[f"{tmp_path}/mine.py:long"], eval=held_out))
    assert done.code == 0, done.err
    with RunReader(tmp_path / "online") as reader:
        metrics = reader.metrics()
    assert metrics["eval_reward"][1].tolist() == [2.0, 2.0]
    assert "rewards/long/mean" in metrics
    assert "rewards/two/mean" not in metrics


def test_prompts_are_all_that_is_used_online(tmp_path: Path) -> None:
    """A preference file gives prompts without its completions being compared; a type that was named is kept."""
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    recipe = config(
        model={"create": CREATE}, algorithm="reinforce", online={"path": str(same)}, rewards=["exact_match"]
    )
    data = assemble.load_data(recipe, assemble.start_of(recipe))
    assert data.online is not None
    assert data.online.kind == "prompt_only"
    assert data.online[0].completions == ()


def test_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GroError, match=r"model\.device: cuda:1, but torch finds no CUDA device"):
        assemble.load_policy(config(model={"path": "m", "device": "cuda:1"}, offline={"path": __file__}), "m")


def test_held_out_rows_that_are_trained_on_can_be_left_out(tmp_path: Path) -> None:
    from gro.preflight import held_out_rows

    write_data(tmp_path)
    held_out = {"data": {"path": f"{tmp_path}/sums.jsonl", "start": 70, "on_bad": "skip"}, "limit": 25}
    recipe = config(model={"create": CREATE}, offline={"path": f"{tmp_path}/sums.jsonl", "stop": 80}, eval=held_out)
    start = assemble.start_of(recipe)
    data = assemble.load_data(recipe, start)
    groups = held_out_rows(console(), recipe, data)
    assert [group.prompt.key for group in groups] == list(range(80, 100))
    check_data(console(), recipe, assemble.build_algorithm(recipe), data, start)


# --- every source of data ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sums with a model that has learnt to write numbers, and a reward that tells most answers apart."""
    folder = tmp_path_factory.mktemp("sums")
    write_data(folder)
    (folder / "mine.py").write_text(
        "def digits(completions, **columns):\n    return [float(sum(map(str.isdigit, c))) for c in completions]\n"
        "def one(completions, **columns):\n    return [1.0 for c in completions]\n"
    )
    done = cli("train", sft(folder, training={"steps": 30}, eval=None, rewards=[]))
    assert done.code == 0, done.err
    return folder


def trained(folder: Path, name: str, **keys: Any) -> tuple[dict[str, list[float]], Any]:
    """Metrics by step of a run on the sums, and its rollouts of the first step.  Online unless said otherwise."""
    done = cli("train", online(folder, name=name, **{"rewards": [f"{folder}/mine.py:digits"], **keys}))
    assert done.code == 0, done.err
    with RunReader(folder / name) as reader:
        return {k: v[1].tolist() for k, v in reader.metrics().items()}, reader.rollouts(1)


def refused(folder: Path, name: str, **keys: Any) -> str:
    done = cli("check", online(folder, name=name, **{"rewards": [f"{folder}/mine.py:digits"], **keys}))
    assert done.code == 2
    return " ".join(done.err.split())


def logged(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    """Keys of a recipe that learns from these rows alone."""
    path = write_rows(folder / "logged.jsonl", ({"prompt": f"{i}+1=", **row} for i, row in enumerate(rows)))
    return {"online": None, "offline": {"path": str(path)}, "rewards": []}


def test_preferences_are_learnt_from_the_best_and_the_worst_answer(sums: Path) -> None:
    metrics, rollouts = trained(sums, "pairs", algorithm="dpo", group_size=4, training={"steps": 2, "record_groups": 9})
    assert all(a + b == 4 for a, b in zip(metrics["pairs"], metrics["pairs/ties"], strict=True))
    assert {"rewards/accuracies", "rewards/margins"} <= metrics.keys()
    by_group: dict[int, list[float]] = {}
    for record in rollouts:
        by_group.setdefault(record.group, []).append(record.reward)
    assert all(len(rewards) == 2 and rewards[0] > rewards[1] for rewards in by_group.values())
    # The reward that is told is that of all 16 answers, not of the extremes.
    assert (metrics["reward"][0] * 16) % 1 == pytest.approx(0)


@pytest.mark.fault("C3")
def test_no_pair_at_all_is_an_alarm(sums: Path) -> None:
    done = cli("train", online(sums, name="ties", algorithm="dpo", rewards=[f"{sums}/mine.py:one"], eval=None))
    assert done.code == 0, done.err
    assert "no group has any variance in its rewards, so there is nothing to learn" in done.out
    with RunReader(sums / "ties") as reader:
        assert reader.metrics()["pairs"][1].tolist() == [0, 0]
        assert reader.metrics()["grad_norm"][1].tolist() == [0, 0]


def test_the_reference_can_follow_the_policy(sums: Path) -> None:
    """The loss of the step after is that of a policy that is its reference, log 2; held-out pairs are by the start."""
    training, optimizer = {"steps": 4, "refresh_reference": 2}, {"learning_rate": 3e-3}
    held_out = {"data": {"path": f"{sums}/pairs.jsonl", "start": 80}}
    offline = {"online": None, "rewards": [], "offline": {"path": f"{sums}/pairs.jsonl", "stop": 80}, "eval": held_out}
    metrics, _ = trained(sums, "iterative", algorithm="dpo", training=training, optimizer=optimizer, **offline)
    first, second, third, fourth = metrics["loss"]
    assert first == third == pytest.approx(0.693147, abs=1e-6)
    assert max(second, fourth) < 0.69
    assert metrics["eval_margin"][0] == 0
    assert metrics["eval_margin"][-1] > 0.01


def test_demonstrations_stand_beside_the_answers(sums: Path) -> None:
    metrics, rollouts = trained(sums, "hybrid", algorithm={"name": "hpt", "threshold": 1.0})
    assert [r.role for r in rollouts if r.group == 0] == ["sample"] * 4 + ["target"]
    texts = {r.prompt.removesuffix("="): r.completion for r in rollouts if r.role == "target"}
    assert all(text.startswith(str(sum(map(int, prompt.split("+"))))) for prompt, text in texts.items())
    assert (metrics["reward"][0] * 16) % 1 == pytest.approx(0), "of the answers alone"
    error = refused(
        sums, "bare", algorithm="hpt", online={"path": f"{sums}/sums.jsonl", "columns": {"completion": "x"}}
    )
    assert "online: hpt needs a demonstration with every prompt." in error
    assert "field 'x'" in error
    bare = write_rows(sums / "bare.jsonl", [{"prompt": "1+1=", "answer": 2}])
    error = refused(sums, "bare", algorithm="hpt", online={"path": str(bare)})
    assert (
        "field 'completion': found the columns 'prompt', 'answer'; expected a column of the type prompt_comp" in error
    )


def test_an_answer_against_a_demonstration_needs_no_reward(sums: Path) -> None:
    metrics, rollouts = trained(sums, "spin", algorithm="spin", group_size=1, rewards=[])
    assert [(r.role, r.reward) for r in rollouts if r.group == 0] == [("sample", None), ("target", None)]
    assert metrics["rewards/failed"] == [0, 0]
    assert metrics["loss"][0] == pytest.approx(0.693147, abs=1e-6)
    assert metrics["grad_norm"][0] > 0


def test_answers_to_other_prompts_are_scored_and_not_shown(sums: Path) -> None:
    metrics, rollouts = trained(sums, "kto", algorithm="kto")
    assert {r.role for r in rollouts} == {"sample"}
    assert len(rollouts) == 16
    same, _ = trained(sums, "rloo", algorithm={"name": "rloo"})
    for name in (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "entropy",
        "rewards/failed",
    ):
        assert metrics[name][0] == pytest.approx(same[name][0], abs=1e-6), name


def test_answers_of_earlier_steps_are_replayed(sums: Path) -> None:
    algorithm, training = {"name": "awr", "baseline": "group"}, {"steps": 3}
    replay = {"capacity": 8, "per_step": 6}
    metrics, _ = trained(sums, "replay", algorithm=algorithm, training=training, replay=replay)
    assert metrics["replay/groups"] == [4, 8, 8]
    assert metrics["replay/age"][0] == 0
    assert 0 < metrics["replay/age"][2] < 2


def test_prompts_that_teach_nothing_are_replaced(sums: Path) -> None:
    resample = {"rounds": 2, "by": "digits"}
    rewards = [f"{sums}/mine.py:digits", {"reward": "overlong", "limit": 3, "cache": 2}]
    metrics, _ = trained(sums, "dynamic", algorithm="dapo", resample=resample, rewards=rewards, group_size=2)
    asked, kept = metrics["resample/prompts"], metrics["resample/informative"]
    assert all(4 <= a <= 12 and k <= 4 for a, k in zip(asked, kept, strict=True))
    assert all(a == 4 or k < a for a, k in zip(asked, kept, strict=True))
    for command in ("check", "train"):
        wrong = cli(command, online(sums, name="misnamed", resample={"by": "digit"}, rewards=rewards))
        assert wrong.code == 2
        assert (
            "resample.by: no reward is called 'digit', did you mean 'digits'?; there is digits, overlong" in wrong.err
        )


def test_logged_answers_with_their_rewards(sums: Path) -> None:
    answers = [{"completions": [str(i + 1), "?", str(i)], "rewards": [1, 0, 0.5]} for i in range(8)]
    metrics, _ = trained(sums, "logged", **logged(sums, *answers))
    assert metrics["grad_norm"][0] > 0
    metrics, rollouts = trained(sums, "logged-dpo", algorithm="dpo", **logged(sums, *answers))
    assert metrics["pairs"] == [4, 4]
    assert [(r.completion.split("<")[0], r.reward) for r in rollouts[1::2]] == [("?", 0.0)] * 4
    ties = logged(sums, *({"completions": [str(i), "?"], "rewards": [1, 1]} for i in range(5)))
    done = cli("train", online(sums, name="logged-ties", algorithm="dpo", **ties))
    assert "no group has any variance in its rewards" in done.out
    error = refused(sums, "lonely", **logged(sums, *answers, {"completions": ["3"], "rewards": [1]}))
    assert "of type rewarded, with 1 completion in row 9; grpo compares at least 2" in error
    error = refused(sums, "lonely", algorithm="dpo", **logged(sums, {"completion": "3", "reward": 1}))
    assert "with 1 completion in row 1; dpo compares at least 2" in error
    error = refused(sums, "demonstrated", algorithm="sft", **logged(sums, {"completion": "3", "reward": 1}))
    assert "sft learns from demonstrations. offline.kind: prompt_completion takes a column completion" in error
    rows = [{"completion": "3", "reward": reward} for reward in (1, -1, 0)]
    error = refused(sums, "signs", algorithm="kto", **logged(sums, *rows))
    assert (
        "with a reward of 0 in row 3; kto takes a completion alone for good or bad by the sign of its reward" in error
    )


def test_answers_of_a_file_are_judged_by_the_recipes_rewards(sums: Path) -> None:
    keys = logged(sums, *({"completions": [str(i), "?"]} for i in range(6)))
    keys["offline"]["kind"] = "rewarded"
    error = refused(sums, "unjudged", **keys)
    assert "logged.jsonl has no column of rewards; `rewards` would judge its rows" in error
    metrics, rollouts = trained(sums, "judged", **keys | {"rewards": [f"{sums}/mine.py:digits"]})
    assert [r.reward for r in rollouts] == [1.0, 0.0] * 4
    assert metrics["grad_norm"][0] > 0
