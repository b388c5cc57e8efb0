"""What every job that trains does with its run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from gro.assemble import (
    MODEL,
    ROUNDING,
    START,
    Data,
    Start,
    identity_of,
    may_differ,
    places_of,
    refuse_other_content,
    start_of,
)
from gro.config import Config
from gro.errors import GroError, Interrupted
from gro.jobs.interrupts import Interrupts
from gro.jobs.launch import SOLE, Job, agree
from gro.preflight import say
from gro.runs import RunReader, files
from gro.runs.identity import differences
from gro.runs.report import write_report
from gro.runs.silent import SilentRun
from gro.runs.store import CHECKPOINTS, CONFIG, DATABASE, REJECTED, STATE, Run
from gro.training.checkpoint import KEPT, PREFIX, Carried, Keeper, newest
from gro.training.processes import ALONE, Processes


def open_run(config: Config, path: str | Path, processes: Processes = ALONE) -> Run:
    """The run directory of a recipe, or of a part of it: the first process owns it."""
    if not processes.first:
        return SilentRun(path, processes.rank)
    return Run.open(path, config.resolved(), may_differ=may_differ(config), rounding=ROUNDING)


def is_finished(config: Config, console: Console, processes: Processes = ALONE) -> bool:
    """Whether a run of this recipe is finished already, so that nothing is left to do; then it is said."""
    said = processes.join([_finished(config) if processes.first else None])[0]
    if said is not None:
        say(console, said)
    return said is not None


def _finished(config: Config) -> str | None:
    """What to say of a run that is finished; None where it is not, or another recipe's, which opening it refuses."""
    path = Path(config.run).expanduser().absolute()
    if not (path / DATABASE).is_file() or not (path / CONFIG).is_file():
        return None
    try:
        with RunReader(path) as reader:
            if reader.status != "finished" or differences(reader.config, config.resolved(), may_differ(config)):
                return None
            last = reader.last_step
    except GroError:  # of another version, or killed while the database was made: opening it says so, or puts it right
        return None
    Run.tidy(path)
    forget_state(config)  # a kill may have come between the end and this
    steps = "" if last is None else f" (last step {last})"  # none is its own where it is made of several runs
    return f"{shown(path)} holds a finished run of this recipe{steps}; nothing is left to do"


@contextmanager
def run_of(config: Config, console: Console, job: Job = SOLE) -> Iterator[tuple[Run, Interrupts]]:
    """The recipe's run directory while it is this job's, which may be asked to stop; says how it then goes on."""
    with open_run(config, config.run, job.processes) as run:
        if job.watchdog is not None:
            job.watchdog.told = lambda failure: run.failure("stopped", failure)
        for notice in run.notices:
            say(console, f"note: {notice}")
        with Interrupts() as interrupts:
            try:
                yield run, interrupts
            except Interrupted as why:
                if not why.saved:
                    states = files.complete_directories(run.path / STATE, PREFIX)
                    goes_on = f"continues after step {_step(states[0])}" if states else "begins anew"
                    said = f"{why}: {shown(run.path)} is not finished; the same command {goes_on}"
                    raise Interrupted(said, together=why.together) from None
                raise
            except Exception as error:
                if job.watchdog is not None and (failure := job.watchdog.cause_of(error)) is not None:
                    raise GroError(failure) from error  # so that the run remembers that, too
                raise


def continue_or_begin(run: Run, console: Console, processes: Processes = ALONE) -> Path | None:
    """The state that the run goes on from; without one, what an earlier attempt has left is removed."""
    found = _continue_or_begin(run, console) if processes.first else None
    return processes.join([found])[0]


