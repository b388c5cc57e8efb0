"""Is this the same run?  What exact continuation depends on, and how two of those differ."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from typing import Any

from gro.runs.plain import plain


def versions() -> dict[str, Any]:
    """What exact continuation depends on besides the configuration: versions and the number of threads."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "gro"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds
    found["threads"] = torch.get_num_threads() if torch is not None else os.environ.get("OMP_NUM_THREADS")
    return found


def differences(before: Any, now: Any, ignored: Collection[str] = ()) -> list[str]:
    """One line per leaf that differs, as `key.sub: 1 → 2`; keys in `ignored`, or below them, are left out.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 1 → 2']
    """
    left, right = dict(_leaves(plain(before))), dict(_leaves(plain(now)))
    lines = []
    for key in [*left, *(key for key in right if key not in left)]:
        one, two = (repr(side[key]) if key in side else "nothing" for side in (left, right))
        if one != two and not any(key == name or key.startswith(name + ".") for name in ignored):
            lines.append(f"{key}: {one} → {two}")
    return lines


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key, value
