"""Rewards by rule: ordinary reward functions with TRL's signature."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from gro.rewards.answers import plain_number
from gro.rewards.functions import OFFERED, reward

GOLD_COLUMNS = ("solution", "answer")
"""Where the reference answer is looked for: TRL's name first, GSM8K's second."""


@reward(samplewise=True, time_limit=5.0, options=("column", "keep_whitespace", "ignore_case"))
def exact_match(
    completions: Sequence[Any],
    *,
    column: str | None = None,
    keep_whitespace: bool = False,
    ignore_case: bool = False,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion is the text of a column, else 0; None where that row has none.

    column: the column with the right text; by default `solution`, else `answer`.  keep_whitespace: True compares
    literally, else runs of white space count as one space, and none at the ends.  ignore_case: `Yes` equals `yes`.

    >>> exact_match([" 4", "5"], solution=["4", "4"])
    [1.0, 0.0]
    """

    def normal(text: str) -> str:
        text = text if keep_whitespace else " ".join(text.split())
        return text.casefold() if ignore_case else text

    golds = gold_column(columns, column)
    return [
        None if gold is None else float(normal(text_of(completion)) == normal(str(gold)))
        for completion, gold in zip(completions, golds, strict=True)
    ]


_KEEP = ("keep_case", "keep_punctuation", "keep_articles", "keep_numbers")


@reward(samplewise=True, time_limit=5.0, options=("column", *_KEEP))
def normalised_match(
    completions: Sequence[Any],
    *,
    column: str | None = None,
    keep_case: bool = False,
    keep_punctuation: bool = False,
    keep_articles: bool = False,
    keep_numbers: bool = False,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion is the text of a column but for spelling, else 0; None where that row has none.

    Compared are Unicode's compatibility forms (NFKC) without differences of white space.  column: the column with the
    right text, or a list of right ones; by default `solution`, else `answer`.  keep_case: `Paris` differs from
    `paris`.  keep_punctuation: `U.S.` differs from `US`.  keep_articles: `the cat` differs from `cat`.  keep_numbers:
    `1,000.0` differs from `1000`.

    >>> normalised_match(["The  Cat.", "$1,000.00", "dog"], solution=["cat", "1000", ["cat", "hound"]])
    [1.0, 1.0, 0.0]
    """
    keep = (keep_case, keep_punctuation, keep_articles, keep_numbers)
    scores: list[float | None] = []
    for completion, gold in zip(completions, gold_column(columns, column), strict=True):
        right = gold if isinstance(gold, list | tuple) else [gold]
        said = normalised(text_of(completion), *keep)
        scores.append(None if gold is None else float(any(said == normalised(str(text), *keep) for text in right)))
    return scores


_ARTICLES = frozenset(("a", "an", "the"))
_EDGES = "\"'()[]{},;:!?."


def normalised(
    text: str,
    keep_case: bool = False,
    keep_punctuation: bool = False,
    keep_articles: bool = False,
    keep_numbers: bool = False,
) -> str:
    """One spelling for all.  What would leave nothing is not done: `A` may be an answer, and so may `+`.

    >>> normalised("The  U.S. has 50.0 states!")
    'us has 50 states'
    """
    words = unicodedata.normalize("NFKC", text).split()
    words = words if keep_case else [word.casefold() for word in words]
    if not keep_articles:
        words = [word for word in words if word.strip(_EDGES).casefold() not in _ARTICLES] or words
    spelt = []
    for word in words:
        number = None if keep_numbers else plain_number(word.strip(_EDGES) if word[0] != "." else word.rstrip(_EDGES))
        if number is not None:
            spelt.append(f"{number.value}{'%' * number.percent}")
        elif bare := "".join(c for c in word if keep_punctuation or unicodedata.category(c)[0] not in "PS"):
            spelt.append(bare)
    return " ".join(spelt or words)


def gold_column(columns: dict[str, Sequence[Any]], column: str | None) -> Sequence[Any]:
    """The column with the reference answers.  Raises ValueError naming the columns found where there is none."""
    wanted = GOLD_COLUMNS if column is None else (column,)
    for name in wanted:
        if name in columns:
            return columns[name]
    found = ", ".join(sorted(columns.keys() - set(OFFERED))) or "none"
    raise ValueError(f"needs a column {' or '.join(repr(n) for n in wanted)}; columns of the data: {found}")


def text_of(completion: Any) -> str:
    """The text of a completion, which is a string or, in a conversation, a list of messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def code_in(text: str) -> str:
    """The last fenced block (also one that was cut off), or without any the whole text.

    >>> code_in("First:\\n```\\na\\n```\\nbetter:\\n```python\\nb\\n```\\nDone.")
    'b\\n'
    """
    fence, start, found = "", 0, None
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        mark = re.match(r"\s{0,3}(`{3,}|~{3,})\s*(.*)", line)
        if mark is None:
            continue
        if not fence:
            fence, start = mark[1], at + 1
        elif mark[1].startswith(fence) and not mark[2]:
            fence, found = "", lines[start:at]
    if fence:
        found = lines[start:]
    return text if found is None else "".join(found)
