"""Conversations: messages and raw transcripts to turns, with every fault named by row, field and turn."""

from __future__ import annotations

import re
from typing import Any

from gro.data._lines import Row, type_name
from gro.data.spec import Turn
from gro.errors import closest

ROLES = ("system", "user", "assistant")
_MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
_UNUSED = ("tool_calls", "tool_call_id", "function_call", "reasoning_content", "thinking", "reasoning", "images")
"""Keys of a message that change what is said: leaving them out would train on something else."""

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TURN_OF = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def parse_text(row: Row, column: str, value: Any) -> str:
    """The value if it is text with something in it."""
    if not isinstance(value, str):
        raise row.error(column, found=type_name(value), expected="text")
    if not value.strip():
        raise row.error(column, found="only white space" if value else "empty text", expected="text")
    if "\0" in value:
        raise row.error(column, found="a NUL character", expected="text")
    return value


def parse_turns(row: Row, column: str, value: Any) -> tuple[Turn, ...]:
    """A list of {"role", "content"} with something in it; which order makes sense is the caller's to check."""
    if not isinstance(value, list):
        raise row.error(column, found=type_name(value), expected='a list of {"role": …, "content": …}')
    if not value:
        raise row.error(column, found="an empty list", expected="at least one message")
    return tuple(_turn(row, column, i, message) for i, message in enumerate(value))


def _turn(row: Row, column: str, i: int, message: Any) -> Turn:
    at = f"{column}[{i}]"
    if not isinstance(message, dict):
        raise row.error(at, found=type_name(message), expected="a message with role and content")
    missing = [k for k in ("role", "content") if k not in message]
    if missing:
        fix = 'Rename "from" to "role" and "value" to "content".' if "from" in message else ""
        raise row.error(at, found=f"the keys {_some(list(message))}", expected=f"the key {missing[0]!r}", fix=fix)
    for key in _UNUSED:
        if message.get(key):
            raise row.error(f"{at}.{key}", found="a value", expected="messages of role and content only")
    role = message["role"]
    if role not in ROLES:
        found = f"the role {role[:40]!r}" if isinstance(role, str) else type_name(role)
        meant = _MEANT.get(role.lower()) if isinstance(role, str) else None
        fix = f"Perhaps {meant!r} is meant." if meant else ""
        raise row.error(f"{at}.role", found=found, expected=f"one of {', '.join(ROLES)}", fix=fix)
    return Turn(role, parse_text(row, f"{at}.content", message["content"]))


def check_turns(row: Row, column: str, turns: tuple[Turn, ...], *, last: str) -> tuple[Turn, ...]:
    """The conversation, if it starts with at most one system turn, then a user's, and ends with one of role `last`."""
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            found = "a second system turn" if turns[0].role == "system" else "a system turn in the middle"
            raise row.error(f"{column}[{i}]", found=found, expected="at most one system turn, and that first")
    first = 1 if turns[0].role == "system" else 0
    if first == len(turns) or turns[first].role != "user":
        found = "an assistant's turn" if first < len(turns) else "nothing after the system turn"
        raise row.error(f"{column}[{first}]", found=found, expected="a user's turn first")
    if turns[-1].role != last:
        found = f"a last turn of the {turns[-1].role}"
        raise row.error(f"{column}[{len(turns) - 1}]", found=found, expected=f"a last turn of the {last}")
    return turns


def is_transcript(text: Any) -> bool:
    """Whether this is the form of the HH data: "\\n\\nHuman: … \\n\\nAssistant: …"."""
    if not isinstance(text, str):
        return False
    speakers = [m.group(1) for m in _SPEAKER.finditer(text)]
    return bool(_SPEAKER.match(text)) and speakers[0] == "Human" and "Assistant" in speakers


def parse_transcript(row: Row, column: str, text: str) -> tuple[Turn, ...]:
    """The turns of a transcript; white space around each is not part of it."""
    marks = list(_SPEAKER.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    turns = []
    for i, (mark, end) in enumerate(zip(marks, ends, strict=True)):
        content = parse_text(row, f"{column}[{i}]", text[mark.end() : end])
        turns.append(Turn(_TURN_OF[mark.group(1)], content.strip()))
    return tuple(turns)


def split_turns(
    row: Row, columns: tuple[str, str], chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]
) -> tuple[tuple[Turn, ...], tuple[Turn, ...], tuple[Turn, ...]]:
    """Prompt and the two completions: the prompt is what both have in common, up to an assistant's turn."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if n == len(chosen) == len(rejected):
        raise row.error(columns[1], found=f"the same as {columns[0]!r}", expected="two different completions")
    while n > 0 and not (n < min(len(chosen), len(rejected)) and chosen[n].role == rejected[n].role == "assistant"):
        n -= 1
    if n == 0:
        found = "conversations that share no turn before an assistant's"
        raise row.error(columns[0], found=found, expected="a common beginning, which is the prompt")
    return chosen[:n], chosen[n:], rejected[n:]


def split_text(row: Row, columns: tuple[str, str], chosen: str, rejected: str) -> tuple[str, str, str]:
    """The same for plain text: the common beginning, back to where a word begins, which may be nothing."""
    if chosen.strip() == rejected.strip():
        raise row.error(columns[1], found=f"the same as {columns[0]!r}", expected="two different completions")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))  # noqa: B905
    # The space belongs to the word behind it, as in most vocabularies.
    while n > 0 and not (
        not chosen[n - 1].isspace() and all(len(t) > n and t[n].isspace() for t in (chosen, rejected))
    ):
        n -= 1
    for column, text in zip(columns, (chosen, rejected), strict=True):
        if not text[n:].strip():
            raise row.error(column, found="no more than what both have in common", expected="a completion of its own")
    return chosen[:n], chosen[n:], rejected[n:]


def nearest(name: str, names: list[str]) -> str | None:
    """The name most like it, if any is."""
    return closest(name, names, 0.7)


def _some(names: list[Any]) -> str:
    shown = ", ".join(repr(n) if isinstance(n, str) else type_name(n) for n in names[:8])
    return shown + (", …" if len(names) > 8 else "") if names else "none"
