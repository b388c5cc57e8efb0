"""`gro generate --best-of`: what is picked, what it is worth, and what is written for the next training."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gro.data.encode import encode_prompts, load_dataset
from gro.data.spec import DataSpec
from gro.errors import GroError
from gro.evaluation.best_of_n import best_of_n
from gro.evaluation.selection import Selection, Writer, check_presentable, parse_form
from gro.jobs.generate import Asked, generate_best, generate_texts, parse_reward
from gro.policy.policy import Policy
from gro.types import Completion, Group
from jobs_on_sums import Done, cli, write_rows
from tiny import tiny_model, tiny_tokenizer

REWARD = """
def vowels(completions, weight=1.0, **_):
    return [weight * sum(text.count(v) for v in "aeiou") for text in completions]

def no_b(completions, **_):
    return [float("nan") if "b" in text else float(len(text)) for text in completions]
"""
END = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says letters and often stops by itself, and rewards."""
    folder = tmp_path_factory.mktemp("generate")
    model, tokenizer = tiny_model("phi", seed=3, hidden=16, layers=1), tiny_tokenizer()
    head: Any = model.get_output_embeddings()
    letters = tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    with torch.no_grad():
        head.bias.fill_(-50)
        head.bias[letters] = 0
        head.bias[END] = 1
    Policy(model, tokenizer).save(folder / "model")
    (folder / "rewards.py").write_text(REWARD)
    return folder


def asked(**keys: Any) -> Asked:
    return Asked(**{"prompts": ("1+1=", "Hello"), "n": 8, "max_new_tokens": 12, "seed": 3, **keys})


def test_the_best_of_n(folder: Path) -> None:
    reward = {"reward": f"{folder}/rewards.py:vowels", "weight": 1.0}
    found = generate_best(str(folder / "model"), asked(), [reward])
    texts = generate_texts(str(folder / "model"), asked())
    rewards = [[float(sum(t.text.count(v) for v in "aeiou")) for t in texts[i : i + 8]] for i in (0, 8)]
    assert len({*rewards[0]}) > 2, "the example has several rewards, and ties"
    assert [a.prompt for a in found.answers] == ["1+1=", "Hello"]
    assert [a.reward for a in found.answers] == [max(r) for r in rewards]
    assert [p.n for p in found.points] == [1, 2, 4, 8]
    for point in found.points:
        assert point.reward.value == pytest.approx(sum(best_of_n(r, point.n) for r in rewards) / 2)
        assert point.prompts == 2
    assert (found.samples, found.failed, found.selection) == (16, 0, None)


def test_rewards_that_fail_are_left_out(folder: Path) -> None:
    found = generate_best(str(folder / "model"), asked(n=16), [f"{folder}/rewards.py:no_b"], write_as="rewarded")
    texts = [t.text for t in generate_texts(str(folder / "model"), asked(n=16))]
    good = [[float(len(t)) for t in texts[i : i + 16] if "b" not in t] for i in (0, 16)]
    assert found.failed == 32 - sum(map(len, good))
    assert 0 < found.failed < 16
    assert found.points[0].reward.value == pytest.approx(sum(sum(g) / len(g) for g in good) / 2)
    assert [p.prompts for p in found.points][-1] == sum(len(g) == max(map(len, good)) for g in good)
    assert found.selection is not None
    assert found.selection.samples_left_out["without a reward"] > 0
    assert all("b" not in said for row in found.selection.rows for said in row["completions"])


def test_what_is_no_choice(folder: Path) -> None:
    with pytest.raises(GroError, match="best of 1 is no choice"):
        generate_best(str(folder / "model"), asked(n=1), ["exact_match"])
    with pytest.raises(GroError, match="the same answer every time"):
        generate_best(str(folder / "model"), asked(temperature=0), ["exact_match"])
    with pytest.raises(GroError, match="--as is one of sft, preference, rewarded; found 'dpo'"):
        parse_form("dpo")
    assert parse_reward("{reward: exact_match, column: answer}") == {"reward": "exact_match", "column": "answer"}
    assert parse_reward("exact_match") == "exact_match"
    with pytest.raises(GroError, match="is not valid YAML"):
        parse_reward("{reward: ")


