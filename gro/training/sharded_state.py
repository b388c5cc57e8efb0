"""States of weights that are cut over processes: each writes its own part, in the background (torch's DCP).

A state is read on any number of processes: what each then has is put together from the parts that it overlaps.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from gro.errors import GroError, in_a_line
from gro.runs import files
from gro.training.processes import Processes

FOLDER = "parts"
"""Of a state's directory: what the processes have written."""
_CHECKPOINT = "torch.distributed.checkpoint"
_DESCRIBED_BY = {
    (f"{_CHECKPOINT}.metadata", "Metadata"),
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"),
    (f"{_CHECKPOINT}.metadata", "StorageMeta"),
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "TensorProperties"),
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
}
"""Module and name of everything that torch's description of a state is made of, but for types of numbers."""


def read(tensors: Mapping[str, Tensor], folder: Path, *, among: str = "") -> None:
    """Fills the tensors, whole or cut, in place; all processes together.

    among: they are all of those in the state whose names begin so.

    Raises:
        GroError: the state holds other tensors, or cannot be read.
    """
    shapes = {name: shape for name, shape in shapes_in(folder).items() if name.startswith(among)}
    wrong = sorted(tensors.keys() ^ shapes.keys()) or [n for n, t in tensors.items() if t.shape != shapes[n]]
    if wrong:
        raise GroError(f"{folder}: not a state of this run: {wrong[0]} is missing, unknown or of another shape")
    try:
        load({n: t.detach() for n, t in tensors.items()}, storage_reader=FileSystemReader(folder / FOLDER))
    except (CheckpointException, OSError, RuntimeError) as error:
        raise GroError(f"{folder / FOLDER} cannot be read: {_first_line(error)}") from error


def shapes_in(folder: Path) -> dict[str, torch.Size]:
    """The tensors of a state by name."""
    try:
        for file in (folder / FOLDER).glob("*.metadata"):
            with file.open("rb") as stream:
                _Description(stream).load()
        found = FileSystemReader(folder / FOLDER).read_metadata().state_dict_metadata
    except (OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise GroError(f"{folder / FOLDER} cannot be read: {_first_line(error)}") from error
    return {name: entry.size for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


class _Description(pickle.Unpickler):
    """Lets no other pickle through: it could run anything, and the run may be somebody else's."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What the pickle asks for."""
        number = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if not number and (module_name, global_name) not in _DESCRIBED_BY:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which describes no tensors")
        return super().find_class(module_name, global_name)


@dataclass(frozen=True, slots=True)
class _Written:
    """A state that is being written."""

    final: Path
    temporary: Path
    done: Future[None]


class Writer:
    """Writes one state at a time while training goes on; the next one waits for it, and so does the end of a run."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        # A group of its own: training uses the others at the same time.
        self._group: Any = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._now: _Written | None = None

    def begin(self, final: Path, tensors: Mapping[str, Tensor], fill: Callable[[Path], object]) -> None:
        """Copies the tensors and goes on; all processes together.

        The first process also lets `fill` write what is whole into the directory, and publishes that under its name
        when all have written.
        """
        self.finish()
        mine, fault = None, None
        try:
            if self._processes.first:
                mine = files.scratch(final)
                files.make_directory(mine)
                fill(mine)
        except GroError as error:
            fault = str(error)
        self._processes.raise_together(fault)
        temporary = next(path for path in self._processes.join([mine]) if path is not None)
        held = {name: tensor.detach() for name, tensor in tensors.items()}
        writer = FileSystemWriter(temporary / FOLDER)
        written = async_save(held, storage_writer=writer, process_group=self._group)
        done = self._thread.submit(self._publish, cast("Future[Any]", written), temporary, final)
        self._now = _Written(final, temporary, done)

    def finish(self) -> Path | None:
        """Waits for what is being written, if anything is; GroError in all processes where it failed in one."""
        if self._now is None:
            return None
        now, self._now = self._now, None
        fault = None
        try:
            now.done.result()
        except (CheckpointException, GroError, OSError, RuntimeError) as error:
            fault = f"the state {now.final} was not written: {_first_line(error)}"
        if fault is not None and self._processes.first:
            shutil.rmtree(now.temporary, ignore_errors=True)
        self._processes.raise_together(fault)
        return now.final

    def _publish(self, written: Future[Any], temporary: Path, final: Path) -> None:
        written.result()  # in the first process only when all have written
        if self._processes.first:
            files.publish_directory(temporary, final)


def _first_line(error: BaseException) -> str:
    """A CheckpointException wraps one error per process."""
    if isinstance(error, CheckpointException):
        inner = next(iter(error.failures.values()))
        error = inner[0] if isinstance(inner, tuple) else inner
    return in_a_line(error)
