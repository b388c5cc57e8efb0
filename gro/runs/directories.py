"""Directories that appear under their name only when they are complete, and can prove that they still are.

Checkpoints and models are such directories: filled under a temporary name, then published with a manifest of sizes and
checksums as the last file.  Numbered ones (`step-20`) are searched for the newest that is sound, and rotated.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gro.errors import GroError
from gro.runs.atomic import read_json, scratch, sync_directory, sync_file, write_json
from gro.runs.operations import DamagedError, DiskError, announce, explained, refusal

MANIFEST = "manifest.json"
"""Name of the list of files, sizes and checksums that makes a published directory complete."""

_LEFTOVER = re.compile(r"^\..+\.tmp-\d+-\d+$")
_UNREADABLE = {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENOENT}  # a bad sector, a broken file system, gone


def make_directory(path: Path) -> None:
    """Create `path` and its parents where they are missing, each durable: a power cut takes no name away."""
    if not path.is_dir():
        make_directory(path.parent)
        with explained("create", path):
            announce("create", path)
            path.mkdir(exist_ok=True)
            sync_directory(path.parent)


@contextmanager
def new_directory(final: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary directory to fill, published as `final` at the end of the block and removed if it raises.

    `needed`: bytes that it will hold, for the message where the disk is full.  What other libraries raise for a disk
    that refuses becomes a DiskError too.
    """
    temporary = scratch(final)
    make_directory(final.parent)
    with explained("create", temporary):
        announce("create", temporary)
        temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (refused := refusal(error)) is not None and not (isinstance(error, DiskError) and needed is None):
            with explained("write", final, needed):
                raise refused from error
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
            sync_file(path)
        for directory in sorted((p for p in temporary.rglob("*") if p.is_dir()), reverse=True):
            sync_directory(directory)
        write_json(temporary / MANIFEST, {"format": 1, "files": listing, "sha256": _sha256_of(listing)})
        announce("rename", final)
        os.rename(temporary, final)
        try:
            sync_directory(final.parent)
        except BaseException:
            with suppress(OSError):
                os.rename(final, temporary)  # what is not durable was not published, and may be tried again
            raise


def verify_directory(path: Path) -> list[Path]:
    """The files of a published directory, after checking every one against the manifest, and that against itself.

    Raises DamagedError naming the first file that is missing, cut off or altered, or that the disk cannot read back.
    """
    expected = _listing(path)
    for name, (size, checksum) in expected.items():
        if (found := _size(path / name)) != size:
            what = "is missing" if found is None else f"has {found} bytes where {size} were written"
            raise DamagedError(f"{path / name} {what}")
        if _sha256(path / name) != checksum:
            raise DamagedError(f"{path / name} is damaged: its checksum is not that of what was written")
    return [path / name for name in expected]


def _listing(path: Path) -> dict[str, tuple[int, str]]:
    """Size and checksum of each file of a published directory, by name, as its manifest has them."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise DamagedError(f"{path} was never completed: it has no {MANIFEST}")
    try:
        content = read_json(manifest)
        if content["format"] != 1 or content["sha256"] != _sha256_of(content["files"]):
            raise DamagedError("its checksum is not that of what was written")
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    except (GroError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DiskError) and error.errno not in _UNREADABLE:
            raise
        raise DamagedError(f"{manifest} is damaged: {error}") from error


def remove_directory(path: Path) -> None:
    """Remove a published directory so that no half-removed one is ever seen under its name."""
    doomed = scratch(path)
    with explained("remove", path):
        announce("rename", doomed)
        os.rename(path, doomed)
        sync_directory(path.parent)
        announce("remove", doomed)
        shutil.rmtree(doomed)


# Numbered directories, such as checkpoints/step-20


def complete_directories(parent: Path, prefix: str) -> list[Path]:
    """The directories `prefix`N in `parent` whose files are all there in their full sizes, the largest N first.

    Checksums are not looked at; `verify_directory` does that for the one that is to be read.
    """
    return [path for path in _numbered(parent, prefix) if _is_whole(path)]


def newest_complete(parent: Path, prefix: str) -> tuple[Path | None, list[str]]:
    """The directory `prefix`N with the largest N that verifies, and a message for each larger one that does not.

    None where no directory verifies.  A message names the damaged file.
    """
    refused: list[str] = []
    for path in _numbered(parent, prefix):
        try:
            verify_directory(path)
        except DamagedError as error:
            refused.append(str(error))
        else:
            return path, refused
    return None, refused


def rotate(parent: Path, prefix: str, keep: int) -> list[Path]:
    """Remove the directories `prefix`N that are older than the newest `keep` whole ones; which those were.

    To be called once the newest is published.  The oldest goes first, so whenever this is interrupted the newest are
    there.  Directories that are not whole do not count as kept: they push no good one out.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: the newest must stay")
    kept = complete_directories(parent, prefix)[:keep]
    everything = _numbered(parent, prefix)
    old = everything[everything.index(kept[-1]) + 1 :] if len(kept) == keep else []
    for path in reversed(old):
        remove_directory(path)
    return old


def _numbered(parent: Path, prefix: str) -> list[Path]:
    """Directories named `prefix` and a number, the largest number first."""
    if not parent.is_dir():
        return []
    with explained("read", parent):
        found = [p for p in parent.iterdir() if re.fullmatch(re.escape(prefix) + r"\d+", p.name) and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name[len(prefix) :]), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        return all(_size(path / name) == size for name, (size, _) in _listing(path).items())
    except DamagedError:
        return False


# Leftovers, and what the above share


def sweep(directory: Path) -> list[Path]:
    """Remove the temporary files and directories that killed processes left; only for who holds the lock."""
    found = sorted(p for p in directory.iterdir() if _LEFTOVER.match(p.name)) if directory.is_dir() else []
    if found:
        with explained("remove", found[0]):
            sync_directory(directory)  # their names before their contents: none may come back as what it was
    for path in found:
        with explained("remove", path):
            announce("remove", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return found


def _sha256(path: Path) -> str:
    """Raises DamagedError where the disk cannot read the file back."""
    with explained("read", path):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise DamagedError(f"{path} is damaged: {error.strerror}") from error
            raise


def _sha256_of(listing: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is no such file."""
    return path.stat().st_size if path.is_file() else None
