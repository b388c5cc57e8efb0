"""The first batch for people: what is learnt, how strongly, and what is not.

In colour the weights are shades of green (made more probable) and red (less).  Without colour every run of equal
weights is a line that begins with its weight, so that it can be piped and compared; what the data say never begins a
line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gro.preflight.batch import First, Row
from gro.preflight.saying import say
from gro.runs.terminal import number, printable
from gro.types import Completion

ROWS = 6
"""Completions, or prompts, that are shown."""
_HEAD, _TAIL = 48, 24
"""Tokens of a long text that are shown, from its beginning and its end."""
_RUNS = 12
"""Lines of a completion whose weights differ from token to token."""
_NONE = "not learnt"


def show_batch(console: Console, tokenizer: PreTrainedTokenizerBase, first: First) -> None:
    """The first rows of the batch, token by token."""
    colour = console.color_system is not None and not console.no_color
    if first.rows:
        say(console, *_headline(first, colour))
        largest = max((abs(w) for row in first.rows for w in row.weights or ()), default=0.0)
        before = None
        for row in first.rows[:ROWS]:
            if row.group.prompt is not before:
                before = row.group.prompt
                say(console, f"row {before.key + 1}")
                _line(console, "prompt", _cut_text(tokenizer, before.ids), "dim")
            _show_row(console, tokenizer, row, largest if colour else None)
        _more(console, len(first.rows) - ROWS, "completions")
    if first.prompts:
        say(console, f"the first batch also has {len(first.prompts)} prompts to be answered" if first.rows else
            f"the first batch: {len(first.prompts)} prompts to be answered")  # fmt: skip
        for group in first.prompts[:ROWS]:
            _line(console, f"row {group.prompt.key + 1}", _cut_text(tokenizer, group.prompt.ids), "dim")
        _more(console, len(first.prompts) - ROWS, "prompts")


def show_text(console: Console, tokenizer: PreTrainedTokenizerBase, what: str, ids: Sequence[int]) -> None:
    """One text on one line, special tokens and all; the middle of a long one left out."""
    _line(console, what, _cut_text(tokenizer, ids), "dim")


def _headline(first: First, colour: bool) -> Iterator[str]:
    update = f"the first batch: {len(first.rows)} completions, {first.trained} tokens with loss"
    if all(row.weights is None for row in first.rows):
        yield f"{update}; their weights come with the rewards"
        return
    yield f"{update}; a token's weight is what its log-prob is multiplied by in the gradient {first.stance}".rstrip()
    if colour:
        yield "green: made more probable, red: less probable, the brighter the stronger; grey: not learnt"


def _show_row(console: Console, tokenizer: PreTrainedTokenizerBase, row: Row, largest: float | None) -> None:
    """`largest`: of all weights, for shades; None: without colour."""
    completion = row.completion
    ids = completion.ids
    marks = _marks(completion, row.weights)
    if len(marks) > len(ids):  # a reward model's score, behind the last token
        marks = [marks[-1]] * len(ids)
    head, hidden = _cut(len(ids))
    shown = [(i >= head, marks[i], ids[i]) for i in range(len(ids)) if not head <= i < head + hidden]
    runs = [(*key, [i for *_, i in run]) for key, run in groupby(shown, key=lambda item: item[:2])]
    what, gap = _what(completion), f"… {hidden} tokens …"
    if largest is None:
        say(console, f"  {what}")
        for behind, mark, part in runs[:_RUNS]:
            if behind and hidden:
                say(console, f"  {gap}")
                hidden = 0
            _line(console, f"[{mark}]", _decoded(tokenizer, part), "")
        _more(console, len(runs) - _RUNS, "runs of equal weight")
        return
    text = Text(f"  {what} ({_range(row.weights)}): ")
    for behind, mark, part in runs:
        if behind and hidden:
            text.append(f" {gap} ", style="dim")
            hidden = 0
        text.append(_decoded(tokenizer, part), style=_shade(mark, largest))
    console.print(text, soft_wrap=True)


def _marks(completion: Completion, weights: Sequence[float] | None) -> list[str]:
    """Of each token, as it is shown: its weight, or that it has none."""
    trained = completion.trained or (True,) * len(completion.ids)
    if completion.role == "mismatch":
        return [_NONE] * len(completion.ids)
    if weights is None:
        return ["learnt" if learnt else _NONE for learnt in trained]
    if len(weights) > len(completion.ids):
        return [_signed(w) for w in weights]
    return [_signed(w) if learnt else _NONE for w, learnt in zip(weights, trained, strict=True)]


def _signed(weight: float) -> str:
    return number(weight) if weight <= 0 else f"+{number(weight)}"


def _what(completion: Completion) -> str:
    if completion.role == "mismatch":
        return "another prompt's completion, for the KL estimate"
    if completion.role == "target":
        return "demonstration"
    return (
        "completion, to be judged" if completion.reward is None else f"completion, reward {number(completion.reward)}"
    )


def _range(weights: Sequence[float] | None) -> str:
    found = sorted({_signed(w): w for w in weights or () if w}.items(), key=lambda item: item[1])
    if not found:
        return "weight 0" if weights is not None else "weights come with rewards"
    return f"weight {found[0][0]}" if len(found) == 1 else f"weights {found[0][0]} to {found[-1][0]}"


def _shade(mark: str, largest: float) -> str:
    if mark == _NONE:
        return "bright_black"
    if mark in ("learnt", "0"):
        return "default"
    share = min(1.0, abs(float(mark)) / largest) if largest else 0.0
    level = 110 + round(145 * share)
    return f"rgb(60,{level},60)" if not mark.startswith("-") else f"rgb({level},60,60)"


def _cut(tokens: int) -> tuple[int, int]:
    """(tokens before what is left out, tokens left out)."""
    hidden = tokens - _HEAD - _TAIL
    return (_HEAD, hidden) if hidden > _TAIL else (tokens, 0)


def _cut_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    head, hidden = _cut(len(ids))
    if not hidden:
        return _decoded(tokenizer, ids)
    return f"{_decoded(tokenizer, ids[:head])} … {hidden} tokens … {_decoded(tokenizer, ids[head + hidden :])}"


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return printable(str(tokenizer.decode(list(ids))), "⏎")


def _line(console: Console, what: str, text: str, style: str) -> None:
    console.print(Text(f"  {what:<12} "), Text(text, style=style), sep="", soft_wrap=True)


def _more(console: Console, count: int, what: str) -> None:
    if count > 0:
        say(console, f"  … and {count} {what} more")
