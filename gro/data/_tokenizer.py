"""What there is to know about a tokenizer before it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gro.errors import GroError


def private_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Its own tokenizer without truncation and padding, and with offsets that hold the spaces of their tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    state["truncation"] = state["padding"] = None
    for part in ("post_processor", "pre_tokenizer"):
        _untrimmed(state.get(part))
    return Tokenizer.from_str(json.dumps(state))


def _untrimmed(part: Any) -> None:
    if isinstance(part, dict):
        if "trim_offsets" in part:
            part["trim_offsets"] = False
        for value in part.values():
            _untrimmed(value)
    elif isinstance(part, list):
        for value in part:
            _untrimmed(value)


def own_beginning(core: Tokenizer) -> tuple[int, ...]:
    """What it puts before a text; what it puts behind is not for prompts, and not ours to keep."""
    bare, ids = core.encode("a", add_special_tokens=False).ids, core.encode("a").ids
    for k in range(len(ids) - len(bare) + 1):
        if ids[k : k + len(bare)] == bare:
            return tuple(ids[:k])
    raise GroError(f"the tokenizer gives the ids {ids} for 'a', and {bare} without special tokens")


def token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Of "bos", "eos", "pad" or "unk"; None where the tokenizer has none."""
    value = getattr(tokenizer, f"{name}_token_id")
    return value if isinstance(value, int) else None


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that the tokenizer calls special."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


def finder(names: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of these names in a text."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "$^")
