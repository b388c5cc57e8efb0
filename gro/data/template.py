"""Conversations to text by a chat template, knowing of every stretch of the text who wrote it.

The template is the tokenizer's own (or a file's), run in transformers' sandbox.  It is also run on stand-ins for the
contents: what then stands around them is what the template itself writes (the *frame*), the same for all conversations
of these roles.  Where frame and contents put together give the text that the template really renders, it is known
exactly which characters are data, so that names of special tokens in data stay text and only assistant turns are
trained on, whether or not the template marks them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from gro.data._deadline import TimeUp, at_most, limited
from gro.data.spec import Piece, Turn
from gro.errors import GroError

TRANSCRIPT = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% else %}{{ '\n\n' + ('Human' if m.role == 'user' else 'Assistant') + ': ' + m.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""The plain form of a conversation, as in the HH data, for models without a chat template."""

_STAND_IN = "Qx{}Zj"
SECONDS = 10.0
"""For one conversation; a template takes well under a millisecond."""
MAX_MEMORY = 1 << 30
"""Bytes that one conversation may take: a single operation ('x' * 10**10) ends at no time limit."""
MAX_GROWTH, MAX_EXTRA = 8, 1 << 16
"""A template may render a conversation of n characters as at most MAX_GROWTH · n + MAX_EXTRA."""


class TemplateError(Exception):
    """The chat template failed on these messages."""


class ChatTemplate:
    """A chat template and what it writes by itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, *, special: re.Pattern[str] | None) -> None:
        """`special` finds names of special tokens in contents; None: they may be there."""
        _check_powers(source)
        self.source, self._special = source, special
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        """A run stores it: another template is another format of data."""
        self._tokenizer = tokenizer
        self._frames: dict[tuple[tuple[str, ...], bool], list[str] | None] = {}
        between, whole = self.frame(("user", "assistant", "user"), True), self.frame(("user", "assistant"), False)
        if between is None or whole is None:
            raise TemplateError("it does not write the contents of messages as they are")
        self.tail = whole[-1]
        """What it writes behind an assistant's last turn."""
        self.closings = (os.path.commonprefix([between[2], self.tail]), self.tail)  # noqa: RUF071
        """Where the token that ends a turn is: in what stands behind every assistant's turn, else behind the last."""
        self.marks = whole[0] + self.tail
        """What it writes before a user's first turn and behind an assistant's last."""

    @property
    def plain(self) -> bool:
        """It is the transcript, before which the tokenizer's own beginning goes as before any plain text."""
        return self.source == TRANSCRIPT

    def render(self, turns: Sequence[Turn], *, opened: bool) -> str:
        """The text; `opened`: with the beginning of an assistant's turn behind it, where a completion starts."""
        messages = [{"role": t.role, "content": t.content} for t in turns]

        def run() -> object:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=opened
            )

        try:
            with at_most(MAX_MEMORY):
                text = limited(run, SECONDS)
        except TimeUp as e:
            raise TemplateError(f"the chat template ran for more than {SECONDS} s{_template_line(e)}") from None
        except Exception as e:  # A template is a program: it can fail with anything.
            said = str(e).strip().rstrip(".") or type(e).__name__
            raise TemplateError(f"the chat template failed{_template_line(e)}: {said[:500]}") from e
        assert isinstance(text, str)
        limit = MAX_EXTRA + MAX_GROWTH * sum(len(t.content) for t in turns)
        if len(text) > limit:
            raise TemplateError(f"the chat template wrote {len(text)} characters; at most {limit} are sensible")
        return text

    def pieces(self, turns: Sequence[Turn], *, opened: bool) -> list[Piece]:
        """The rendered text as frame, content, frame, …, frame; as one piece if the template changes the contents."""
        text, frame = self.render(turns, opened=opened), self.frame(_roles(turns), opened)
        pieces = _matched(text, frame, turns) if frame is not None else None
        if pieces is not None:
            return pieces
        for turn in turns:
            if turn.role != "assistant" and not says(text, turn.content):
                raise TemplateError(f"the chat template changes what the {turn.role} says")
            if self._special is not None and (name := self._special.search(turn.content)):
                raise TemplateError(f"the chat template changes contents, one of which has {name.group()!r} in it")
        return [Piece(text, literal=True)]

    def frame(self, roles: tuple[str, ...], opened: bool) -> list[str] | None:
        """What the template writes before, between and behind turns of these roles; None if it changes contents."""
        key = (roles, opened)
        if key not in self._frames:
            names = [_STAND_IN.format(i) for i in range(len(roles))]
            text = self.render([Turn(r, n) for r, n in zip(roles, names, strict=True)], opened=opened)
            parts: list[str] | None = []
            for name in names:
                before, found, text = text.partition(name)
                parts = [*parts, before] if found and parts is not None else None
            self._frames[key] = None if parts is None or any(n in text for n in names) else [*parts, text]
        return self._frames[key]


def _check_powers(source: str) -> None:
    """No template needs one, and 9**9**9 is a single operation, which no time limit ends."""
    before = ""
    try:
        tokens = [(line, kind, text) for line, kind, text in Environment().lex(source) if kind != "whitespace"]
    except TemplateSyntaxError:
        return  # said with its line when it is compiled
    for line, kind, text in tokens:
        if kind == "operator" and text == "**" and before not in ("(", ","):  # there it passes arguments on
            raise TemplateError(f"the chat template takes a power in line {line}")
        before = text


def load_template(
    tokenizer: PreTrainedTokenizerBase, path: str | None, chat: bool | None, special: re.Pattern[str] | None
) -> ChatTemplate | None:
    """The template of a file, the transcript where `chat` is False, the tokenizer's own; None where there is none."""
    source: Any = None
    if path is not None:
        try:
            source = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise GroError(f"the chat template {path} cannot be read: {e}") from None
    elif chat is False:
        source = TRANSCRIPT
    elif tokenizer.chat_template:
        try:
            source = tokenizer.get_chat_template()
        except ValueError as e:  # Several, and none of them the default.
            raise GroError(
                f"the tokenizer has several chat templates: {e}; give one with chat_template: path"
            ) from None
    if not source:
        return None
    try:
        return ChatTemplate(tokenizer, source, special=special)
    except TemplateError as e:
        raise GroError(f"{path or 'the chat template of the tokenizer'} cannot be used: {e}") from e


def _roles(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(t.role for t in turns)


def _matched(text: str, frame: Sequence[str], turns: Sequence[Turn]) -> list[Piece] | None:
    """Frame and contents, where they make this text; templates may strip contents."""
    if not text.startswith(frame[0]):
        return None
    pieces, at = [Piece(frame[0], literal=True)], len(frame[0])
    for turn, behind in zip(turns, frame[1:], strict=True):
        said = turn.content
        forms = (said, said.strip(), said.lstrip(), said.rstrip())
        form = next((f for f in forms if text.startswith(behind, at + len(f)) and text.startswith(f, at)), None)
        if form is None:
            return None
        pieces += [Piece(form), Piece(behind, literal=True)]
        at += len(form) + len(behind)
    return pieces if at == len(text) else None


def says(text: str, content: str) -> bool:
    """Whether the content is in the text, but for white space."""
    return "".join(content.split()) in "".join(text.split())


def _template_line(e: BaseException) -> str:
    """Where in the template; Jinja rewrites the traceback so that its frames carry template lines."""
    if (line := getattr(e, "lineno", None)) is not None:
        return f" in line {line}"
    trace, found = e.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {found}" if found is not None else ""
