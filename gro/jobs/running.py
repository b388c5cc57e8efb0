"""What every job that trains does with its run directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from gro.assemble import MODEL, START, Data
from gro.config import Config
from gro.errors import GroError
from gro.policy.policy import Policy
from gro.preflight import say
from gro.runs.plain import size_text
from gro.runs.report import write_report
from gro.runs.store import CHECKPOINTS, REJECTED, Run

_REST = 64 * 2**20
"""Bytes for metrics, rollouts and the report."""

LOGGING = ("run", "training.save_every", "training.record_groups", "training.kl_every", "slots", "eval")
"""Keys that do not change results, and may differ when a run is continued."""


@contextmanager
def run_of(config: Config, console: Console) -> Iterator[Run]:
    """The recipe's run directory while it is this process's; says what becomes of it where Ctrl-C ends the job."""
    with Run.open(config.run, config.resolved(), may_differ=LOGGING) as run:
        try:
            yield run
        except KeyboardInterrupt:
            say(console, f"interrupted: {shown(run.path)} is not finished; the same command begins it anew")
            raise


def begin(run: Run, console: Console) -> None:
    """Removes what an attempt that did not finish has left: this one begins anew."""
    if run.last_step is not None:
        say(console, f"{shown(run.path)} was interrupted after step {run.last_step}; this run begins anew")
        run.rewind(-1)
    for name in (START, MODEL, CHECKPOINTS):
        if (run.path / name).is_dir():
            shutil.rmtree(run.path / name)
    (run.path / REJECTED).unlink(missing_ok=True)


def check_room(config: Config, path: Path, policy: Policy) -> None:
    """Raises GroError where the disk cannot hold the models that will be written, which hours later would be worse."""
    model = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    every = config.training.save_every
    needed = model * (1 + (config.training.steps // every if every else 0)) + _REST
    if (free := shutil.disk_usage(path).free) < needed:
        raise GroError(
            f"{path}: the disk has {size_text(free)} free; the models of this run need {size_text(needed)} "
            f"(each {size_text(model)}{', one every ' + str(every) + ' steps' if every else ''})"
        )


def note_data(run: Run, data: Data) -> None:
    """Which rows were learnt from, by their hashes."""
    for name, dataset in data.named.items():
        hashes = {"sha256": dataset.sha256, "template_sha256": dataset.template_sha256}
        run.event("info", f"{name}: {len(dataset)} rows of {', '.join(dataset.spec.paths)}", None, **hashes)


def tell_results(run: Run, console: Console) -> None:
    """Where the model and the report lie."""
    report = write_report(run.path)
    say(console, f"model:  {shown(run.path / MODEL)}", f"report: {shown(report)}")
    if (rejected := run.path / REJECTED).exists():
        rows = rejected.read_bytes().count(b"\n")
        say(console, f"{rows} rows were left out of the data: {shown(rejected)}")


def shown(path: Path) -> str:
    """Relative where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
