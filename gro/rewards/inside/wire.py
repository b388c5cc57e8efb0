"""Values between checker and solution: lines of JSON, in which everything that is not plain data is a handle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import IO, Any

PLAIN = (str, int, float, type(None))
MOST_LINE = 16 << 20
"""Bytes of one message."""


def pack(value: Any, handle: Callable[[Any], Any]) -> Any:
    """As JSON.  Containers but lists become {kind: [...]}; `handle` says what becomes of what is no data."""
    if value is None or isinstance(value, PLAIN):
        plain = next(kind for kind in (bool, int, float, str, type(None)) if isinstance(value, kind))
        return value if type(value) is plain else plain(value)  # type: ignore[call-arg]
    if isinstance(value, list):
        return [pack(item, handle) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item, handle) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(k, handle), pack(v, handle)] for k, v in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return {"handle": handle(value)}


def unpack(message: Any, handle: Callable[[Any], Any]) -> Any:
    """The value that `pack` packed; `handle` says what a handle stands for."""
    if isinstance(message, list):
        return [unpack(item, handle) for item in message]
    if not isinstance(message, dict):
        return message
    ((kind, content),) = message.items()
    if kind == "handle":
        return handle(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    items = [unpack(item, handle) for item in content]
    if kind == "dict":
        return {key: value for key, value in items}  # noqa: C416  (dict() would take pairs of any iterable)
    kinds: dict[str, Callable[..., Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](items) if kind in kinds else {"complex": complex, "range": range}[kind](*items)


class Wire:
    """One end of the socket."""

    def __init__(self, descriptor: int) -> None:
        sys.set_int_max_str_digits(0)  # a factorial is an answer too; time is limited otherwise
        self._reader: IO[bytes] = open(descriptor, "rb", closefd=False)  # noqa: SIM115
        self._writer: IO[bytes] = open(descriptor, "wb", closefd=False)  # noqa: SIM115

    def send(self, message: Any) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        self._writer.flush()

    def receive(self) -> Any:
        """The next message.  Raises EOFError where the other end is gone, ValueError for what is no message."""
        line = self._reader.readline(MOST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)