def _continue_or_begin(run: Run, console: Console) -> Path | None:
    found, damaged = newest(run.path)
    for problem in damaged:
        run.event("warning", problem)
        say(console, f"warning: {problem}")
    if found is None and damaged:
        raise GroError(
            f"{shown(run.path)} cannot be continued: no state of it is whole. Restore one, or remove "
            f"{shown(run.path / STATE)} to begin anew"
        )
    step = -1 if found is None else _step(found)
    if found is None and run.last_step is None:  # nothing is there that other data or code could be mixed with
        run.keep("identity", None)
    if found is not None:
        say(console, f"{shown(run.path)} continues after step {step}")
    elif run.last_step is not None:
        say(console, f"{shown(run.path)} was interrupted and has no saved state; it begins anew")
    run.rewind(step)
    for folder in (run.path / MODEL, *([] if found else [run.path / START])):
        if folder.is_dir():
            files.remove_directory(folder)
    for folder in [f for name in (CHECKPOINTS, STATE) for f in (run.path / name).glob(f"{PREFIX}*")]:
        if _step(folder) > step:  # done again, or damaged
            files.remove_directory(folder)
    files.rotate(run.path / STATE, PREFIX, KEPT)  # a kill may have come between the newest state and this
    (run.path / REJECTED).unlink(missing_ok=True)
    return found


def begin_anew(run: Run, console: Console) -> None:
    """Removes what an earlier attempt at a job without states has left."""
    if run.last_step is not None:
        say(console, f"{shown(run.path)} was interrupted; it begins anew")
        run.rewind(-1)
    for name in (START, MODEL, CHECKPOINTS):
        if (run.path / name).is_dir():
            files.remove_directory(run.path / name)
    (run.path / REJECTED).unlink(missing_ok=True)


def forget_state(config: Config) -> None:
    """What a finished run was continued from, and runs inside it, unless the recipe keeps it."""
    if config.training.keep_state:
        return
    path = Path(config.run).expanduser().absolute()
    with RunReader(path) as run:
        own = run.config["run"]
    for state in list(path.rglob(STATE)):
        if _recipe_says(state.parent) == own:  # runs of other recipes may lie inside, too, and be at work
            files.remove_directory(state)


def _recipe_says(path: Path) -> str | None:
    """Where its recipe wants it, the same for runs that a run has made inside it; None where there is no run."""
    try:
        with RunReader(path) as run:
            return str(run.config["run"])
    except GroError:
        return None


def keeper_of(
    config: Config,
    run: Run,
    carried: Carried,
    interrupts: Interrupts,
    waited: Callable[[], float] = lambda: 0.0,
) -> Keeper:
    """What keeps the state of a run as its recipe says.  waited: how long for people, in seconds so far."""
    portions = config.training
    return Keeper(
        run.path,
        carried,
        every=portions.resume_every,
        export_every=portions.save_every,
        asked=lambda: interrupts.asked,
        waited=waited,
    )


def check_identity(run: Run, config: Config, data: Data, start: Start, processes: Processes = ALONE) -> None:
    """Raises GroError where the run was begun with other data, template, model or code than those of now, or where
    another process has others."""
    now, before = identity_of(config, data, start), run.kept("identity")
    agree(processes, config, now)
    refuse_other_content(shown(run.path), before or now, now, places_of(config, data, start))
    if before is not None and before != now:
        run.event("warning", "the eval section is another one than before: what is held out cannot be compared")
    if before != now:
        run.keep("identity", now)


def start_together(config: Config, run: Run, processes: Processes) -> Start:
    """The starting model; where it is made from nothing, the first process makes it and the others wait."""
    if not processes.first:
        processes.any(False)
    start = start_of(config, run.path)
    if processes.first:
        processes.any(False)
    return start


def note_data(run: Run, data: Data) -> None:
    """Which rows were learnt from, by their hashes."""
    for name, dataset in data.named.items():
        hashes = {"sha256": dataset.sha256, "template_sha256": dataset.template_sha256}
        run.event("info", f"{name}: {len(dataset)} rows of {', '.join(dataset.spec.paths)}", None, **hashes)


def tell_results(run: Path, console: Console) -> None:
    """Writes the report, and says where it and the model lie."""
    report = write_report(run)
    say(console, f"model:  {shown(run / MODEL)}", f"report: {shown(report)}")
    if (rejected := run / REJECTED).exists():
        rows = rejected.read_bytes().count(b"\n")
        say(console, f"{rows} rows were left out of the data: {shown(rejected)}")


def shown(path: Path) -> str:
    """Relative where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))
