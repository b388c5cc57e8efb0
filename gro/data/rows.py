"""What a row means: a prompt and its completions, still as text.

Transcripts "\\n\\nHuman: … \\n\\nAssistant: …" (the HH data) are conversations: in `messages`, and in `chosen` and
`rejected` without a prompt.  Columns that the dataset type does not name travel with the prompt to the rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gro.data._lines import Row, type_name
from gro.data.layout import Layout, template_fields, template_parts
from gro.data.spec import Piece, Text, Turn
from gro.data.turns import (
    check_turns,
    is_transcript,
    nearest,
    parse_text,
    parse_transcript,
    parse_turns,
    split_text,
    split_turns,
)

LARGEST_REWARD = 1e6
"""Beyond it float32 statistics of rewards lose their digits."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row understood, still as text.

    >>> Example(row, 0, prompt=(Piece("2+2="),), completions=((Piece("4"),),), labels=(None,))
    """

    row: Row
    index: int
    """The row's number in its source, from 0."""
    prompt: Text | None
    """None: there is none, the text is all completion.  Of a conversation to be trained on, its first turns."""
    completions: tuple[Text, ...]
    """None for a prompt alone, two for a preference (the chosen one first), any number where they are rewarded."""
    labels: tuple[float | None, ...]
    """The reward of each completion; None: a demonstration; NaN: it has yet to be judged."""
    transcript: bool = False
    """The conversation was a transcript, and can be one again where no chat template is."""


def parse_row(row: Row, index: int, layout: Layout) -> Example:
    """What this row means; a `DataError` names the row, the field, what was found and what was expected."""
    return _Reader(row, index, layout).example()


