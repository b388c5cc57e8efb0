"""Rows to groups of token ids, ready to be learnt from.

preference            a group of two with rewards +1 (chosen, first) and −1
unpaired_preference   one sample with reward ±1
rewarded              samples with their rewards, which may be pending
prompt_completion     one target (a demonstration)
language_modeling     one target; the prompt is one token (plain text) or the turns before the first trained one
prompt_only           a prompt without completions
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from gro.data._lines import Row
from gro.data._tokenizer import finder, special_ids
from gro.data.chat import conversation
from gro.data.dataset import Dataset, EncodedCompletion, Record
from gro.data.layout import detect
from gro.data.rows import Example, parse_row
from gro.data.scan import SHOWN, Reject, Tally, examples, prompt_digest, row_digest
from gro.data.spec import DataSpec, Piece, Text, Turn
from gro.data.template import TRANSCRIPT, ChatTemplate, TemplateError, load_template
from gro.data.tokens import Encoded, Rendered, TextEncoder, UnsplittableError
from gro.errors import DataError, GroError

_AT_ONCE = 512
"""Rows tokenised in one call: enough to keep all cores busy, little enough to show progress."""


def load_dataset(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Collection[int] = (),
    reject: Reject | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Reads, checks and tokenises all rows; raises a `DataError` naming what is wrong and where.

    end_ids: end tokens of the model's generation configuration, besides the tokenizer's and the template's.
    reject: told of every row that is not used.  on_progress: called with the number of rows done.
    """
    tally = Tally(spec, reject)
    rows = examples(spec, tally)
    encoder = _RowEncoder(spec, tokenizer, tally, end_ids)
    records: list[Record] = []
    while batch := list(islice(rows, _AT_ONCE)):
        records += encoder.records(batch)
        if on_progress is not None:
            on_progress(tally.rows)
    tally.notes = encoder.notes()
    report = tally.report()
    if report.bad and (spec.on_bad == "refuse" or not records):
        raise report.refuse()
    if not records:
        raise DataError(spec.paths[0], found="no row that is short enough", expected="at least one")
    return Dataset(spec, records, report, ends=encoder.ends, template_sha256=encoder.template_sha256)


@contextmanager
def without_recipe(fix: str) -> Iterator[None]:
    """For commands that have no key `columns`: what to do where a column is not found."""
    try:
        yield
    except DataError as error:
        if not error.found.startswith("the columns"):
            raise
        raise DataError(error.file, field=error.field, found=error.found, expected=error.expected, fix=fix) from error


