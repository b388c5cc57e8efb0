"""Rewards for form: regular expressions, tags, JSON.

A regular expression may take exponential time on the wrong text.  It is the recipe's, the text is the model's, and both
meet in a process that is killed at the limit: the sample fails, nothing else happens.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gro.errors import GroError
from gro.rewards.functions import Params, reward
from gro.rewards.rules import code_in, gold_column, normalised, text_of

MOST_JSON = 1 << 20
"""Characters."""


def _check_pattern(params: Params) -> None:
    pattern = params.get("pattern")
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern is a regular expression, not {pattern!r}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    group = params.get("group", 1 if compiled.groups else 0)
    if group != 0 and group not in compiled.groupindex and not (type(group) is int and 0 < group <= compiled.groups):
        names = ", ".join(map(repr, compiled.groupindex)) or "none with a name"
        raise ValueError(f"group {group!r}: the pattern has {compiled.groups} groups, {names}")
    _check_choice(params, "match", ("anywhere", "whole", "start"))
    _check_choice(params, "take", ("last", "first"))


def _check_choice(params: Params, key: str, choices: Sequence[str]) -> None:
    if (value := params.get(key, choices[0])) not in choices:
        raise ValueError(f"{key} is {' or '.join(choices)}, not {value!r}")


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str, ignore_case: bool, dot_all: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE * ignore_case | re.DOTALL * dot_all)


@reward(
    samplewise=True,
    time_limit=2.0,
    options=("pattern", "match", "ignore_case", "dot_all"),
    check=_check_pattern,
)
def regex(
    completions: Sequence[Any],
    *,
    pattern: str,
    match: Literal["anywhere", "whole", "start"] = "anywhere",
    ignore_case: bool = False,
    dot_all: bool = True,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion matches a regular expression, else 0.

    pattern: in Python's syntax.  match: anywhere in the text, the whole of it, or at its start.  ignore_case: capitals
    equal small letters.  dot_all: `.` also stands for the end of a line.

    >>> regex(["The answer is 4.", "It is 4."], pattern=r"answer is \\d+")
    [1.0, 0.0]
    """
    compiled = _compiled(pattern, ignore_case, dot_all)
    look: Mapping[str, Callable[[str], Any]] = {
        "anywhere": compiled.search,
        "whole": compiled.fullmatch,
        "start": compiled.match,
    }
    return [float(look[match](text_of(completion)) is not None) for completion in completions]


