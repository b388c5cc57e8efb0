"""What a user says about a data set, and the types that the rows of all formats become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gro.errors import GroError

Kind = Literal[
    "auto",
    "language_modeling",
    "prompt_only",
    "prompt_completion",
    "preference",
    "unpaired_preference",
    "rewarded",
    "stepwise_supervision",
]
"""TRL's dataset types, and completions with rewards.  auto: told from the columns."""
TrainOn = Literal["assistant", "completion", "all"]
Overlong = Literal["refuse", "skip", "truncate"]
OnBad = Literal["refuse", "skip"]
SpecialTokens = Literal["text", "control"]


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which rows, what their columns mean, and how they become token ids.

    >>> DataSpec(
    ...     "gsm8k.jsonl", prompt_template="Question: {question}\\nAnswer:", completion_template=" {answer}"
    ... )
    """

    path: str | tuple[str, ...]
    """One file, or several that are read one after the other: JSONL, JSON, CSV or Parquet."""
    kind: Kind = "auto"
    """The dataset type; "auto" tells it from the columns.  Naming one says how to use a file that could be used in
    several ways: a preference file read as "prompt_only" gives its prompts, as "prompt_completion" the chosen ones;
    "rewarded" without a column of rewards gives completions that the recipe's rewards judge."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What is called otherwise in the file, as name: column in the file.  {"prompt": "question"}"""
    start: int = 0
    """The first row used, counted from 0 over all files."""
    stop: int | None = None
    """The row before which to stop; None: the end.  A held-out part is another range of the same file."""
    prompt_template: str | None = None
    """Makes the prompt: text with the names of columns in braces, "Question: {question}\\nAnswer:".  Special tokens
    that it spells out are special tokens; in the columns they stay text."""
    completion_template: str | None = None
    """Makes the completion in the same way, " {answer}".  {completion} is the completion, or the chosen and the
    rejected one in turn."""
    chat: bool | None = None
    """None: messages are rendered by the chat template and plain text is left as it is.  True: a plain prompt becomes a
    user's turn.  False: messages become a plain "\\n\\nHuman: … \\n\\nAssistant: …" transcript (a base model)."""
    chat_template: str | None = None
    """A file with a Jinja chat template to use in place of the tokenizer's own."""
    system: str | None = None
    """A system turn for conversations that have none."""
    train_on: TrainOn = "assistant"
    """assistant: all assistant turns of `messages`, and completions.  completion: only the last assistant turn.  all:
    everything after the first token.  Rows of type `text` are always trained on in full."""
    max_length: int | None = None
    """Tokens of prompt and completion together; None: no limit."""
    overlong: Overlong = "refuse"
    """What happens to longer rows.  truncate: the completion loses its end, and is then not taught to stop there."""
    on_bad: OnBad = "refuse"
    """skip: rows that cannot be used are left out, counted and reported."""
    special_tokens: SpecialTokens = "text"
    """text: a special token's name inside the data is plain text.  control: it is the token (prompts that were rendered
    by a chat template beforehand); only for data that you wrote yourself."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("kind", Kind),
            ("train_on", TrainOn),
            ("overlong", Overlong),
            ("on_bad", OnBad),
            ("special_tokens", SpecialTokens),
        ):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise GroError(f"{name} is one of {', '.join(get_args(choices))}; found {value!r}")
        if not self.paths:
            raise GroError("path names no file")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise GroError(f"rows from start={self.start} up to stop={self.stop} are none")
        if self.max_length is not None and self.max_length < 2:
            raise GroError(f"max_length is at least 2 (a prompt token and a completion token), not {self.max_length}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, in order."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text of one origin."""

    text: str
    literal: bool = False
    """Written by a template, not by data: names of special tokens in it are special tokens."""
    trained: bool = False
    """Its tokens carry loss."""


Text = tuple[Turn, ...] | tuple[Piece, ...]
"""A conversation (or a part of one), or plain text."""
