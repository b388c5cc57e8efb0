"""Token ids as text, by the tokenizer alone: no model and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from gro.runs import RunReader
from gro.web.inspect.checkpoints import saved

_BROKEN = "\ufffd"


class Words:
    """The text of single tokens.  Without a tokenizer a token is its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """One piece of text per token; of a token that is part of a character, its name in the vocabulary."""
        return [self._one(i) for i in ids]

    def _one(self, token: int) -> str:
        if self.tokenizer is None:
            return f"#{token}"
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        if not text or _BROKEN in text:
            return self.tokenizer.id_to_token(token) or f"#{token}"
        name = self.tokenizer.id_to_token(token) or ""
        # Decoders of the SentencePiece kind take the space off what begins a text.
        return f" {text}" if name.startswith("▁") and not text.startswith(" ") else text


def words_of(reader: RunReader) -> Words:
    """The tokenizer that lies with any of the run's models."""
    for weights in reversed(saved(reader)):
        file = weights.path / "tokenizer.json"
        if weights.kind == "model" and file.is_file():
            return Words(_read(file, file.stat().st_mtime_ns))
    return Words(None)


@lru_cache(maxsize=2)
def _read(file: Path, changed: int) -> Tokenizer | None:
    """Once, as long as it has not changed: large ones take a while."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exceptions; numbers are shown then
        return None
