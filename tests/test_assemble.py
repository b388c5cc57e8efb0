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

    monkeypatch.setattr(assemble, "train_tokenizer", train_tokenizer)
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
