"""What `gro train` and `gro reward-model` have in common: how a job begins, goes on and ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gro.algorithms.describe import formula
from gro.assemble import Data, Start, build_algorithm, load_data, lockstep_of
from gro.config import Config
from gro.jobs.interrupts import Interrupts
from gro.jobs.launch import followed, job_of, quiet_console
from gro.jobs.running import (
    check_identity,
    continue_or_begin,
    forget_state,
    is_finished,
    note_data,
    run_of,
    start_together,
    tell_results,
)
from gro.objective import Algorithm
from gro.preflight import say
from gro.runs.store import Run
from gro.runs.terminal import console as patient_console
from gro.training.processes import Processes


@dataclass(frozen=True, slots=True)
class Work:
    """A job on its way."""

    config: Config
    """The recipe as this process follows it."""
    run: Run
    console: Console
    interrupts: Interrupts
    processes: Processes


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known before anything heavy is loaded."""

    algorithm: Algorithm
    state: Path | None
    """From which an earlier attempt is continued."""
    start: Start
    data: Data


def carry_out(config: Config, train: Callable[[Work], None], console: Console | None = None) -> Path:
    """Trains in the recipe's run directory, which is returned, unless an earlier attempt has finished."""
    with job_of(config) as job:
        console = console or (patient_console() if job.processes.first else quiet_console())
        if not is_finished(config, console, job.processes):
            with run_of(config, console, job) as (run, interrupts):
                train(Work(followed(config, job), run, console, interrupts, lockstep_of(config, job.processes)))
                if job.processes.first:
                    forget_state(config)
        path = Path(config.run).expanduser().absolute()
        if job.processes.first:
            tell_results(path, console)
    return path


def begin(work: Work) -> Begun:
    """Algorithm, starting model and data; GroError where an earlier attempt had others."""
    config, run, processes = work.config, work.run, work.processes
    algorithm = build_algorithm(config)
    say(work.console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    state = continue_or_begin(run, work.console, processes)
    start = start_together(config, run, processes)
    data = load_data(config, start, run)
    check_identity(run, config, data, start, processes)
    note_data(run, data)
    return Begun(algorithm, state, start, data)
