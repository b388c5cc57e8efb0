"""Rewards that a recipe may call by a bare name.  A new one costs a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

NAMED: dict[str, str] = {
    "code": "gro.rewards.code:code",
    "cosine_length": "gro.rewards.cosine:cosine_length",
    "exact_match": "gro.rewards.rules:exact_match",
    "human": "gro.raters.human:human",
    "judge": "gro.judges.reward:judge",
    "json_format": "gro.rewards.formats:json_format",
    "length": "gro.rewards.lengths:length",
    "maths": "gro.rewards.maths:maths",
    "normalised_match": "gro.rewards.rules:normalised_match",
    "overlong": "gro.rewards.overlong:overlong",
    "regex": "gro.rewards.formats:regex",
    "regex_answer": "gro.rewards.formats:regex_answer",
    "repetition": "gro.rewards.lengths:repetition",
    "reward_model": "gro.rewards.trained:reward_model",
    "tag_format": "gro.rewards.formats:tag_format",
}
"""name → `module:function`.  Text, so that listing the names does not import what the functions need."""

REMOTE = "gro.rewards.remote:remote"
"""What asks a server, for a reward that is given as an address."""


def resolved(place: str, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An address as the reward that asks it, with the address among its parameters; anything else as it is."""
    if place.startswith(("http://", "https://")):
        return REMOTE, {"url": place, **params}
    return place, dict(params)


def named() -> dict[str, Callable[..., Any]]:
    """Every reward with a name of its own, imported.

    >>> named()["exact_match"](completions=["4 "], solution=["4"])
    [1.0]
    """
    found = {}
    for name, place in NAMED.items():
        module, function = place.split(":")
        found[name] = getattr(importlib.import_module(module), function)
    return found