@dataclass(frozen=True, slots=True)
class _Reader:
    """One row being understood."""

    row: Row
    index: int
    layout: Layout

    def example(self) -> Example:
        kind, names = self.layout.kind, self.layout.names
        if kind == "language_modeling":
            return self.language_modeling()
        if kind == "preference":
            return self.preference()
        if kind == "rewarded":
            return self.rewarded()
        if kind == "prompt_only" and "prompt" not in names:
            return self.prompt_of_others()
        if "prompt" not in names or (kind == "prompt_completion" and "completion" not in names):
            pair = self.preference()
            return self.trained(pair.prompt or (), pair.completions[0], pair.transcript)
        prompt = self.prompt()
        if kind == "prompt_only":
            return Example(self.row, self.index, self.in_chat(prompt), (), ())
        prompt, (completion,) = self.completed(prompt, "completion")
        if kind == "prompt_completion":
            return self.trained(prompt, completion)
        return Example(self.row, self.index, prompt, (completion,), (self.label(),))

    def preference(self) -> Example:
        pair = ("chosen", "rejected")
        columns = (self.layout.column("chosen"), self.layout.column("rejected"))
        values = [self.value(name) for name in pair]
        prompted = "prompt" in self.layout.names
        transcript = not prompted and all(map(is_transcript, values))
        if "margin" in self.layout.names:
            self.number("margin")
        if prompted and not (isinstance(values[0], list) and isinstance(self.value("prompt"), str)):
            prompt, completions = self.completed(self.prompt(), *pair)
            if _said(completions[0]) == _said(completions[1]):
                found = f"the same as {columns[0]!r}"
                raise self.row.error(columns[1], found=found, expected="two different completions")
        elif transcript or isinstance(values[0], list):
            parse = parse_transcript if transcript else parse_turns
            both = [parse(self.row, c, v) for c, v in zip(columns, values, strict=True)]
            for column, turns in zip(columns, both, strict=True):
                check_turns(self.row, column, turns, last="assistant")
            prompt, *completions = split_turns(self.row, columns, both[0], both[1])
            prompt = self.with_system(prompt)
        else:
            texts = [parse_text(self.row, c, v) for c, v in zip(columns, values, strict=True)]
            beginning, *ends = split_text(self.row, columns, texts[0], texts[1])
            prompt = (Piece(beginning),) if beginning else ()
            completions = [(Piece(end),) for end in ends]
        return Example(self.row, self.index, prompt, tuple(completions), (1.0, -1.0), transcript)

    def rewarded(self) -> Example:
        prompt, names = self.prompt(), self.layout.names
        if "completion" in names and ("reward" in names or "completions" not in names):
            prompt, completions = self.completed(prompt, "completion")
            rewards = (math.nan,)
            if "reward" in names:
                rewards = (self.reward(self.layout.column("reward"), self.value("reward")),)
            return Example(self.row, self.index, prompt, tuple(completions), rewards)
        prompt, completions = self.continued(prompt, self.items("completions"))
        rewards = (math.nan,) * len(completions)
        if "rewards" in names:
            column = self.layout.column("rewards")
            rewards = tuple(self.reward(place, value) for place, value in self.items("rewards"))
            if len(rewards) != len(completions):
                expected = f"one for each of the {len(completions)} completions"
                raise self.row.error(column, found=f"{len(rewards)} rewards", expected=expected)
        return Example(self.row, self.index, prompt, tuple(completions), rewards)

    def language_modeling(self) -> Example:
        if "messages" not in self.layout.names:
            text = parse_text(self.row, self.layout.column("text"), self.value("text"))
            return Example(self.row, self.index, None, ((Piece(text),),), (None,))
        column, value = self.layout.column("messages"), self.value("messages")
        turns, transcript = self.conversation(column, value)
        turns = self.with_system(check_turns(self.row, column, turns, last="assistant"))
        spoken = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        first = spoken[-1] if self.layout.spec.train_on == "completion" else spoken[0]
        return self.trained(turns[:first], turns[first:], transcript)

    def prompt_of_others(self) -> Example:
        """The prompt of a preference, or of a conversation up to its last user's turn."""
        if "messages" not in self.layout.names:
            pair = self.preference()
            if not pair.prompt:
                expected = "a common beginning, which is the prompt"
                raise self.row.error(self.layout.column("chosen"), found="nothing in common", expected=expected)
            return Example(self.row, self.index, pair.prompt, (), (), pair.transcript)
        column = self.layout.column("messages")
        turns, transcript = self.conversation(column, self.value("messages"))
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if not turns:
            raise self.row.error(column, found="only an assistant's turns", expected="a user's turn first")
        turns = self.with_system(check_turns(self.row, column, turns, last="user"))
        return Example(self.row, self.index, turns, (), (), transcript)

    def trained(self, prompt: Text, completion: Text, transcript: bool = False) -> Example:
        """A demonstration; train_on: all makes the prompt a part of what is learnt."""
        if self.layout.spec.train_on == "all":
            whole: Any = (*prompt, *completion)
            return Example(self.row, self.index, None, (whole,), (None,), transcript)
        return Example(self.row, self.index, prompt, (completion,), (None,), transcript)

    # --- fields ---

    def value(self, name: str) -> Any:
        column = self.layout.column(name)
        if column not in self.row.fields:
            close = nearest(column, list(self.row.fields))
            found = f"no such field, but {close!r}" if close else "no such field"
            raise self.row.error(column, found=found, expected="a value in every row")
        return self.row.fields[column]

    def items(self, name: str) -> list[tuple[str, Any]]:
        """The entries of a list, each with its place in the row."""
        column, values = self.layout.column(name), self.value(name)
        if not isinstance(values, list):
            raise self.row.error(column, found=type_name(values), expected=f"a list of {name}")
        if not values:
            raise self.row.error(column, found="an empty list", expected="at least one entry")
        return [(f"{column}[{i}]", value) for i, value in enumerate(values)]

    def conversation(self, column: str, value: Any) -> tuple[tuple[Turn, ...], bool]:
        """The turns, and whether they were written as a transcript."""
        if is_transcript(value):
            return parse_transcript(self.row, column, value), True
        return parse_turns(self.row, column, value), False

    def prompt(self) -> Text:
        """The prompt, filled into its template if there is one."""
        template = self.layout.spec.prompt_template
        if template is not None:
            return self.filled(template, None)
        column, value = self.layout.column("prompt"), self.value("prompt")
        if isinstance(value, list):
            turns = parse_turns(self.row, column, value)
            return self.with_system(check_turns(self.row, column, turns, last="user"))
        return (Piece(parse_text(self.row, column, value)),)

    def completed(self, prompt: Text, *names: str) -> tuple[Text, list[Text]]:
        """Prompt and the completions in these columns."""
        template = self.layout.spec.completion_template
        read = isinstance(prompt[0], Turn) or template is None or "completion" in template_fields(template)
        return self.continued(prompt, [(self.layout.column(name), self.value(name) if read else "") for name in names])

    def continued(self, prompt: Text, values: list[tuple[str, Any]]) -> tuple[Text, list[Text]]:
        """Prompt and completions, all in messages or all in text; each value with its place in the row."""
        if isinstance(prompt[0], Turn):
            return prompt, [self.spoken(*value) for value in values]
        return self.in_chat(prompt), [self.written(*value) for value in values]

    def spoken(self, column: str, value: Any) -> tuple[Turn, ...]:
        turns = parse_turns(self.row, column, value)
        for i, turn in enumerate(turns):
            if turn.role == "system" or (turn.role != "assistant" and i in (0, len(turns) - 1)):
                raise self.row.error(
                    f"{column}[{i}].role", found=f"the role {turn.role!r}", expected="an assistant's turn"
                )
        return turns

    def written(self, column: str, value: Any) -> Text:
        template = self.layout.spec.completion_template
        if template is None or "completion" in template_fields(template):
            value = parse_text(self.row, column, value)
        text = (Piece(value),) if template is None else self.filled(template, value)
        return (Turn("assistant", _said(text)),) if self.layout.spec.chat else text

    def filled(self, template: str, completion: str | None) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        for literal, name in template_parts(template):
            pieces += [Piece(literal, literal=True)] if literal else []
            if name == "completion" and completion is not None:
                pieces.append(Piece(completion))
            elif name is not None:
                value = self.value(name)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                pieces.append(Piece(str(value) if number else parse_text(self.row, self.layout.column(name), value)))
        return tuple(pieces)

    def in_chat(self, prompt: Text) -> Text:
        """A plain prompt as a user's turn, where the user says so."""
        if not self.layout.spec.chat or isinstance(prompt[0], Turn):
            return prompt
        return self.with_system((Turn("user", _said(prompt)),))

    def with_system(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        system = self.layout.spec.system
        return turns if system is None or turns[0].role == "system" else (Turn("system", system), *turns)

    def label(self) -> float:
        column, value = self.layout.column("label"), self.value("label")
        known = {"true": 1.0, "1": 1.0, "false": -1.0, "0": -1.0}  # CSV has only text.
        reward = known.get(str(value).lower())
        if reward is None or not isinstance(value, bool | int | str):
            found = repr(value) if isinstance(value, int | float) else type_name(value)
            raise self.row.error(column, found=found, expected="true or false")
        return reward

    def number(self, name: str) -> float:
        return self.finite(self.layout.column(name), self.value(name))

    def reward(self, column: str, value: Any) -> float:
        reward = self.finite(column, value)
        if abs(reward) > LARGEST_REWARD:
            raise self.row.error(column, found=f"{reward:g}", expected=f"a reward within ±{LARGEST_REWARD:g}")
        return reward

    def finite(self, column: str, value: Any) -> float:
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            found = str(value) if isinstance(value, float) else type_name(value)
            raise self.row.error(column, found=found, expected="a finite number")
        return number


def _said(text: Text) -> str:
    """The words alone, to compare or to put into a turn."""
    return (
        "\n".join(t.content for t in text if isinstance(t, Turn)).strip()
        or "".join(p.text for p in text if isinstance(p, Piece)).strip()
    )
