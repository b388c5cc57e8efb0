"""The one place that writes files of a run directory.

Every write goes through here for two reasons.  It is durable: whoever looks, and whenever the power fails, finds the
old content or the new and never a part.  And it is testable: every operation is announced before it happens, so a test
can count the operations of a save and kill, or raise ENOSPC, at each of them in turn.

Single files are in `atomic`, whole directories in `directories`, announcing and the errors in `operations`.
Operations: create, write (once per MiB), fsync, rename, remove, commit (a transaction of the database).
"""

from __future__ import annotations

from gro.runs.atomic import (
    append_json_line,
    read_json,
    read_yaml,
    scratch,
    write_atomically,
    write_json,
    write_text,
    write_yaml,
)
from gro.runs.directories import (
    MANIFEST,
    complete_directories,
    make_directory,
    new_directory,
    newest_complete,
    publish_directory,
    remove_directory,
    rotate,
    sweep,
    verify_directory,
)
from gro.runs.operations import (
    DamagedError,
    DiskError,
    OnOperation,
    announce,
    describe,
    explained,
    free_bytes,
    observed,
)
from gro.runs.plain import size_text

__all__ = [
    "MANIFEST",
    "DamagedError",
    "DiskError",
    "OnOperation",
    "announce",
    "append_json_line",
    "complete_directories",
    "describe",
    "explained",
    "free_bytes",
    "make_directory",
    "new_directory",
    "newest_complete",
    "observed",
    "publish_directory",
    "read_json",
    "read_yaml",
    "remove_directory",
    "rotate",
    "scratch",
    "size_text",
    "sweep",
    "verify_directory",
    "write_atomically",
    "write_json",
    "write_text",
    "write_yaml",
]
