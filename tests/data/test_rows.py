"""Which type the columns make, what a row means, and every fault of a row by row and field."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import assistant, jsonl, user

from gro.data._lines import Row
from gro.data.layout import detect
from gro.data.rows import Example, parse_row
from gro.data.scan import scan
from gro.data.spec import DataSpec, Piece, Turn
from gro.data.turns import split_text
from gro.errors import DataError, GroError

SYSTEM = {"role": "system", "content": "S"}


def understood(fields: dict[str, Any], **spec: Any) -> Example:
    settings = DataSpec("rows.jsonl", **spec)
    return parse_row(Row("rows.jsonl", 7, fields), 6, detect(fields, settings))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("text", "language_modeling"),
        ("messages id", "language_modeling"),
        ("prompt", "prompt_only"),
        ("prompt answer", "prompt_only"),
        ("prompt completion", "prompt_completion"),
        ("prompt completion messages", "prompt_completion"),
        ("chosen rejected", "preference"),
        ("prompt chosen rejected margin messages", "preference"),
        ("prompt completion label", "unpaired_preference"),
        ("prompt completion reward label", "unpaired_preference"),
        ("prompt completion reward", "rewarded"),
        ("prompt completions rewards", "rewarded"),
    ],
)
def test_the_type_is_told_from_the_columns(columns: str, kind: str) -> None:
    assert detect(columns.split(), DataSpec("r.jsonl")).kind == kind


def test_templates_and_mapped_columns_count_as_columns() -> None:
    gsm8k = ["question", "answer"]
    spec = DataSpec("r", prompt_template="Q: {question}\nA:", completion_template=" {answer}")
    assert detect(gsm8k, spec).kind == "prompt_completion"
    assert detect(gsm8k, DataSpec("r", prompt_template="Q: {question}\nA:")).kind == "prompt_only"
    assert detect(gsm8k, DataSpec("r", columns={"prompt": "question"})).kind == "prompt_only"
    assert detect(gsm8k, DataSpec("r", columns={"text": "answer"})).kind == "language_modeling"


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    ("columns", "spec", "words"),
    [
        ("prompt completions", {"kind": "prompt_completion"}, "field 'completion': found the columns 'prompt', 'compl"),
        ("prompt completions", {"kind": "prompt_completion"}, "columns: {completion: completions}"),
        ("question answer", {}, "columns: {prompt: question, completion: answer}"),
        ("choosen rejected", {}, "{chosen: choosen, rejected: rejected}"),
        ("chosen rejectd", {"kind": "preference"}, "nearest is 'rejectd'"),
        ("conversations", {"kind": "language_modeling"}, "nearest is 'conversations'; columns: {messages: conv"),
        ("a b", {}, "found the columns 'a', 'b'; expected the columns of a dataset type"),
        ("a b", {"columns": {"prompt": "c"}}, "field 'c'"),
        ("question", {"columns": {"prompt": "qestion"}}, "nearest is 'question'; columns: {prompt: question} would"),
        ("question", {"prompt_template": "{qestion}"}, "field 'qestion'.*nearest is 'question'"),
        ("prompt completions labels", {}, "stepwise_supervision, which no algorithm uses yet"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(columns: str, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        detect(columns.split(), DataSpec("r.jsonl", **spec))


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{}", "{0}", "{a!r}", "{a:>9}", "{a", "a}"])
def test_templates_are_names_in_braces_and_nothing_else(template: str) -> None:
    with pytest.raises(GroError, match="template"):
        detect(["a"], DataSpec("r.jsonl", prompt_template=template))


def test_prompt_and_completion() -> None:
    example = understood({"prompt": "Q", "completion": "A"})
    assert example.prompt == (Piece("Q"),)
    assert example.completions == ((Piece("A"),),)
    assert (example.labels, example.index) == ((None,), 6)


def test_templates_say_which_text_is_the_recipes_and_which_is_data() -> None:
    example = understood(
        {"q": "{x}", "n": 3, "a": "A"}, prompt_template="Q{{1}}: {q} ({n})", completion_template=" {a}."
    )
    assert example.prompt == (
        *(Piece(text, True) for text in ("Q{", "1}", ": ")),
        Piece("{x}"),
        Piece(" (", True),
        Piece("3"),
        Piece(")", True),
    )
    assert example.completions == ((Piece(" ", True), Piece("A"), Piece(".", True)),)


def test_a_template_around_both_completions_of_a_preference() -> None:
    example = understood({"prompt": "Q", "chosen": "A", "rejected": "B"}, completion_template=" {completion}")
    assert example.completions == ((Piece(" ", True), Piece("A")), (Piece(" ", True), Piece("B")))
    assert example.labels == (1.0, -1.0)


def test_the_prompt_of_a_preference_of_plain_text_is_what_both_have_in_common() -> None:
    example = understood({"chosen": "The sky is blue", "rejected": "The sky is black"})
    assert example.prompt == (Piece("The sky is"),)
    assert example.completions == ((Piece(" blue"),), (Piece(" black"),))
    nothing = understood({"chosen": "Yes", "rejected": "You"})
    assert (nothing.prompt, nothing.completions) == ((), ((Piece("Yes"),), (Piece("You"),)))
    longer = understood({"chosen": "a b", "rejected": "a b c"})
    assert longer.completions == ((Piece(" b"),), (Piece(" b c"),))


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab \n", max_size=8), st.text(alphabet="ab \n", max_size=8), st.text(alphabet="ab \n", max_size=8)
)
def test_the_common_beginning_is_one_and_leaves_something(beginning: str, one: str, other: str) -> None:
    chosen, rejected = beginning + one, beginning + other
    try:
        prompt, a, b = split_text(Row("f", 1, {}), ("chosen", "rejected"), chosen, rejected)
    except DataError:
        # Nothing of its own: one says no more than the beginning of the other.
        one_in_other = chosen.startswith(rejected.rstrip()) or rejected.startswith(chosen.rstrip())
        assert one_in_other or chosen.strip() == rejected.strip()
        return
    assert (prompt + a, prompt + b) == (chosen, rejected)
    assert a.strip()
    assert b.strip()
    assert prompt == "" or (not prompt[-1].isspace() and a[0].isspace() and b[0].isspace())


def test_the_prompt_of_a_preference_of_messages() -> None:
    shared = [SYSTEM, user("A"), assistant("B"), user("C")]
    example = understood({"chosen": [*shared, assistant("D")], "rejected": [*shared, assistant("E")]})
    assert example.prompt == (Turn("system", "S"), Turn("user", "A"), Turn("assistant", "B"), Turn("user", "C"))
    assert example.completions == ((Turn("assistant", "D"),), (Turn("assistant", "E"),))
    # They part earlier: the completions are the rest, whose first turn is the assistant's.
    parted = understood(
        {
            "chosen": [user("A"), assistant("B"), user("C"), assistant("D")],
            "rejected": [user("A"), assistant("B"), user("X"), assistant("D")],
        }
    )
    assert parted.prompt == (Turn("user", "A"),)
    assert [len(c) for c in parted.completions] == [3, 3]


def test_a_plain_prompt_beside_whole_conversations_is_passed_over() -> None:
    row = {"prompt": "A", "chosen": [user("A"), assistant("B")], "rejected": [user("A"), assistant("C")]}
    assert understood(row).prompt == (Turn("user", "A"),)


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, 1.0), (False, -1.0), (1, 1.0), (0, -1.0), ("true", 1.0), ("False", -1.0), ("0", -1.0)],
)
def test_labels(value: Any, label: float) -> None:
    assert understood({"prompt": "Q", "completion": "A", "label": value}).labels == (label,)


def test_rewards_are_given_or_pending() -> None:
    one = understood({"prompt": "Q", "completion": "A", "reward": "0.25"})  # CSV has only text
    assert (one.completions, one.labels) == (((Piece("A"),),), (0.25,))
    logged = {"prompt": "Q", "completions": [" A", " B", " A"], "rewards": [0, -1.5, 2]}
    group = understood(logged, completion_template="{completion}!")
    assert group.completions == tuple((Piece(said), Piece("!", literal=True)) for said in (" A", " B", " A"))
    assert group.labels == (0.0, -1.5, 2.0)
    spoken = understood({"prompt": [user("Q")], "completions": [[assistant("A")], [assistant("B")]], "rewards": [1, 0]})
    assert spoken.completions == ((Turn("assistant", "A"),), (Turn("assistant", "B"),))
    for fields, count in (({"completion": "A"}, 1), ({"completions": ["A", "B"]}, 2)):
        pending = understood({"prompt": "Q", **fields}, kind="rewarded")
        assert len(pending.labels) == count
        assert all(label is not None and math.isnan(label) for label in pending.labels)


P = {"prompt": "Q"}
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    # A row, settings, the field named, and the message from "found" on.
    "null": ({"prompt": None, "completion": "A"}, {}, "prompt", "found null; expected text"),
    "a number": ({**P, "completion": 4}, {}, "completion", "found a number; expected text"),
    "a truth value": ({**P, "completion": True}, {}, "completion", "found true or false; expected text"),
    "an object": ({**P, "completion": {}}, {}, "completion", "found an object; expected text"),
    "a list": ({**P, "completion": ["A"]}, {}, "completion", "found a list; expected text"),
    "empty": ({**P, "completion": ""}, {}, "completion", "found empty text; expected text"),
    "white": ({"prompt": " \n\t", "completion": "A"}, {}, "prompt", "found only white space; expected text"),
    "missing": ({"completion": "A"}, {"kind": "prompt_completion"}, "prompt", "found no such field"),
    "mapped": ({"q": None}, {"columns": {"prompt": "q"}}, "q", "found null; expected text"),
    "templated": ({"q": None}, {"prompt_template": "{q}"}, "q", "found null; expected text"),
    "messages for text": ({"text": [user("A")]}, {}, "text", "found a list; expected text"),
    "text for messages": ({"messages": "A"}, {}, "messages", "found text; expected a list of"),
    "no messages": ({"messages": []}, {}, "messages", "found an empty list; expected at least one message"),
    "not a message": ({"messages": [user("A"), "B"]}, {}, "messages[1]", "found text; expected a message"),
    "no role": ({"messages": [{"content": "A"}]}, {}, "messages[0]", "found the keys 'content'; expected"),
    "other names": ({"messages": [{"from": "human", "value": "A"}]}, {}, "messages[0]", 'Rename "from" to "role"'),
    "unknown role": (
        {"messages": [{"role": "human", "content": "A"}]}, {}, "messages[0].role",
        "found the role 'human'; expected one of system, user, assistant. Perhaps 'user' is meant.",
    ),
    "a role that is no text": ({"messages": [{"role": 3, "content": "A"}]}, {}, "messages[0].role", "found a number"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, {}, "messages[0].content", "found null"),
    "a tool": (
        {"messages": [user("A"), assistant("B") | {"tool_calls": [1]}]}, {}, "messages[1].tool_calls", "found a value",
    ),
    "two system turns": ({"messages": [SYSTEM, SYSTEM, user("A")]}, {}, "messages[1]", "found a second system turn"),
    "system in the middle": ({"messages": [user("A"), SYSTEM]}, {}, "messages[1]", "found a system turn in the middle"),
    "only system": ({"messages": [SYSTEM]}, {}, "messages[1]", "found nothing after the system turn"),
    "assistant first": ({"messages": [assistant("A"), user("B")]}, {}, "messages[0]", "found an assistant's turn"),
    "user last": (
        {"messages": [user("A"), assistant("B"), user("C")]}, {}, "messages[2]",
        "found a last turn of the user; expected a last turn of the assistant",
    ),
    "an answered prompt": ({"prompt": [user("A"), assistant("B")]}, {}, "prompt[1]", "found a last turn of the assist"),
    "a user's completion": (
        {"prompt": [user("A")], "completion": [user("B")]}, {}, "completion[0].role", "found the role 'user'",
    ),
    "a system turn in a completion": (
        {"prompt": [user("A")], "completion": [assistant("B"), SYSTEM, assistant("B")]}, {}, "completion[1].role",
        "found the role 'system'",
    ),
    "text after messages": ({"prompt": [user("A")], "completion": "B"}, {}, "completion", "found text"),
    "a tie": ({**P, "chosen": "A", "rejected": " A"}, {}, "rejected", "found the same as 'chosen'; expected two"),
    "a tie without a prompt": ({"chosen": "A b", "rejected": "A b "}, {}, "rejected", "found the same as 'chosen'"),
    "a tie of messages": (
        {"chosen": [user("A"), assistant("B")], "rejected": [user("A"), assistant("B")]}, {}, "rejected",
        "found the same as 'chosen'; expected two different completions",
    ),
    "nothing in common": (
        {"chosen": [user("A"), assistant("B")], "rejected": [user("X"), assistant("B")]}, {}, "chosen",
        "found conversations that share no turn",
    ),
    "no margin": ({**P, "chosen": "A", "rejected": "B", "margin": None}, {}, "margin", "found null; expected a finite"),
    "margin NaN": ({**P, "chosen": "A", "rejected": "B", "margin": float("nan")}, {}, "margin", "expected a finite"),
    "margin text": ({**P, "chosen": "A", "rejected": "B", "margin": "x"}, {}, "margin", "found text"),
    "reward null": ({**P, "completion": "A", "reward": None}, {}, "reward", "found null; expected a finite number"),
    "reward NaN": ({**P, "completion": "A", "reward": math.nan}, {}, "reward", "found nan; expected a finite number"),
    "reward true": ({**P, "completion": "A", "reward": True}, {}, "reward", "found true or false; expected a finite"),
    "reward 1e30": ({**P, "completion": "A", "reward": 1e30}, {}, "reward", "found 1e+30; expected a reward within"),
    "mapped reward": (
        {**P, "completion": "A", "r": "x"}, {"columns": {"reward": "r"}}, "r", "found text; expected a finite number",
    ),
    "no list of completions": ({**P, "completions": "A", "rewards": [1]}, {}, "completions", "found text; expected a"),
    "no completions": ({**P, "completions": [], "rewards": []}, {}, "completions", "found an empty list; expected at"),
    "an empty completion": (
        {**P, "completions": ["A", " "], "rewards": [1, 2]}, {}, "completions[1]", "found only white space",
    ),
    "too few rewards": (
        {**P, "completions": ["A", "B", "C"], "rewards": [1, 2]}, {}, "rewards",
        "found 2 rewards; expected one for each of the 3 completions",
    ),
    "one reward NaN": (
        {**P, "completions": ["A", "B"], "rewards": [1, math.nan]}, {}, "rewards[1]", "found nan; expected a finite",
    ),
    "one reward null": (
        {**P, "completions": ["A", "B"], "rewards": [None, 1]}, {}, "rewards[0]", "found null; expected a finite",
    ),
    "text among messages": (
        {"prompt": [user("A")], "completions": [[assistant("B")], "C"], "rewards": [1, 2]}, {}, "completions[1]",
        "found text; expected a list of",
    ),
    "label null": ({**P, "completion": "A", "label": None}, {}, "label", "found null; expected true or false"),
    "label 2": ({**P, "completion": "A", "label": 2}, {}, "label", "found 2; expected true or false"),
    "label text": ({**P, "completion": "A", "label": "good"}, {}, "label", "found text; expected true or false"),
    "an empty turn": (
        {"chosen": "\n\nHuman: A\n\nAssistant: ", "rejected": "\n\nHuman: A\n\nAssistant: B"}, {}, "chosen[1]",
        "found only white space; expected text",
    ),
}  # fmt: skip


@pytest.mark.fault("D3", "D4", "D5")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_row_and_field(name: str) -> None:
    fields, spec, field, words = FAULTS[name]
    layout = detect({**dict.fromkeys(["prompt", "completion"]), **fields} if name == "missing" else fields,
                    DataSpec("rows.jsonl", **spec))  # fmt: skip
    with pytest.raises(DataError) as error:
        parse_row(Row("rows.jsonl", 7, fields), 6, layout)
    assert (error.value.line, error.value.field) == (7, field)
    assert str(error.value).startswith(f"rows.jsonl, line 7, field '{field}': found ")
    assert words in str(error.value)


@pytest.mark.fault("D12")
def test_a_scan_counts_everything_that_is_wrong() -> None:
    good = {"prompt": "Q", "completion": "A", "id": 1}
    rows = [
        good,
        {"prompt": None, "completion": "A"},
        good | {"id": 2},
        {"prompt": "Q"},
        {"prompt": 3, "completion": "A"},
    ]
    path = jsonl(rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write("broken\n" + '{"prompt": "Q", "completion": "A"')
    rejected: list[tuple[int | None, bool]] = []
    report = scan(DataSpec(path), lambda error, fields: rejected.append((error.line, fields is None)))
    assert (report.kind, report.rows, report.used, report.bad) == ("prompt_completion", 7, 2, 5)
    assert rejected == [(6, True), (7, True), (2, False), (4, False), (5, False)]
    assert sorted(p.line or 0 for p in report.problems) == [2, 4, 5, 6, 7]
    assert dict(report.faults)["prompt: expected text"] == 2
    assert (report.duplicates, report.duplicate_rows) == (1, ((2, 0),))
    assert "5 that cannot be used" in str(report)
    assert f"{path}, line 4, field 'completion': found no such field" in str(report)


def test_a_scan_keeps_few_of_many_problems() -> None:
    report = scan(DataSpec(jsonl([{"prompt": i, f"x{i}": 0} for i in range(3000)]), kind="prompt_only"))
    assert (report.bad, len(report.problems), report.faults) == (3000, 20, (("prompt: expected text", 3000),))
    assert len(str(report)) < 20_000


def test_ranges_over_several_files() -> None:
    paths = tuple(jsonl([{"text": f"{k}{i}"} for i in range(4)]) for k in "ab")
    report = scan(DataSpec(paths, start=3, stop=6))
    assert (report.rows, len(report.files)) == (3, 2)
    with pytest.raises(DataError, match="no rows from 9 on"):
        scan(DataSpec(paths, start=9))


@pytest.mark.parametrize(
    "spec",
    [{"kind": "sft"}, {"path": ()}, {"start": -1}, {"start": 3, "stop": 3}, {"max_length": 1}, {"overlong": "cut"}],
)
def test_settings_that_mean_nothing(spec: dict[str, Any]) -> None:
    values: dict[str, Any] = {"path": "r.jsonl"} | spec
    with pytest.raises(GroError):
        DataSpec(**values)
