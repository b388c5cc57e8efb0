"""Runs code, then answers: what is this name, call that with these arguments."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from .wire import Wire, pack, unpack


def main(code: str, channel: int) -> None:
    """Until the checker closes the channel."""
    wire = Wire(channel)
    wire.send("ready")
    sys.setrecursionlimit(10_000)
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution.py", "exec"), namespace)
    except BaseException as error:  # also SystemExit: code that ends itself is not to end the conversation
        wire.send(_error(error))
        return
    held: list[Any] = [SimpleNamespace(**{k: v for k, v in namespace.items() if isinstance(k, str)})]
    """What the checker knows by number; 0 is the module."""
    wire.send("loaded")
    while True:
        try:
            request = wire.receive()
        except EOFError:
            return
        try:
            answer = _answer(request, held)
        except BaseException as error:
            answer = _error(error)
        wire.send(answer)


def _answer(request: dict[str, Any], held: list[Any]) -> dict[str, Any]:
    def handle(value: Any) -> int:
        held.append(value)
        return len(held) - 1

    def referred(number: int) -> Any:
        return held[number]

    target = held[request["of"]]
    if "get" in request:
        return {"value": pack(getattr(target, request["get"]), handle)}
    arguments = [unpack(argument, referred) for argument in request["args"]]
    keywords = {name: unpack(argument, referred) for name, argument in request["kwargs"].items()}
    value = {"call": target, "len": len, "str": str, "repr": repr, "list": list, "item": _item}[request["do"]](
        *([] if request["do"] == "call" else [target]), *arguments, **keywords
    )
    # A function may answer by changing what it was given.
    changed = {at: pack(a, handle) for at, a in enumerate(arguments) if isinstance(a, list | dict | set)}
    return {"value": pack(value, handle), "changed": changed}


def _item(target: Any, key: Any) -> Any:
    return target[key]


def _error(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)[:500]
    except BaseException:
        message = ""
    kind = next((c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"), "Exception")
    line = error.__traceback__
    at = None
    while line is not None:
        at = line.tb_lineno if line.tb_frame.f_code.co_filename == "solution.py" else at
        line = line.tb_next
    return {"error": kind, "message": message + (f" (line {at})" if at and kind != "SyntaxError" else "")}
