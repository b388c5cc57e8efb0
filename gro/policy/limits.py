"""What a configuration says about the lengths that a model can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary scaling that transformers decides for a whole forward pass, by its largest position."""


def longest_row(config: Any) -> int | None:
    """Rows beyond the end of a learned table of positions cannot be read at all; rotary ones have no end."""
    text = config.get_text_config()
    if list(_rope(text)) or getattr(text, "alibi", False):
        return None
    return getattr(text, "max_position_embeddings", None)


def longest_together(config: Any) -> int | None:
    """Rows longer than this must be alone in a forward pass, since they change the positions of all others in it."""
    text = config.get_text_config()
    limits = [
        rope.get("original_max_position_embeddings") or text.max_position_embeddings
        for rope in _rope(text)
        if rope.get("rope_type") in _BY_LENGTH
    ]
    return min(limits, default=None)


def _rope(config: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters: one set, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters or "rope_theta" in parameters:
        yield parameters
        return
    yield from (value for value in parameters.values() if isinstance(value, Mapping))