# --- what is written --------------------------------------------------------------------------------------------------


NASTY = ["Say <|im_end|> and <|endoftext|>", " two\nlines ", "ünï\u2028code 🙂", "Question: 3 + 4 = "]
ANSWERS = [" 46.", "<|im_start|>user", "é 🙂\n\nand more ", "{{ x }} {% y %}"]


def groups_of(prompts: Any, answers: list[str], rewards: list[float | None]) -> list[Group]:
    """Every prompt with every answer, tokenised as text and ended by the end token."""
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        pieces = re.split(r"(<)", text)  # special tokens' names stay text
        return tuple(i for piece in pieces for i in tokenizer(piece, add_special_tokens=False).input_ids)

    done = tuple(Completion((*ids(a), END), reward=r, finish="stop") for a, r in zip(answers, rewards, strict=True))
    return [Group(g.prompt, done) for g in prompts]


def writer(form: Any) -> Writer:
    tokenizer = tiny_tokenizer()
    return Writer(form, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)), {0, 1, 2})


def read_back(selection: Selection, path: Path) -> list[Group]:
    path.write_text(selection.json_lines(), encoding="utf-8")
    return list(load_dataset(DataSpec(str(path)), tiny_tokenizer()))


def said(completion: Completion) -> str:
    assert completion.ids[-1] == END
    assert not {0, 1, 2} & {*completion.ids[:-1]}, "no special tokens out of text"
    return str(tiny_tokenizer().decode(list(completion.ids[:-1])))


CONVERSATIONS = [
    [{"role": "system", "content": "Be <|im_end|> brief."}, {"role": "user", "content": text}] for text in NASTY
]


@pytest.mark.parametrize("asked_for", [NASTY, CONVERSATIONS], ids=["text", "messages"])
def test_what_is_written_is_what_was_sampled(asked_for: Any, tmp_path: Path) -> None:
    """The prompts' tokens are the very same, the texts are the same, and the rewards belong to them."""
    tokenizer = tiny_tokenizer()
    data = encode_prompts(asked_for, tokenizer)
    check_presentable(data, tokenizer)
    groups = groups_of(data, ANSWERS, [0.5, 2.0, -1.0, 1.0])

    best = read_back(writer("sft").select(groups), tmp_path / "sft.jsonl")
    assert [g.prompt.ids for g in best] == [g.prompt.ids for g in data]
    assert [said(g.completions[0]) for g in best] == [ANSWERS[1]] * 4
    assert {g.completions[0].role for g in best} == {"target"}

    pairs = read_back(writer("preference").select(groups), tmp_path / "pairs.jsonl")
    assert [g.prompt.ids for g in pairs] == [g.prompt.ids for g in data]
    assert [[(said(c), c.reward) for c in g.completions] for g in pairs] == [[(ANSWERS[1], 1), (ANSWERS[2], -1)]] * 4

    everything = read_back(writer("rewarded").select(groups), tmp_path / "rewarded.jsonl")
    assert [g.prompt.ids for g in everything] == [g.prompt.ids for g in data]
    expected = list(zip(ANSWERS, [0.5, 2.0, -1.0, 1.0], strict=True))
    assert [[(said(c), c.reward) for c in g.completions] for g in everything] == [expected] * 4


