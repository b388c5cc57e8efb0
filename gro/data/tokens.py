"""Text to token ids, once, with every token on exactly one side of every seam.

**The seam.**  A rollout starts from the tokens of the prompt on its own, so these are the prompt's ids in training too.
Prompt and completion are tokenised together; where the tokens of the prompt alone are the beginning of that, the rest
is the completion.  Where they are not (a token straddles the seam, or the prompt's last tokens depend on what follows),
the completion is tokenised behind a forced boundary: what the model would have to sample after that prompt.  Training
rows are thus always rows that sampling can produce, no character is lost and none is trained on by mistake.

**Special tokens.**  Their names are special tokens only where a template wrote them; in data they are text, broken at a
forced boundary.  **Beginning:** what the tokenizer itself puts before plain text, and nothing before a rendered chat,
whose template writes its own.  **End:** every completion ends in exactly one end token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from gro.data._tokenizer import finder, own_beginning, private_copy, special_ids, token_id
from gro.data.spec import Piece
from gro.errors import GroError

_BOUNDARIES = ("\ue000", "\n", "a", "0", ".", "\u2028")
"""Put into the text to force a token boundary, and taken out again.  The first that the tokens around it do not absorb
is used: a private-use character nearly always."""


class UnsplittableError(Exception):
    """The tokenizer allows no boundary where one is needed, or makes a special token of ordinary text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One prompt and its completions, as pieces of text of known origin."""

    prompt: tuple[Piece, ...]
    completions: tuple[tuple[Piece, ...], ...]
    own_beginning: bool = True
    """The tokenizer's own beginning goes before it; False: the text brings its own."""
    whole: bool = False
    """There is no prompt text: all is completion, behind the first token."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row."""

    prompt: list[int]
    completions: list[tuple[list[int], list[bool] | None]]
    """Ids, and per token whether it carries loss (None: all do)."""
    forced: str | None = None
    """Where a boundary had to be forced at the seam: the tokens there, together and as they are used."""
    named: bool = False
    """The data spelt out the name of a special token, which stayed text."""


