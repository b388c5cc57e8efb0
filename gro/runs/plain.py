"""Values and text that can be written down: what JSON, YAML and UTF-8 can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

_DEEPEST = 100
"""Levels of a YAML file."""


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where a number with an exponent needs a point and a sign: `3e-4` would be text.

    It also takes the last of several values of one key, where YAML asks for an error.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Raises ConstructorError where a key is there twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises ComposerError at a depth that nobody writes: Python's own limit takes a second to unwind."""
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "it is nested too deeply", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Raises ConstructorError, which knows the line, where a value cannot be: the 13th month, 5000 digits."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # of PyYAML's own making, whatever the value leads it to
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


def load_yaml(text: str) -> Any:
    """YAML text as plain values.

    >>> load_yaml("lr: 3e-4")
    {'lr': 0.0003}
    """
    return yaml.load(text, Loader=_Loader)


class _Dumper(yaml.SafeDumper):
    """PyYAML reads the line breaks of Unicode, unescaped, back as spaces."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _side in (_Loader, _Dumper):  # the dumper too, so that it quotes text that looks like such a number
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def dump_yaml(value: Any) -> str:
    """Plain values as YAML text that `load_yaml` gives back unchanged, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def plain(value: Any, finite: bool = False) -> Any:
    """Only dict, list, str, int, float, bool and None, as JSON and YAML have them: paths become text, tuples lists.

    `finite`: numbers that are not finite become None.  Raises TypeError for what has no plain form.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return encodable(str(value))
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(item, finite) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(item, finite) for item in items]
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return plain(value.tolist(), finite)
    raise TypeError(f"{type(value).__name__} has no plain form: {value!r}")


def exact(number: float) -> float | str:
    """A number as JSON keeps it to the bit; one that is not finite as text (nan, inf, -inf).  `float` reads both.

    >>> exact(0.1), float(exact(math.inf))
    (0.1, inf)
    """
    return float(number) if math.isfinite(number) else str(float(number))


def encodable(text: str) -> str:
    """`text` with lone surrogates, which neither UTF-8 nor SQLite can hold, replaced by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def size_text(size: float) -> str:
    """Bytes in words.

    >>> size_text(1536)
    '1.5 KiB'
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
