"""Rewards by rule: ordinary reward functions with TRL's signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