class TextEncoder:
    """A fast tokenizer with the rules above.

    The token that ends an assistant's turn is in the first of the texts `closings` with a special token in it.  Added
    tokens in `marks` structure a conversation, so they are kept out of data as special tokens are.
    `end_ids` are the end tokens that the model's generation configuration names.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_ids: Collection[int] = (),
        marks: str = "",
        closings: Sequence[str] = (),
        special_tokens_are_text: bool = True,
    ) -> None:
        if not tokenizer.is_fast:
            fix = "save it with a tokenizer.json"
            raise GroError(f"the tokenizer {type(tokenizer).__name__} gives no offsets of tokens in the text; {fix}")
        self._core = private_copy(tokenizer)
        self._text_only = special_tokens_are_text
        added = tokenizer.added_tokens_decoder
        bos, eos, pad, unk = (token_id(tokenizer, name) for name in ("bos", "eos", "pad", "unk"))
        control = special_ids(tokenizer)
        control |= {i for i in self._ids(marks) if i in added}
        self._control = finder(filter(None, map(self._name, control)))
        # An unknown character also becomes the unknown token; that is no injection.
        self._control_ids = frozenset(i for i in control if i != unk)
        candidates = next((ids for text in closings if (ids := [i for i in self._ids(text) if i in control])), [])
        # Some templates close an answer first and then the turn: the end is what the model knows as one.
        closing = next((i for i in candidates if i == eos or i in end_ids), next(iter(candidates), None))
        ends = [i for i in (closing, eos) if i is not None]
        if not ends:
            raise GroError("the tokenizer has no end-of-sequence token, so no model could learn to stop: set eos_token")
        self.ends: frozenset[int] = frozenset(ends) | frozenset(end_ids)
        """Every token that ends a completion; sampling stops at the same."""
        self.end: int = ends[-1]
        """The one that is appended where the text brings none."""
        self.end_names = tuple(filter(None, map(self._name, sorted(self.ends))))
        self.beginning: tuple[int, ...] = own_beginning(self._core)
        """What the tokenizer itself puts before plain text."""
        first = next(i for i in (bos, eos, pad, self.end) if i is not None)
        self.start: tuple[int, ...] = self.beginning or (first,)
        """The prompt of text that has none: the tokenizer's own beginning, else its bos, eos or pad token."""
        self._bos = bos

    def _name(self, i: int) -> str:
        return self._core.id_to_token(i) or ""

    def _ids(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded | UnsplittableError]:
        """All rows, in one go; a row that cannot be encoded gives the reason in its place."""
        prompts = ["".join(p.text for p in row.prompt) for row in rows]
        joints = [
            prompt + "".join(p.text for p in pieces)
            for row, prompt in zip(rows, prompts, strict=True)
            for pieces in row.completions or ((),)
        ]
        alone = self._core.encode_batch_fast(prompts, add_special_tokens=False)
        together = iter(self._core.encode_batch(joints, add_special_tokens=False))
        results: list[Encoded | UnsplittableError] = []
        for row, prompt in zip(rows, alone, strict=True):
            encodings = [next(together) for _ in row.completions or ((),)]
            try:
                results.append(self._row(row, prompt.ids, encodings))
            except UnsplittableError as e:
                results.append(e)
        return results

    def _row(self, row: Rendered, prompt_ids: list[int], encodings: list[Encoding]) -> Encoded:
        named, forced = False, None
        if breaks := self._breaks(row.prompt):
            prompt_ids, named = self._broken(row.prompt, breaks)[0], True
        if not row.completions:
            if not named:
                self._check_control(encodings[0].ids, lambda: encodings[0].offsets, row.prompt)
            return Encoded(self._begun(row, prompt_ids), [], named=named)
        completions: list[tuple[list[int], list[bool] | None]] = []
        for pieces, encoding in zip(row.completions, encodings, strict=True):
            seam, whole = sum(len(p.text) for p in row.prompt), (*row.prompt, *pieces)
            breaks = self._breaks(whole)
            named |= bool(breaks)
            ids, flags, clean = self._completion(prompt_ids, whole, seam, breaks, encoding)
            if not clean and forced is None:
                forced = self._diff(encoding, seam, prompt_ids, ids)
            completions.append(self._ended(ids, flags))
        if row.whole:
            return self._without_prompt(row, completions[0], named)
        return Encoded(self._begun(row, prompt_ids), completions, forced, named)

    def _completion(
        self, prompt_ids: list[int], pieces: tuple[Piece, ...], seam: int, breaks: set[int], encoding: Encoding
    ) -> tuple[list[int], list[bool], bool]:
        """Ids behind the seam, which of them are trained, and whether there was a boundary at the seam anyway."""
        n, edges = len(prompt_ids), _edges(pieces, seam)
        if breaks:
            ids, spans = self._broken(pieces, breaks)
        else:
            # (Offsets cost more than everything else here.)
            ids, spans = encoding.ids, encoding.offsets if edges else None
            self._check_control(ids, lambda: encoding.offsets, pieces)
        clean = ids[:n] == prompt_ids and len(ids) > n
        if clean and n:
            # Unknown characters on both sides of the seam may have become one unknown token.
            last = spans[n - 1] if spans is not None else encoding.token_to_chars(n - 1)
            clean = last is None or last[1] <= seam
        if clean and spans is None:
            return ids[n:], [_is_trained(pieces, seam)] * (len(ids) - n), True
        spans = encoding.offsets if spans is None else spans
        wanted = {x for x in edges if any(a < x < b for a, b in spans)} | (set() if clean else {seam} - {0})
        if wanted:
            ids, spans = self._broken(pieces, breaks | wanted)
        if not clean or ids[:n] != prompt_ids:
            n = next((k for k, (a, _) in enumerate(spans) if a >= seam), len(ids))
        if n == len(ids):
            raise UnsplittableError("the completion has no tokens of its own")
        return ids[n:], [_is_trained(pieces, a) for a, _ in spans[n:]], clean

    def _diff(self, together: Encoding, seam: int, prompt_ids: list[int], ids: list[int]) -> str:
        """The tokens around the seam: as the whole text has them | and apart."""
        near = [i for i, (a, b) in zip(together.ids, together.offsets, strict=True) if b >= seam - 1 and a <= seam]
        said = [
            [self._core.decode([i], skip_special_tokens=False) for i in part]
            for part in (near, prompt_ids[-2:], ids[:1])
        ]
        return f"{said[0]} together, {said[1]} | {said[2]} apart"

    def _begun(self, row: Rendered, ids: list[int]) -> list[int]:
        if row.own_beginning:
            begun = tuple(ids[: len(self.beginning)]) == self.beginning
            return (ids if begun else [*self.beginning, *ids]) or list(self.start)
        if self._bos is not None and ids[:2] == [self._bos, self._bos]:
            raise UnsplittableError("two beginning-of-sequence tokens: the chat template writes it twice")
        return ids or list(self.start)

    def _without_prompt(self, row: Rendered, completion: tuple[list[int], list[bool] | None], named: bool) -> Encoded:
        if row.own_beginning:
            return Encoded(list(self.start), [completion], named=named)
        ids, flags = completion
        self._begun(row, ids)
        return Encoded(ids[:1], [(ids[1:], flags[1:] if flags else None)], named=named)

    def _ended(self, ids: list[int], flags: list[bool]) -> tuple[list[int], list[bool] | None]:
        if ids[-1] not in self.ends:
            ids, flags = [*ids, self.end], [*flags, True]
        return ids, None if all(flags) else flags

    # --- special tokens in data ---

    def _breaks(self, pieces: Iterable[Piece]) -> set[int]:
        """Where to break the names of special tokens that no template wrote."""
        pieces = tuple(pieces)
        if not self._text_only:
            return set()
        text = "".join(p.text for p in pieces)
        return {m.start() + 1 for m in self._control.finditer(text) if not _literal(pieces, m.start(), m.end())}

    def _check_control(self, ids: list[int], offsets: Any, pieces: tuple[Piece, ...]) -> None:
        """No special token may have come out of data."""
        if not self._text_only or self._control_ids.isdisjoint(ids):
            return
        for i, (a, b) in zip(ids, offsets(), strict=True):
            if i in self._control_ids and not _literal(pieces, a, b):
                raise UnsplittableError(
                    f"text that the tokenizer makes the special token {self._core.id_to_token(i)!r}"
                )

    def _broken(self, pieces: tuple[Piece, ...], breaks: set[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their places, with a token boundary at each of these places in the text."""
        text, places = "".join(p.text for p in pieces), sorted(breaks)
        for mark in _BOUNDARIES:
            parts = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
            encoding = self._core.encode(mark.join(parts), add_special_tokens=False)
            found = _taken_out(encoding, places)
            if found is not None:
                self._check_control(found[0], lambda found=found: found[1], pieces)
                return found
        raise UnsplittableError("text in which the tokenizer allows no boundary between prompt and completion")


def _taken_out(encoding: Encoding, places: list[int]) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Without the marks, each one character long; None where a token holds a mark and something else."""
    ids, spans, k = [], [], 0
    marks = [x + i for i, x in enumerate(places)]
    for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True):
        while k < len(marks) and marks[k] < a:
            k += 1
        if k < len(marks) and a <= marks[k] < b:
            if b - a > 1:
                return None
            continue
        ids.append(i)
        spans.append((a - k, b - k))
    return ids, spans


def _literal(pieces: Sequence[Piece], a: int, b: int) -> bool:
    """Whether text[a:b] lies within what a template wrote."""
    at = 0
    for piece in pieces:
        end = at + len(piece.text)
        if a < end and b > at and not piece.literal:
            return False
        at = end
    return True


def _edges(pieces: Sequence[Piece], seam: int) -> list[int]:
    """Places behind the seam where trained text begins or ends."""
    edges, at, before = [], 0, None
    for piece in pieces:
        if at > seam and piece.text and before is not None and piece.trained != before:
            edges.append(at)
        if piece.text and at >= seam:
            before = piece.trained
        at += len(piece.text)
    return edges


def _is_trained(pieces: Sequence[Piece], place: int) -> bool:
    at = 0
    for piece in pieces:
        at += len(piece.text)
        if place < at:
            return piece.trained
    return pieces[-1].trained
