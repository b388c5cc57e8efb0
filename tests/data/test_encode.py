"""Rows as groups: roles, rewards, lengths, refusals, and real files."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import jsonl, load, text_of, user
from tokenizer_variants import chatml_like, gpt2_like, ids

from gro.data.encode import encode_prompts, load_dataset
from gro.data.spec import DataSpec
from gro.errors import DataError
from realdata import data_file
from tiny import tiny_tokenizer

END = 300


def test_each_type_becomes_its_group() -> None:
    (preference,) = load([{"prompt": "Q", "chosen": " A", "rejected": " B", "margin": 2.0}], gpt2_like())
    assert preference.prompt.ids == (81,)
    assert [(c.ids, c.reward, c.role, c.finish) for c in preference.completions] == [
        ((32, 65, END), 1.0, "sample", "given"),
        ((32, 66, END), -1.0, "sample", "given"),
    ]
    assert preference.prompt.row["margin"] == 2.0
    for label, reward in ((True, 1.0), (False, -1.0)):
        (unpaired,) = load([{"prompt": "Q", "completion": " A", "label": label}], gpt2_like())
        assert [(c.ids, c.reward, c.role) for c in unpaired.completions] == [((32, 65, END), reward, "sample")]
    (target,) = load([{"prompt": "Q", "completion": " A"}], gpt2_like())
    assert [(c.reward, c.role) for c in target.completions] == [(None, "target")]
    (prompt,) = load([{"prompt": "Q", "answer": 4, "tags": ["x"]}], gpt2_like())
    assert prompt.completions == ()
    assert dict(prompt.prompt.row) == {"prompt": "Q", "answer": 4, "tags": ["x"]}


def test_columns_reach_the_rewards_under_both_names() -> None:
    (group,) = load(
        [{"question": "Q", "answer": "4"}],
        gpt2_like(),
        prompt_template="{question}:",
        columns={"solution": "answer"},
    )
    assert dict(group.prompt.row) == {"question": "Q", "answer": "4", "solution": "4", "prompt": "Q:"}


def test_train_on_everything() -> None:
    (group,) = load([{"prompt": "Q", "completion": " A"}], gpt2_like(), train_on="all")
    assert group.prompt.ids == (END,)  # the beginning of text
    assert group.completions[0].ids == (81, 32, 65, END)
    assert group.completions[0].trained is None


def test_keys_are_rows_of_the_source_whatever_is_left_out() -> None:
    rows: list[Any] = [{"text": t} for t in "abcdef"]
    rows[2] = {"text": 3}
    data = load(rows, gpt2_like(), start=1, stop=5, on_bad="skip")
    assert [g.prompt.key for g in data] == [1, 3, 4]
    assert [g.completions[0].ids[0] for g in data] == ids("bde")
    assert (data.report.rows, data.report.bad, data.report.used) == (4, 1, 3)


def test_csv_and_parquet_give_the_same_groups(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": " A", "label": True}, {"prompt": "R", "completion": " B", "label": False}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    (tmp_path / "r.csv").write_text("prompt,completion,label\nQ, A,true\nR, B,false\n")
    expected = [(g.prompt.ids, g.completions) for g in load(rows, gpt2_like())]
    for name in ("r.parquet", "r.csv"):
        data = load_dataset(DataSpec(str(tmp_path / name)), gpt2_like())
        assert [(g.prompt.ids, g.completions) for g in data] == expected


LONG = [
    {"prompt": "QQQ", "completion": "AB"},
    {"prompt": "QQQ", "completion": "ABC"},
    {"prompt": "QQQQQQ", "completion": "A"},
]


@pytest.mark.fault("D6")
def test_rows_longer_than_allowed() -> None:
    # With the end token: 6, 7 and 8 tokens.
    assert len(load(LONG, gpt2_like(), max_length=8)) == 3
    with pytest.raises(DataError, match="line 2, field 'prompt': found 3 prompt tokens and up to 4 of a completion"):
        load(LONG, gpt2_like(), max_length=6)
    data = load(LONG, gpt2_like(), max_length=6, overlong="skip")
    assert [g.prompt.key for g in data] == [0]
    assert (data.report.overlong, data.report.used, data.report.longest) == (2, 1, 6)
    with pytest.raises(DataError, match="no row that is short enough"):
        load(LONG, gpt2_like(), max_length=3, overlong="skip")


@pytest.mark.fault("D6")
def test_a_truncated_completion_is_not_taught_to_stop() -> None:
    data = load(LONG[:2], gpt2_like(), max_length=6, overlong="truncate")
    assert [c.ids for g in data for c in g.completions] == [(65, 66, END), (65, 66, 67)]
    assert [c.finish for g in data for c in g.completions] == ["given", "length"]
    assert data.report.truncated == 1
    # The prompt alone fills the row: no token would be trained, and truncation does not help.
    with pytest.raises(DataError, match=r"line 3.*The prompt alone leaves no token to train on"):
        load(LONG, gpt2_like(), max_length=6, overlong="truncate")
    with pytest.raises(DataError, match="found 3 prompt tokens; expected at most max_length = 2"):
        load([{"prompt": "QQQ"}], gpt2_like(), max_length=2, overlong="truncate")


@pytest.mark.fault("D6")
def test_truncation_that_leaves_nothing_trained_is_refused() -> None:
    turns = [user("A"), {"role": "assistant", "content": "B"}, user("CCCC"), {"role": "assistant", "content": "D"}]
    spec: dict[str, Any] = {"overlong": "truncate", "on_bad": "skip"}
    (group,) = load([{"messages": turns}], chatml_like(), max_length=25, **spec)
    assert group.completions[0].trained is not None
    assert sum(group.completions[0].trained) == 2


@pytest.mark.fault("D6")
def test_the_histogram_counts_tokens_with_loss() -> None:
    rows = [{"prompt": "Q", "completion": "A" * n} for n in (1, 2, 3, 3, 15)]
    report = load(rows, gpt2_like()).report  # with the end: 2, 3, 4, 4, 16
    assert report.trained_tokens == (0, 0, 2, 2, 0, 1)
    assert "2–3: 2, 4–7: 2, 16–31: 1; longest row 17" in str(report)


def test_all_bad_rows_are_told_of_and_none_is_used_by_mistake() -> None:
    rows = [{"prompt": "Q", "completion": c} for c in ("A", None, "", 3, "B")]
    with pytest.raises(DataError) as error:
        load(rows, gpt2_like())
    assert (error.value.line, error.value.field) == (2, "completion")
    assert "3 of 5 rows cannot be used; on_bad: skip would leave them out." in str(error.value)
    assert "3 × completion: expected text" in str(error.value)
    rejected: list[Any] = []
    spec = DataSpec(jsonl(rows), on_bad="skip", max_length=2, overlong="skip")
    with pytest.raises(DataError):
        load_dataset(
            spec, gpt2_like(), reject=lambda e, fields: rejected.append((e.line, (fields or {})["completion"]))
        )
    assert sorted(rejected, key=str) == [(1, "A"), (2, None), (3, ""), (4, 3), (5, "B")]
    with pytest.raises(DataError, match="3 of 3 rows cannot be used"):
        load(rows[1:4], gpt2_like(), on_bad="skip")


@pytest.mark.fault("D12")
def test_held_out_rows_inside_the_training_rows() -> None:
    rows = [{"prompt": f"Q{i}", "completion": f"A{i}"} for i in range(6)]
    train, held_out = load(rows[:4], gpt2_like()), load([rows[5], rows[3] | {"id": 3}], gpt2_like())
    assert train.overlap(held_out) == [1]
    assert load(rows[:4], gpt2_like()).overlap(load(rows[4:], gpt2_like())) == []
    prompts = load([{"prompt": "Q9"}, {"prompt": "Q2"}], gpt2_like())
    assert train.overlap(prompts) == [1]


def test_the_hash_names_the_bytes_of_all_files() -> None:
    rows = [{"text": "a"}]
    one, same, other = load(rows, gpt2_like()), load(rows, gpt2_like()), load([{"text": "b"}], gpt2_like())
    assert one.sha256 == same.sha256 != other.sha256


def test_slices_and_negative_indices() -> None:
    data = load([{"text": t} for t in "abc"], gpt2_like())
    assert [g.prompt.key for g in data[1:]] == [1, 2]
    assert data[-1].prompt.key == 2
    assert [g.prompt.key for g in data] == [0, 1, 2]
    with pytest.raises(IndexError):
        data[3]


def test_prompts_that_are_not_in_a_file() -> None:
    data = encode_prompts(["A<|im_end|>", [user("B")]], chatml_like())
    assert data[0].prompt.ids == tuple(ids("A<|im_end|>"))
    assert data[1].prompt.ids == load([{"prompt": [user("B")]}], chatml_like())[0].prompt.ids
    assert [g.prompt.key for g in data] == [0, 1]
    assert encode_prompts(["B"], chatml_like(), chat=True)[0].prompt == replace(data[1].prompt, key=0)
    assert data.ends == {300, 302}
    with pytest.raises(DataError, match="the prompts, row 2, field 'prompt': found empty text"):
        encode_prompts(["A", ""], chatml_like())


def test_progress_is_told() -> None:
    seen: list[int] = []
    load_dataset(DataSpec(jsonl([{"text": "a"}] * 1100)), gpt2_like(), on_progress=seen.append)
    assert seen[-1] == 1100
    assert len(seen) == 3


@pytest.mark.data
def test_gsm8k_for_a_base_model() -> None:
    tokenizer = tiny_tokenizer()
    spec = DataSpec(
        str(data_file("gsm8k.jsonl")),
        prompt_template="Question: {question}\nAnswer:",
        completion_template=" {answer}",
        stop=400,
    )
    data = load_dataset(spec, tokenizer)
    assert (len(data), data.report.rows, data.report.named, data.report.forced) == (400, 400, 0, 0)
    group = data[0]
    assert text_of(tokenizer, group.prompt.ids).startswith("Question: Natalia sold clips to 48 of her friends")
    assert text_of(tokenizer, group.prompt.ids).endswith("April and May?\nAnswer:")
    assert text_of(tokenizer, group.completions[0].ids).startswith(" Natalia sold 48/2")
    assert text_of(tokenizer, group.completions[0].ids).endswith("#### 72<|im_end|>")
    for g in data:
        row = g.prompt.row
        text = f"Question: {row['question']}\nAnswer: {row['answer']}<|im_end|>"
        assert text_of(tokenizer, g.prompt.ids + g.completions[0].ids) == text
        # A rollout starts from the same ids.
        assert list(g.prompt.ids) == tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]


@pytest.mark.data
def test_hh_transcripts() -> None:
    tokenizer = tiny_tokenizer()
    path = str(data_file("hh_harmless.jsonl"))
    with pytest.raises(DataError) as error:
        load_dataset(DataSpec(path), tokenizer)
    # These rows have an empty chosen answer.
    assert (error.value.line, error.value.field) == (87, "chosen[3]")
    assert "4 of 1800 rows cannot be used" in str(error.value)
    data = load_dataset(DataSpec(path, on_bad="skip", stop=300), tokenizer)
    assert len(data) == 299
    assert [c.reward for c in data[0].completions] == [1.0, -1.0]
    for g in data[:20]:
        text = text_of(tokenizer, g.prompt.ids)
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        for c in g.completions:
            answer = text_of(tokenizer, c.ids)
            assert answer.endswith("<|im_end|>")
            assert answer.count("<|im_") == 1
            column = g.prompt.row["chosen" if c.reward == 1.0 else "rejected"]
            assert column.rstrip().endswith(answer.removesuffix("<|im_end|>"))
    plain = load_dataset(DataSpec(path, on_bad="skip", stop=40, chat=False), tokenizer)
    for g in plain:
        said = text_of(tokenizer, g.prompt.ids + g.completions[0].ids).removesuffix("<|im_end|>")
        assert "".join(said.split()) == "".join(g.prompt.row["chosen"].split())


def test_logged_completions_are_samples_with_their_rewards() -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "12 + 34?", "completions": [" 46", " 12", " 46"], "rewards": [1, -0.5, 1]}]
    rows += [{"prompt": "Answer:", "completions": [" 4"], "rewards": [2]}]
    data = load(rows, tokenizer)
    assert (data.kind, data.pending) == ("rewarded", False)
    group = data[0]
    assert [(c.role, c.reward, c.finish, c.logp) for c in group.completions] == [
        ("sample", reward, "given", None) for reward in (1.0, -0.5, 1.0)
    ]
    assert text_of(tokenizer, group.completions[1].ids) == " 12<|im_end|>"
    assert group.completions[0].ids == group.completions[2].ids
    pending = load([{"prompt": "Answer:", "completion": " 4"}], tokenizer, kind="rewarded")
    assert pending.pending
    assert [(c.role, c.reward) for c in pending[0].completions] == [("sample", None)]


@pytest.mark.fault("D5")
def test_ties_can_be_left_out_and_are_counted() -> None:
    rows = [{"prompt": "Q", "chosen": "A", "rejected": r} for r in ("B", "A", "C", " A")]
    with pytest.raises(DataError, match="line 2, field 'rejected': found the same as 'chosen'") as refused:
        load(rows, gpt2_like())
    assert "2 of 4 rows cannot be used; on_bad: skip would leave them out" in str(refused.value)
    told: list[int | None] = []
    data = load_dataset(DataSpec(jsonl(rows), on_bad="skip"), gpt2_like(), reject=lambda e, _: told.append(e.line))
    assert (len(data), data.report.bad, told) == (2, 2, [2, 4])
    assert dict(data.report.faults) == {"rejected: expected two different completions": 2}


@pytest.mark.fault("D7")
def test_padding_with_the_end_token_changes_nothing() -> None:
    tokenizer = copy.deepcopy(gpt2_like())
    tokenizer.pad_token = tokenizer.eos_token
    (group,) = load([{"prompt": "Q", "completion": "A"}], tokenizer)
    assert group.completions[0].ids == (65, END)
    assert group.completions[0].trained is None  # all of them, the end too
