"""Rewards by rule: values by hand, form by form; what a recipe may not say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import math
import re
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.errors import GroError
from gro.rewards.batch import Trouble
from gro.rewards.cosine import cosine_length
from gro.rewards.formats import json_format, regex, regex_answer, tag_format
from gro.rewards.lengths import length, repetition
from gro.rewards.loading import load
from gro.rewards.pool import Pool
from gro.rewards.rules import normalised, normalised_match


@pytest.mark.parametrize("module", ["cosine", "formats", "lengths", "maths", "registry", "rules", "spec"])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gro.rewards.{module}"))
    assert result.failed == 0
    assert result.attempted > 0


# --- normalised match ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The cat", "cat."),
        ("  two\n words ", "Two Words!"),
        ("U.S.", "US"),
        ("1,000", "1000.0"),
        ("$5", "5.00"),
        ("3/4", "0.75"),
        ("50%", "50.0%"),
        ("ﬁve ①", "five 1"),  # NFKC: a ligature, a number in a circle
        ("café", "cafe\u0301"),
        ("STRASSE", "straße"),
        ("-7", "(-7)."),
        ("“quoted”", "quoted"),
        (".5", "0.5"),
        ("A", "a)"),
    ],
)
def test_what_is_the_same(a: str, b: str) -> None:
    assert normalised(a) == normalised(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("cat", "cats"), ("A", "the"), ("+", "-"), ("5%", "5"), ("-5", "5"), ("1.5", "15"), ("", "a"), ("5 6", "56")],
)
def test_what_is_not(a: str, b: str) -> None:
    assert normalised(a) != normalised(b)


def test_differences_can_be_kept() -> None:
    differ = {
        "keep_case": ("Paris", "paris"),
        "keep_punctuation": ("U.S.", "US"),
        "keep_articles": ("the cat", "cat"),
        "keep_numbers": ("1000.0", "1000"),
    }
    for option, (a, b) in differ.items():
        assert normalised_match([a], solution=[b]) == [1.0]
        assert normalised_match([a], solution=[b], **{option: True}) == [0.0], option  # type: ignore[arg-type]
    assert normalised_match(["x", "x", "x"], answer=[["y", "X"], None, []]) == [1.0, None, 0.0]


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_that_matters(text: str) -> None:
    assert normalised_match([text], solution=[text]) == [1.0]
    assert normalised_match([f" {text}\n"], solution=[text]) == [1.0]


# --- regular expressions ---------------------------------------------------------------------------------------------


def test_regex() -> None:
    texts = ["ab", "xab", "AB", "a\nb"]
    assert regex(texts, pattern="ab") == [1.0, 1.0, 0.0, 0.0]
    assert regex(texts, pattern="ab", match="start") == [1.0, 0.0, 0.0, 0.0]
    assert regex([*texts, "abc"], pattern="ab", match="whole") == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert regex(texts, pattern="ab", ignore_case=True) == [1.0, 1.0, 1.0, 0.0]
    assert regex(texts, pattern="a.b") == [0.0, 0.0, 0.0, 1.0]
    assert regex(texts, pattern="a.b", dot_all=False) == [0.0] * 4
    assert regex([[{"role": "assistant", "content": "ab"}]], pattern="ab") == [1.0]


def test_regex_answer() -> None:
    texts = ["#3 then #4", "none", "#4"]
    golds: dict[str, Any] = {"answer": ["4.0", "4", None]}
    assert regex_answer(texts, pattern=r"#(\d+)", **golds) == [1.0, 0.0, None]
    assert regex_answer(texts, pattern=r"#(\d+)", take="first", **golds) == [0.0, 0.0, None]
    assert regex_answer(texts, pattern=r"(#)(?P<n>\d+)", group="n", **golds) == [1.0, 0.0, None]
    assert regex_answer(["a"], pattern="a|b", column="gold", gold=["A"]) == [1.0]
    assert regex_answer(["x"], pattern="(y)|x", solution=["y"]) == [0.0]  # a group that took no part


@pytest.mark.fault("R4")
def test_a_catastrophic_expression_fails_its_sample_alone() -> None:
    texts = ["aaa", "a" * 60 + "!", "aa"]
    with Pool("regex", {"pattern": "(a+)+$", "match": "whole"}, time_limit=0.5) as pool:
        scores = pool.score({"completions": texts}).scores
    assert (scores[0], scores[2]) == (1.0, 1.0)
    assert isinstance(scores[1], Trouble)
    assert scores[1].kind == "hung"


# --- tags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think> </think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<THINK>a</THINK><answer>b</answer>", 0.0),
        ("a</think><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tags(text: str, score: float) -> None:
    assert tag_format([text]) == [score]


def test_tags_of_ones_own() -> None:
    assert tag_format(["<a>1</a>"], tags=["a"]) == [1.0]
    assert tag_format(["1</think><answer>2</answer>", "<think>1</think><answer>2</answer>"], opened=True) == [1.0, 0.0]
    assert tag_format(["x <think>1</think> y <answer>2</answer> z"], around=True) == [1.0]
    assert tag_format(["<think>1</think>", "<think>1</think><answer>", "x", "</think><think>"], partial=True) == [
        0.5,
        0.75,
        0.0,
        0.5,
    ]


# --- JSON ------------------------------------------------------------------------------------------------------------

PERSON = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "age": {"minimum": 0}}}


def test_json() -> None:
    good = ['{"a": [1, null]}', ' "x" ', "3"]
    bad = ["", "{", '{"a": 1,}', "{'a': 1}", "NaN", "[Infinity]", '{"a": 1, "a": 2}', 'so {"a": 1}', "[" * 10**5]
    assert json_format(good) == [1.0] * 3
    assert json_format(bad) == [0.0] * len(bad)
    assert json_format(["Here:\n```json\n{}\n```\n"], fenced=True) == [1.0]
    assert json_format(["{}"], fenced=True) == [1.0]
    assert json_format(["Here:\n```json\n{}\n```\n"]) == [0.0]


def test_json_schema() -> None:
    texts = ['{"name": "x"}', '{"name": 3}', '{"age": 3}', '{"name": "x", "age": -1}', "[]"]
    assert json_format(texts, schema=PERSON) == [1.0, 0.0, 0.0, 0.0, 0.0]
    columns: dict[str, Any] = {"form": [PERSON, '{"type": "array"}', None]}
    assert json_format(["[]", "[]", "["], schema_column="form", **columns) == [0.0, 1.0, None]
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "exclusiveMinimum": True, "minimum": 3}
    assert json_format(["3", "4"], schema=old) == [0.0, 1.0]  # a draft in which that is a boolean


@pytest.mark.fault("R6")
def test_a_schema_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    asked: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **_: asked.append(a))
    with pytest.raises(Exception, match="Unresolvable"):
        json_format(["3"], schema={"$ref": "http://127.0.0.1:9/schema.json"})
    assert asked == []


def test_without_jsonschema_only_a_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load("json_format").name == "json_format"
    with pytest.raises(GroError, match=re.escape("pip install 'gro[json]'")):
        load("json_format", {"schema": PERSON})


# --- length and repetition -------------------------------------------------------------------------------------------


def ids(*lengths: int) -> list[list[int]]:
    return [list(range(n)) for n in lengths]


def test_length() -> None:
    tokens = ids(0, 5, 10, 15, 20, 30)
    texts = [""] * 6
    assert length(texts, tokens, most=10) == [0.0, 0.0, 0.0, -0.5, -1.0, -1.0]
    assert length(texts, tokens, least=10) == [-1.0, -0.5, 0.0, 0.0, 0.0, 0.0]
    assert length(texts, tokens, least=10, most=10, scale=20) == [-0.5, -0.25, 0.0, -0.25, -0.5, -1.0]
    assert length(["abcd", "a b"], ids(1, 1), most=2, unit="characters") == [-1.0, -0.5]
    assert length(["abcd", "a b c"], ids(9, 9), most=2, unit="words") == [0.0, -0.5]


def test_cosine_length() -> None:
    """Right answers from 1 to 0.5, wrong ones from −1 to −0.5; in the middle the mean; beyond the end the last."""
    tokens = ids(0, 50, 100, 200)
    assert cosine_length(["#### 4"] * 4, tokens, longest=100, answer=["4"] * 4) == pytest.approx([1, 0.75, 0.5, 0.5])
    wrong = cosine_length(["#### 5"] * 4, tokens, longest=100, answer=["4"] * 4)
    assert wrong == pytest.approx([-1, -0.75, -0.5, -0.5])
    (quarter,) = cosine_length(["#### 4"], ids(25), longest=100, answer=["4"], shortest_correct=2, longest_correct=0)
    assert quarter == pytest.approx(1 + math.cos(math.pi / 4))
    assert cosine_length(["4"], ids(1), longest=100, answer=[None]) == [None]
    assert cosine_length(["it is 4"], ids(0), longest=9, answer=["4"], last_number=False) == [-1.0]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_repetition_counts_what_stood_before(tokens: list[int], size: int) -> None:
    grams = Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
    repeated = sum(n - 1 for n in grams.values())
    expected = -2.0 * repeated / grams.total() if grams else 0.0
    assert repetition([""], [tokens], size=size, penalty=-2.0) == pytest.approx([expected])


def test_repetition_of_words() -> None:
    assert repetition(["a b A B a b", "a b c", ""], ids(9, 9, 9), size=2, unit="words") == pytest.approx([-0.6, 0, 0])
    assert str(repetition(["a b c"], ids(3))[0]) == "0.0"  # and not −0


# --- what a recipe may not say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("regex", {}, "pattern is a regular expression, not None"),
        ("regex", {"pattern": "("}, "pattern '(' is no regular expression: missing ), unterminated subpattern"),
        ("regex", {"pattern": "a", "match": "all"}, "match is anywhere or whole or start, not 'all'"),
        ("regex_answer", {"pattern": "a(b)", "group": 2}, "group 2: the pattern has 1 groups, none with a name"),
        ("regex_answer", {"pattern": "(?P<x>b)", "group": "y"}, "group 'y': the pattern has 1 groups, 'x'"),
        ("regex_answer", {"pattern": "a", "take": "any"}, "take is last or first, not 'any'"),
        ("tag_format", {"tags": "think"}, "tags is a list of names such as [think, answer], not 'think'"),
        ("tag_format", {"tags": ["a", "a"]}, "tags: each must stand once"),
        ("json_format", {"schema": {"type": "objekt"}}, "schema is no JSON schema: 'objekt' is not valid"),
        ("length", {}, "give least, most or both"),
        ("length", {"most": 0}, "most must be above 0, not 0"),
        ("length", {"least": 5, "most": 3}, "least (5) is more than most (3)"),
        ("length", {"most": 5, "unit": "bytes"}, "unit is tokens, characters or words, not 'bytes'"),
        ("length", {"most": float("nan")}, "most is a finite number, not nan"),
        ("cosine_length", {}, "give longest"),
        ("cosine_length", {"longest": 9, "longest_wrong": "x"}, "longest_wrong is a finite number, not 'x'"),
        ("repetition", {"size": 0}, "size is a whole number above 0, not 0"),
        ("repetition", {"penalty": 0.5}, "penalty must not be above 0, and is 0.5"),
        ("repetition", {"unit": "characters"}, "unit is tokens or words, not 'characters'"),
        ("normalised_match", {"keep_cas": True}, "has no parameter 'keep_cas'; did you mean 'keep_case'?"),
    ],
)
def test_wrong_parameters_are_refused_at_once(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)) as caught:
        load(name, params)
    assert f"reward {name!r}" in str(caught.value)