@reward(
    samplewise=True,
    time_limit=2.0,
    options=("pattern", "group", "take", "column", "ignore_case", "dot_all"),
    check=_check_pattern,
)
def regex_answer(
    completions: Sequence[Any],
    *,
    pattern: str,
    group: int | str | None = None,
    take: Literal["last", "first"] = "last",
    column: str | None = None,
    ignore_case: bool = False,
    dot_all: bool = True,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where what a regular expression finds is the text of a column, normalised as in `normalised_match`, else 0.

    None where the row has none.  pattern: in Python's syntax.  group: which group holds the answer, by number or name;
    by default the first, or the whole match of a pattern without groups.  take: the last match or the first.  column:
    the right text; by default `solution`, else `answer`.  ignore_case: capitals equal small letters in the pattern.
    dot_all: `.` also stands for the end of a line.

    >>> regex_answer(["Answer: (B) or rather Answer: (c)"], pattern=r"Answer: \\((\\w)\\)", solution=["C"])
    [1.0]
    """
    compiled = _compiled(pattern, ignore_case, dot_all)
    which = group if group is not None else min(1, compiled.groups)
    scores: list[float | None] = []
    for completion, gold in zip(completions, gold_column(columns, column), strict=True):
        matches = compiled.finditer(text_of(completion))
        found = next(matches, None) if take == "first" else next(reversed(list(matches)), None)
        said = found.group(which) if found is not None else None
        right = said is not None and gold is not None and normalised(said) == normalised(str(gold))
        scores.append(None if gold is None else float(right))
    return scores


def _check_tags(params: Params) -> None:
    tags = params.get("tags", ["think", "answer"])
    if not isinstance(tags, list | tuple) or not tags or not all(isinstance(t, str) and t.strip() for t in tags):
        raise ValueError(f"tags is a list of names such as [think, answer], not {tags!r}")
    if len(set(tags)) < len(tags):
        raise ValueError(f"tags: each must stand once, and there are {list(tags)}")


@reward(samplewise=True, time_limit=2.0, options=("tags", "opened", "around", "partial"), check=_check_tags)
def tag_format(
    completions: Sequence[Any],
    *,
    tags: Sequence[str] = ("think", "answer"),
    opened: bool = False,
    around: bool = False,
    partial: bool = False,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion is `<think>…</think><answer>…</answer>`: each tag once, in order, none empty; else 0.

    tags: their names, in order.  opened: the prompt ends with the first opening tag, so the completion begins inside.
    around: other text may stand before, between and after; else only white space.  partial: the share of opening and
    closing tags that stand exactly once, of those that must, where the form is not complete.

    >>> tag_format(["<think>2+2</think> <answer>4</answer>", "<answer>4</answer>"])
    [1.0, 0.0]
    """
    return [_tag_score(text_of(completion), tags, opened, around, partial) for completion in completions]


def _tag_score(text: str, tags: Sequence[str], opened: bool, around: bool, partial: bool) -> float:
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    once = [text.count(mark) == (0 if opened and at == 0 else 1) for at, mark in enumerate(marks)]
    share = sum(once) / len(once) if partial else 0.0
    if not all(once):
        return share
    text = marks[0] + text if opened else text
    places = [text.index(mark) for mark in marks]
    if places != sorted(places):
        return share
    ends = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
    within = [text[a:b] for a, b in zip(ends[0::2], places[1::2], strict=True)]
    outside = [text[a:b] for a, b in zip([0, *ends[1::2]], [*places[0::2], len(text)], strict=True)]
    if not all(part.strip() for part in within) or (not around and any(part.strip() for part in outside)):
        return share
    return 1.0


def _check_schema(params: Params) -> None:
    """Raises where the schema is none, or the library that knows schemas is not there."""
    if "schema" not in params and "schema_column" not in params:
        return
    if importlib.util.find_spec("jsonschema") is None:
        raise GroError("json_format checks a schema with the package jsonschema: pip install 'gro[json]'")
    if (schema := params.get("schema")) is not None:
        _validator(json.dumps(schema))


@functools.lru_cache(maxsize=64)
def _validator(schema_text: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = json.loads(schema_text)
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"schema is no JSON schema: {error.message} at {error.json_path}") from error
    # An empty registry: a $ref to an address is an error and not a request.
    return kind(schema, registry=Registry())


@reward(samplewise=True, time_limit=2.0, options=("schema", "schema_column", "fenced"), check=_check_schema)
def json_format(
    completions: Sequence[Any],
    *,
    schema: Mapping[str, Any] | bool | None = None,
    schema_column: str | None = None,
    fenced: bool = False,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion is JSON (RFC 8259), and follows a JSON schema where there is one, else 0.

    schema: the schema, written in the recipe.  schema_column: a column with each row's schema, as a mapping or as JSON
    text; None where a row has none.  fenced: the JSON is the last fenced block, if there is one.  `NaN`, repeated keys
    and text around the JSON are errors.

    >>> json_format(['{"a": 1}', '{"a": 1,}'], schema={"required": ["a"]})
    [1.0, 0.0]
    """
    rows = [schema] * len(completions) if schema_column is None else gold_column(columns, schema_column)
    scores: list[float | None] = []
    for completion, row in zip(completions, rows, strict=True):
        if schema_column is not None and row is None:
            scores.append(None)
            continue
        text = text_of(completion)
        text = code_in(text) if fenced else text
        validator = None if row is None else _validator(row if isinstance(row, str) else json.dumps(row))
        scores.append(float(_is_json(text, validator)))
    return scores


def _is_json(text: str, validator: Any) -> bool:
    if len(text) > MOST_JSON:
        return False
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return False
    return validator is None or bool(validator.is_valid(value))


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return found
