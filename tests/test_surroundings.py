"""Jobs where little is as it should be: no home, network or terminal, a full /tmp, a moved run, a mad clock."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gro.errors import GroError
from gro.runs import Progress, Run, RunReader, write_report
from gro.training.checkpoint import Keeper
from jobs_on_sums import cli, sft, write_data

ROOT = Path(__file__).resolve().parents[1]

POOR = """
import os, socket, sys, tempfile
from pathlib import Path

try:
    Path("/tmp/full").write_bytes(bytes(1 << 20))
except OSError as error:
    assert error.errno == 28, error
else:
    sys.exit("/tmp is not full")
for place in (Path.home() / "x", Path("x")):
    try:
        place.write_text("")
    except OSError:
        continue
    sys.exit(f"{place} can be written")
try:
    socket.create_connection(("1.1.1.1", 53), 2)
except OSError:
    pass
else:
    sys.exit("there is a network")
sys.argv[0] = "gro"
from gro.cli import main
main()
"""


def poor(place: Path) -> list[str]:
    """A command before a command: a full /tmp, only `place` and the project in it, no network, a working directory
    and a home that cannot be written."""
    bind = ["--dev-bind", "/", "/", "--size", "4096", "--tmpfs", "/tmp", "--size", "4096", "--tmpfs", "/var/tmp"]
    return ["bwrap", *bind, "--bind", str(place), str(place), "--unshare-net", "--chdir", "/proc", "--die-with-parent"]


def usable(command: list[str]) -> bool:
    if shutil.which("bwrap") is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.fault("P9", "P10")
def test_a_job_in_poor_surroundings(tmp_path: Path) -> None:
    if not usable(poor(tmp_path)):
        pytest.skip("no bubblewrap here")
    write_data(tmp_path)
    path = sft(tmp_path, training__steps=3, training__resume_every=2)
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")}
    environment |= {"HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
    reading, writing = os.pipe()
    os.close(reading)  # standard output has nobody behind it
    done = subprocess.run(
        [*poor(tmp_path), sys.executable, "-c", POOR, "train", str(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    with RunReader(tmp_path / "sft") as reader:
        assert reader.status == "finished"
        assert reader.metrics()["loss"][0].tolist() == [1, 2, 3]
    assert (tmp_path / "sft" / "model" / "model.safetensors").exists()


def mad() -> float:
    """A clock that jumps by years, and back before 1970."""
    return next(_JUMPS)


_JUMPS = itertools.cycle([2e9, 0.0, 1.7e9, 4e9, -1e6, 1.8e9])


@pytest.mark.fault("P9")
def test_a_clock_that_jumps_changes_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", mad)
    for _ in range(2):
        with Run.open(tmp_path / "r", {"seed": 1}) as run, Progress(6) as progress:
            first = (run.last_step or 0) + 1
            for step in range(first, first + 3):
                run.record(step, {"loss": 1 / step})
                progress.step(step, {"loss": 1 / step})
            if first > 1:
                run.finish()
    with RunReader(tmp_path / "r") as reader:
        assert reader.status == "finished"
        assert reader.metrics()["loss"][0].tolist() == [1, 2, 3, 4, 5, 6]
        assert reader.metrics()["loss"][1].tolist() == [1 / step for step in range(1, 7)]
    assert "loss" in write_report(tmp_path / "r").read_text(encoding="utf-8")


@pytest.mark.fault("P9")
def test_a_job_goes_on_elsewhere_under_another_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, from another directory, with a relative path: the same weights as without all that."""
    write_data(tmp_path)
    path = sft(tmp_path, training__steps=5, training__resume_every=2)
    assert cli("train", path).code == 0
    weights = (tmp_path / "sft" / "model" / "model.safetensors").read_bytes()

    def stop(self: Keeper, step: int, state: object) -> None:
        real(self, step, state)  # type: ignore[arg-type]
        if step == 3:
            raise GroError("enough")

    real = Keeper.__call__
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "__call__", stop)
        done = cli("train", path, "run=first")
        assert (done.code, done.err) == (2, "error: enough\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "first").rename(tmp_path / "elsewhere" / "second")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(time, "time", mad)
    done = cli("train", path, "run=second")
    assert done.code == 0, done.err
    assert "continues after step 2" in done.out
    assert (tmp_path / "elsewhere" / "second" / "model" / "model.safetensors").read_bytes() == weights
