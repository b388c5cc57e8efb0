"""What there is to label: prompts with completions, known by their content and never by their place in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Spoken = str | list[dict[str, str]]
"""Plain text, or messages."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with the completions that are shown together.

    >>> Item("2+2=", ["4", "5"])
    """

    prompt: Spoken
    completions: Sequence[Spoken]

    @property
    def id(self) -> str:
        """The same for the same prompt and completions, in whichever order."""
        return digest([digest(self.prompt), *sorted(map(digest, self.completions))])[:24]


def digest(value: Any) -> str:
    """The SHA-256 of a text (of its UTF-8), or of messages (of their JSON)."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
