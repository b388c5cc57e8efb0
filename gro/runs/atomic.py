"""Files written so that whoever looks, and whenever the power fails, finds the old content or the new and never a part.

A temporary file in the same directory, fsync, rename, fsync of the parent.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from gro.errors import GroError
from gro.runs.operations import announce, explained
from gro.runs.plain import dump_yaml, encodable, load_yaml, plain

_PIECE = 1 << 20  # bytes per announced write: small enough to tear a file in the middle, large enough to be fast
_counter = itertools.count()


class _AnnouncedFile(io.FileIO):
    """A file whose writes are cut into pieces and announced one by one."""

    def __init__(self, path: Path) -> None:
        announce("create", path)
        super().__init__(path, "w")
        self.path = path

    def write(self, data: Any, /) -> int:
        announce("write", self.path)
        return super().write(memoryview(data).cast("B")[:_PIECE])


def write_atomically(path: Path, write: Callable[[BinaryIO], object], needed: int | None = None) -> None:
    """Let `write` fill a binary file that becomes `path` only when it is complete and on the disk.

    For example `write_atomically(path, lambda file: torch.save(state, file))`.
    Raises DiskError where the system refuses; the old content of `path` is then still there.
    """
    temporary = scratch(path)
    with explained("write", path, needed):
        try:
            with io.BufferedWriter(_AnnouncedFile(temporary), _PIECE) as file:
                write(file)
                file.flush()
                announce("fsync", temporary)
                os.fsync(file.fileno())
            announce("rename", path)
            os.replace(temporary, path)
            sync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8; a lone surrogate, which UTF-8 cannot hold, is written as its escape."""
    data = encodable(text).encode()
    write_atomically(path, lambda file: file.write(data), needed=len(data))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by strict JSON: numbers that are not finite become null."""
    write_text(path, json.dumps(plain(value, finite=True), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.  Raises GroError naming the file where it is missing or not JSON."""
    with explained("read", path):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise GroError(f"{path} is not valid JSON: {error}") from error


def write_yaml(path: Path, value: Any) -> None:
    """Replace `path` by YAML that `read_yaml` gives back unchanged, keys in their order."""
    write_text(path, dump_yaml(plain(value)))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; `3e-4` is a number.  Raises GroError naming the file."""
    with explained("read", path):
        data = path.read_bytes()
    try:
        return load_yaml(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GroError(f"{path} is not valid YAML: {error}") from error


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON, whole or not at all.

    A line that a killed process left unfinished is closed first, not continued.
    """
    line = json.dumps(plain(value, finite=True), ensure_ascii=False, allow_nan=False)
    data = line.encode() + b"\n"
    new = not path.exists()
    with explained("append to", path, len(data)), path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data
        try:
            announce("write", path)
            while data:  # a nearly full disk takes a part and refuses the rest
                data = data[file.write(data) :]
            announce("fsync", path)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
        if new:
            sync_directory(path.parent)


def scratch(path: Path) -> Path:
    """A name beside `path` for what will become it, on the same file system; nothing is created."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{next(_counter)}")


def sync_file(path: Path) -> None:
    announce("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """A rename is durable only when the directory that holds the name is."""
    try:
        sync_file(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of directories
            raise