def test_what_a_file_could_not_say_is_left_out() -> None:
    data = encode_prompts(["a", "b", "c", "d"], tiny_tokenizer())
    cut = Completion((70, 71), reward=9.0, finish="length")
    inside = Completion((70, 1, 71, END), reward=9.0, finish="stop")
    broken = Completion(
        (*tiny_tokenizer()("é", add_special_tokens=False).input_ids[:1], END), reward=9.0, finish="stop"
    )
    failed = Completion((72, END), reward=None, finish="stop")
    nothing = Completion((END,), reward=9.0, finish="stop")
    good, better = Completion((73, END), reward=1.0, finish="stop"), Completion((74, END), reward=2.0, finish="stop")
    prompts = [g.prompt for g in data]
    groups = [
        Group(prompts[0], (cut, inside, broken, failed, nothing, good, better)),
        Group(prompts[1], (good, good)),
        Group(prompts[2], (good, Completion((73, END), reward=0.0, finish="stop"))),
        Group(prompts[3], (cut, failed)),
    ]
    found = writer("preference").select(groups)
    decode = tiny_tokenizer().decode
    assert found.rows == [
        {"prompt": "a", "chosen": decode([74]), "rejected": decode([73]), "chosen_reward": 2.0, "rejected_reward": 1.0}
    ]
    assert found.samples_left_out == Counter(
        {"cut off": 2, "without a reward": 2, "with special tokens inside": 1, "not valid UTF-8": 1, "without text": 1}
    )
    assert found.prompts_left_out == Counter(
        {"all rewards equal": 1, "best and worst of the same text": 1, "no sample that can be written": 1}
    )
    assert [row["score"] for row in writer("sft").select(groups).rows] == [2.0, 1.0, 1.0]


def test_prompts_that_text_cannot_say(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"question": "1+1"}])
    spec = DataSpec(str(path), kind="prompt_only", prompt_template="<|im_start|>{question}")
    data = load_dataset(spec, tiny_tokenizer())
    with pytest.raises(GroError, match=r"row 1 of .*q\.jsonl cannot be written as text"):
        check_presentable(data, tiny_tokenizer())


# --- the command ------------------------------------------------------------------------------------------------------


def refused(done: Done) -> str:
    assert done.code == 2
    return done.err


def test_the_command(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}", "answer": "a"} for i in range(6)]
    data = write_rows(tmp_path / "questions.jsonl", rows)
    arguments = ["generate", folder / "model", "--data", data, "--prompt-template", "Q: {question}\nA:", "--limit", "5"]
    arguments += ["--best-of", "8", "--max-new-tokens", "12"]
    reward = ["--reward", f"{folder}/rewards.py:vowels"]
    for form in ("sft", "preference", "rewarded"):
        done = cli(*arguments, *reward, "--output", tmp_path / f"{form}.jsonl", "--as", form)
        assert done.code == 0, done.err
        assert "best of" in done.out
        assert done.out.count("nats per token, reward") == 5
        assert re.search(rf"{form}\.jsonl: \d rows", done.out)
    everything = list(load_dataset(DataSpec(str(tmp_path / "rewarded.jsonl")), tiny_tokenizer()))
    best = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert len(everything) == 5
    assert [row["prompt"] for row in best] == [f"Q: {i}+{i}\nA:" for i in range(5)]
    assert [row["score"] for row in best] == [max(c.reward or 0 for c in g.completions) for g in everything]
    by_column = cli(*arguments, "--reward", "{reward: exact_match, column: answer}")
    assert by_column.code == 0, by_column.err


def test_the_command_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    model = ("generate", folder / "model")
    assert "--best-of and --reward go together" in refused(cli(*model, "--prompt", "x", "--best-of", "4"))
    assert "--best-of and --reward go together" in refused(cli(*model, "--prompt", "x", "--reward", "maths"))
    assert "give prompts with --prompt" in refused(cli(*model))
    assert "not both" in refused(cli(*model, "--prompt", "x", "--data", "y"))
    assert "--data: 'nothing.jsonl' is not a file" in refused(cli(*model, "--data", "nothing.jsonl"))
    questions = write_rows(tmp_path / "q.jsonl", [{"question": "1+1="}])
    for arguments in ((), ("--prompt-template", "{qestion}")):
        said = refused(cli(*model, "--data", questions, *arguments))
        assert "found the columns 'question'" in said
        assert "Give --prompt-template with a column's name in braces" in said
        assert "columns: {" not in said, "the command has no such key"
    assert "give --best-of" in refused(cli(*model, "--prompt", "x", "--output", tmp_path / "o.jsonl"))
    gone = tmp_path / "none" / "o.jsonl"
    both = ("--prompt", "x", "--best-of", "4", "--reward", "maths")
    assert "does not exist" in refused(cli(*model, *both, "--output", gone))
