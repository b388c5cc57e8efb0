"""In which settings runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from gro.runs.plain import encodable
from gro.runs.series import Series

MISSING = "–"
PLACE = "run"
"""The key that says where a run lies, which is no difference between runs."""


@dataclass(frozen=True, slots=True)
class Row:
    """A setting in which runs differ."""

    key: str
    """Dotted: `optimizer.learning_rate`, `rewards.0.weight`, `versions.torch`."""
    values: tuple[str, ...]
    """One for each run; – where it has no such key."""


def differences(runs: Sequence[Series]) -> list[Row]:
    """The settings, versions and numbers of threads that are not the same in all runs, in the order of the recipes."""
    return differing([flat(run.config) | flat(run.versions, "versions") for run in runs])


def differing(settings: Sequence[Mapping[str, str]]) -> list[Row]:
    """The same of settings that are flat already."""
    keys = dict.fromkeys(key for one in settings for key in one if key != PLACE)
    rows = (Row(key, tuple(one.get(key, MISSING) for one in settings)) for key in keys)
    return [row for row in rows if len(set(row.values)) > 1]


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Every setting by its dotted key, as text; lists of mappings by index, other lists as one setting.

    >>> flat({"algorithm": {"name": "dpo", "beta": 0.1}, "rewards": ["exact_match"]})
    {'algorithm.name': 'dpo', 'algorithm.beta': '0.1', 'rewards': '[exact_match]'}
    """
    return {encodable(name): encodable(text) for name, text in _leaves(value, key)}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    children: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        children = value
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        children = dict(enumerate(value))
    if not children:
        yield key, _text(value)
    for name, child in children.items():
        yield from _leaves(child, f"{key}.{name}" if key else str(name))


def _text(value: Any) -> str:
    """As YAML on one line, but text without quotes."""
    if isinstance(value, str):
        return value
    return _written(value) if isinstance(value, (bool, int, float)) else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return written.removesuffix("\n").removesuffix("\n...")


_written = lru_cache(maxsize=4096, typed=True)(_as_yaml)
"""Of numbers, which come again in run after run: YAML takes a hundred times as long as all the rest."""
