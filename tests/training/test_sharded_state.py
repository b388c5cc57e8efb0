"""States that several processes have written, read by one: only what describes tensors is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from gro.errors import GroError
from gro.training import sharded_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    tensors = {f"policy/{t}": torch.arange(6).reshape(2, 3).to(t) for t in (torch.float32, torch.bfloat16, torch.int64)}
    save(tensors | {"memory": torch.ones(2)}, checkpoint_id=tmp_path / "parts", no_dist=True)
    return tmp_path


def test_what_was_written_is_read(state: Path) -> None:
    assert sharded_state.shapes_in(state)["memory"] == torch.Size([2])
    found = {f"policy/{t}": torch.zeros(2, 3, dtype=t) for t in (torch.float32, torch.bfloat16, torch.int64)}
    sharded_state.read(found, state, among="policy/")
    for tensor in found.values():
        assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.fault("M2")
def test_a_description_that_would_run_something_is_refused(state: Path) -> None:
    file, made = state / "parts" / ".metadata", state / "made"
    whole = file.read_bytes()
    for content in (pickle.dumps(Harm(made)), pickle.dumps(Harm(made), protocol=0), whole[:40], b"", b"c", whole[5:]):
        file.write_bytes(content)
        with pytest.raises(GroError, match="parts cannot be read"):
            sharded_state.read({}, state)
    assert not made.exists()
    file.write_bytes(pickle.dumps(Harm(made)))
    pickle.loads(file.read_bytes())
    assert made.exists(), "or nothing was tested"