def encode_prompts(
    prompts: Sequence[str | list[dict[str, str]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Collection[int] = (),
    **settings: Any,
) -> Dataset:
    """Prompts that are not in a file, text or messages, by the same rules and with settings of `DataSpec`.

    >>> encode_prompts(["What is 2+2?"], tokenizer, chat=True)[0].prompt
    """
    spec = DataSpec("the prompts", kind="prompt_only", **settings)
    layout = detect(["prompt"], spec)
    tally = Tally(spec, kind="prompt_only", rows=len(prompts))
    rows = [Row(spec.paths[0], i + 1, {"prompt": prompt}, "row") for i, prompt in enumerate(prompts)]
    encoder = _RowEncoder(spec, tokenizer, tally, end_ids)
    records = encoder.records([parse_row(row, i, layout) for i, row in enumerate(rows)])
    if tally.bad:
        raise tally.problems[0]
    tally.notes = encoder.notes()
    return Dataset(spec, records, tally.report(()), ends=encoder.ends, template_sha256=encoder.template_sha256)


@dataclass(slots=True)
class _RowEncoder:
    """Examples to records, noting what happens to them."""

    spec: DataSpec
    tokenizer: PreTrainedTokenizerBase
    tally: Tally
    end_ids: Collection[int]
    template: ChatTemplate | None = field(init=False)
    unusable: str = field(init=False)
    """Why the tokenizer's own template cannot be used, if it cannot."""
    transcripts: ChatTemplate = field(init=False)
    text: TextEncoder = field(init=False)
    named: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    forced_example: str = ""
    bridged: list[int] = field(default_factory=list)
    overlong: int = 0
    truncated: int = 0
    histogram: list[int] = field(default_factory=list)
    longest: int = 0

    def __post_init__(self) -> None:
        spec, tokenizer = self.spec, self.tokenizer
        as_text = spec.special_tokens == "text"
        names = [tokenizer.convert_ids_to_tokens(i) for i in special_ids(tokenizer)]
        special = finder(n for n in names if isinstance(n, str)) if as_text else None
        self.template, self.unusable = None, ""
        try:
            self.template = load_template(tokenizer, spec.chat_template, spec.chat, special)
        except GroError as e:
            if spec.chat_template is not None:
                raise
            self.unusable = str(e)  # Plain text does not need it.
        self.transcripts = ChatTemplate(tokenizer, TRANSCRIPT, special=special)
        self.text = TextEncoder(
            tokenizer,
            end_ids=self.end_ids,
            marks=self.template.marks if self.template else "",
            closings=self.template.closings if self.template else (),
            special_tokens_are_text=as_text,
        )

    @property
    def ends(self) -> frozenset[int]:
        return self.text.ends

    @property
    def template_sha256(self) -> str | None:
        return self.template.sha256 if self.template else None

    def notes(self) -> dict[str, Any]:
        """For the report."""
        return {
            "named": len(self.named),
            "named_rows": tuple(self.named[:SHOWN]),
            "forced": len(self.forced),
            "forced_rows": tuple(self.forced[:SHOWN]),
            "forced_example": self.forced_example,
            "bridged": len(self.bridged),
            "bridged_rows": tuple(self.bridged[:SHOWN]),
            "truncated": self.truncated,
            "overlong": self.overlong,
            "trained_tokens": tuple(self.histogram),
            "longest": self.longest,
        }

    def records(self, batch: Sequence[Example]) -> list[Record]:
        """The rows of the batch that can be used."""
        kept, rendered = [], []
        for example in batch:
            try:
                rendered.append(self.rendered(example))
                kept.append(example)
            except TemplateError as e:
                error = example.row.error(self.field(), found="messages that cannot be rendered", fix=f"{e}.")
                self.tally.problem(error, example.row.fields)
        records = []
        for example, encoded in zip(kept, self.text.encode(rendered), strict=True):
            if isinstance(encoded, UnsplittableError):
                error = example.row.error(self.field(), found=str(encoded), expected="text that can be tokenised")
                self.tally.problem(error, example.row.fields)
            elif (record := self.record(example, encoded)) is not None:
                records.append(record)
        return records

    def field(self) -> str:
        """The field to name for what concerns the row's text as a whole."""
        names = {"language_modeling": "messages", "preference": "chosen"}
        return self.spec.columns.get(name := names.get(self.tally.kind, "prompt"), name)

    def rendered(self, example: Example) -> Rendered:
        """The row as pieces of text."""
        texts = [t for t in (example.prompt, *example.completions) if t]
        if texts and isinstance(texts[0][0], Piece):
            return self.plain(example)
        template = self.template
        if template is None and example.transcript:
            template = self.transcripts
        if template is None:
            why = self.unusable or "the tokenizer has no chat template"
            raise TemplateError(
                f"{why}. Give one with chat_template: path, or write a plain transcript with chat: false"
            )
        prompt, ends = _turns(example.prompt), self.text.end_names
        everything = example.prompt is None
        if not example.completions:
            return Rendered(tuple(template.pieces(prompt, opened=True)), (), own_beginning=template.plain)
        spoken = [
            conversation(template, (*prompt, *_turns(c)), len(prompt), ends, everything=everything)
            for c in example.completions
        ]
        if any(c.bridged for c in spoken):
            self.bridged.append(example.index)
        completions = tuple(c.completion for c in spoken)
        return Rendered(spoken[0].prompt, completions, own_beginning=template.plain, whole=everything)

    def plain(self, example: Example) -> Rendered:
        prompt = tuple(p for p in example.prompt or () if isinstance(p, Piece))
        completions = []
        for completion in example.completions:
            pieces = [replace(p, trained=True) for p in completion if isinstance(p, Piece)]
            completions.append(tuple(self.unended(pieces)))
        return Rendered(prompt, tuple(completions), whole=example.prompt is None)

    def unended(self, pieces: list[Piece]) -> list[Piece]:
        """Without the name of an end token that the data spells out at the end: the token itself comes there."""
        last = pieces[-1]
        text = last.text.rstrip()
        for name in self.text.end_names:
            if not last.literal and text.endswith(name) and text != name:
                return [*pieces[:-1], replace(last, text=text.removesuffix(name))]
        return pieces

    def record(self, example: Example, encoded: Encoded) -> Record | None:
        """The row if its length allows it."""
        limit, room = self.spec.max_length, None
        longest = len(encoded.prompt) + max((len(ids) for ids, _ in encoded.completions), default=0)
        if limit is not None and longest > limit:
            room = limit - len(encoded.prompt)
            if self.spec.overlong == "skip":
                self.overlong += 1
                if self.tally.reject is not None:
                    self.tally.reject(self.too_long(example, encoded, longest), example.row.fields)
                return None
            if self.spec.overlong == "refuse" or room < 1 or not encoded.completions:
                self.tally.problem(self.too_long(example, encoded, longest), example.row.fields)
                return None
        completions, trained = [], 0
        for (ids, flags), label in zip(encoded.completions, example.labels, strict=True):
            cut = room is not None and len(ids) > room
            ids, flags = (ids[:room], flags and flags[:room]) if cut else (ids, flags)
            carried = len(ids) if flags is None else sum(flags)
            assert carried, "the first token of a completion is trained"
            assert cut or (ids[-1] in self.ends and (flags is None or flags[-1])), "no trained end token"
            self.truncated += cut
            trained += carried
            mask = None if flags is None else np.array(flags, dtype=bool)
            completions.append(EncodedCompletion(np.array(ids, np.int32), mask, label, "length" if cut else "given"))
        self.count(example, encoded, trained, min(longest, limit or longest))
        return Record(
            example.index,
            np.array(encoded.prompt, np.int32),
            tuple(completions),
            self.columns(example),
            row_digest(example),
            prompt_digest(example.prompt),
        )

    def count(self, example: Example, encoded: Encoded, trained: int, longest: int) -> None:
        self.longest = max(self.longest, longest)
        if encoded.completions:
            bucket = trained.bit_length()
            self.histogram += [0] * (bucket + 1 - len(self.histogram))
            self.histogram[bucket] += 1
        if encoded.named:
            self.named.append(example.index)
        if encoded.forced is not None:
            self.forced.append(example.index)
            self.forced_example = self.forced_example or encoded.forced

    def too_long(self, example: Example, encoded: Encoded, longest: int) -> DataError:
        n, limit = len(encoded.prompt), self.spec.max_length
        found = f"{n} prompt tokens and up to {longest - n} of a completion" if longest > n else f"{n} prompt tokens"
        fix = "" if n < (limit or 0) else "The prompt alone leaves no token to train on."
        return example.row.error(self.field(), found=found, expected=f"at most max_length = {limit} tokens", fix=fix)

    def columns(self, example: Example) -> dict[str, Any]:
        """What travels with the prompt."""
        fields = example.row.fields
        mapped = {name: fields[source] for name, source in self.spec.columns.items() if source in fields}
        return {**fields, **mapped, "prompt": _presented(example.prompt)}


def _turns(text: Text | None) -> tuple[Turn, ...]:
    return tuple(t for t in text or () if isinstance(t, Turn))


def _presented(prompt: Text | None) -> Any:
    if prompt and isinstance(prompt[0], Turn):
        return [{"role": t.role, "content": t.content} for t in _turns(prompt)]
    return "".join(p.text for p in prompt or () if isinstance(p, Piece))
