"""The one place that writes files of a run directory.

Every write goes through here for two reasons.  It is durable: a temporary file in the same directory, fsync, rename,
fsync of the parent, so that whoever looks, and whenever the power fails, finds the old content or the new and never a
part.  And it is testable: every operation is announced to `on_operation` before it happens, so a test can count the
operations of a save and kill, or raise ENOSPC, at each of them in turn.

Operations: create, write (once per MiB), fsync, rename, remove, commit (a transaction of the database).
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from gro.errors import GroError
from gro.runs.plain import dump_yaml, encodable, load_yaml, plain, size_text

MANIFEST = "manifest.json"
"""Name of the list of files, sizes and checksums that makes a published directory complete."""

OnOperation = Callable[[str, Path], None]

on_operation: OnOperation | None = None
"""Called as (operation, path) before each operation.  What it raises, the operation raises."""

_PIECE = 1 << 20  # bytes per announced write: small enough to tear a file in the middle, large enough to be fast
_counter = itertools.count()
_LEFTOVER = re.compile(r"^\..+\.tmp-\d+-\d+$")


class DiskError(GroError):
    """The file system refused: full, over quota, read-only, broken.  What was there before is intact."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number
        """The system's error number, such as errno.ENOSPC, where there is one."""


class DamagedError(GroError):
    """A published directory is incomplete or its content is not what was written; the message names the file."""


def announce(operation: str, path: Path) -> None:
    """Tell the observer, if there is one, that `operation` on `path` is about to happen."""
    if on_operation is not None:
        on_operation(operation, path)


@contextmanager
def observed(hook: OnOperation) -> Iterator[None]:
    """Within this block `hook` is told of every operation, and may raise or kill in place of it."""
    global on_operation
    before, on_operation = on_operation, hook
    try:
        yield
    finally:
        on_operation = before


@contextmanager
def explained(doing: str, path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of this block into a DiskError that says what was being done and how much room there is.

    `needed`: bytes that were to be written, where that is known.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"cannot {doing} {path}: {describe(error, path, needed)}", error.errno) from error


def describe(error: OSError, path: Path, needed: int | None = None) -> str:
    """The system's words for `error`, and for a full disk the bytes needed and free."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        need = "" if needed is None else f"{size_text(needed)} needed, "
        text += f" ({need}{size_text(free_bytes(path))} free)"
    return text


def free_bytes(path: Path) -> int:
    """Bytes that can still be written on the file system of `path` or of its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


# Files


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
            _sync_directory(path.parent)
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


# Directories


def scratch(path: Path) -> Path:
    """A name beside `path` for what will become it, on the same file system; nothing is created."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{next(_counter)}")


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A temporary directory to fill, published as `final` at the end of the block and removed if it raises."""
    temporary = scratch(final)
    with explained("create", temporary):
        announce("create", temporary)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        publish_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_directory(temporary: Path, final: Path) -> None:
    """Make the directory `temporary`, on the same file system, into `final`, complete and durable.

    Order: contents to the disk, then the manifest with a checksum of each file, then the rename.  So a directory under
    its final name is complete, and one without a manifest never was.  `final` must not exist.
    """
    listing: dict[str, dict[str, Any]] = {}
    if final.exists():
        raise GroError(f"{final} exists already; it is never overwritten")
    with explained("publish", final):
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            listing[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            _sync_file(path)
        for directory in sorted((p for p in temporary.rglob("*") if p.is_dir()), reverse=True):
            _sync_directory(directory)
        write_json(temporary / MANIFEST, {"format": 1, "files": listing})
        announce("rename", final)
        os.rename(temporary, final)
        _sync_directory(final.parent)


def verify_directory(path: Path) -> list[Path]:
    """The files of a published directory, after checking every one against the manifest.

    Raises DamagedError naming the first file that is missing, cut off or altered.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise DamagedError(f"{path} was never completed: it has no {MANIFEST}")
    try:
        listing = read_json(manifest)["files"].items()
        expected = [(path / name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in listing]
    except (GroError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{manifest} is damaged: {error}") from error
    for file, size, checksum in expected:
        if not file.is_file():
            raise DamagedError(f"{file} is missing")
        if (found := file.stat().st_size) != size:
            raise DamagedError(f"{file} has {found} bytes where {size} were written")
        if _sha256(file) != checksum:
            raise DamagedError(f"{file} is damaged: its checksum is not that of what was written")
    return [file for file, _, _ in expected]


def remove_directory(path: Path) -> None:
    """Remove a published directory so that no half-removed one is ever seen under its name."""
    doomed = scratch(path)
    with explained("remove", path):
        announce("rename", doomed)
        os.rename(path, doomed)
        _sync_directory(path.parent)
        announce("remove", doomed)
        shutil.rmtree(doomed)


def sweep(directory: Path) -> list[Path]:
    """Remove the temporary files and directories that killed processes left; only for who holds the lock."""
    found = sorted(p for p in directory.iterdir() if _LEFTOVER.match(p.name)) if directory.is_dir() else []
    for path in found:
        with explained("remove", path):
            announce("remove", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    announce("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    """A rename is durable only when the directory that holds the name is."""
    try:
        _sync_file(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of directories
            raise
