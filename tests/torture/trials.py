"""Random kills; and kills, full disks and broken disks at every operation."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from gro.runs import files
from gro.runs.store import STATE
from gro.training.checkpoint import PREFIX
from torture.attempts import Attempt, Ended, Strike
from torture.cases import Case
from torture.compare import differences

MOMENTS = ("anywhere", "step", "save")
"""Random moments of a kill: of the whole attempt; between two states; while a state or a model is written."""
STRIKES = ("SIGKILL", "ENOSPC", "EIO")
_KILLS = 5
"""At most, in one run."""


@dataclass(frozen=True)
class Quiet:
    """A run that nobody disturbed, and what it took."""

    case: Case
    base: Path
    """Data and models."""
    folder: Path
    path: Path
    """The recipe."""
    ended: Ended
    opening: float
    """Processor seconds until the first state is being written."""
    saving: float
    """Seconds in which a state is written."""
    step: float
    """Seconds between two states."""
    operations: tuple[tuple[str, str, int], ...]
    """Of the whole run: operation, name of the file, states written before."""

    @property
    def run(self) -> Path:
        return self.folder / "quiet"

    def command(self, run: Path) -> list[str]:
        """The command of a trial."""
        return [self.case.command, str(self.path), f"run={run}"]

    def attempt(self, run: Path, *overrides: str, **how: Any) -> Attempt:
        """The command in a process."""
        command = [*self.command(run), *overrides]
        return Attempt(command, self.folder, run.with_suffix(".log"), before=without_pictures, **how)

    def save_of(self, number: int) -> range:
        """The operations with which the state of this number is written, from 1, and an older one removed."""
        places = [i for i, (_, _, saves) in enumerate(self.operations) if saves == number - 1]
        first = next(i for i in places if self.operations[i][1].startswith(f".{PREFIX}"))
        return range(first, places[-1] + 1)


@dataclass
class Trial:
    """A run that was disturbed, and what came of it."""

    case: str
    what: str
    """random; or the operation, and what happened in place of it."""
    attempts: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    """Of every kill: the moment aimed at, whether a state or model was being written, and how many states were."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def without_pictures() -> None:
    """The curves of the report take longer than the rest of so small a run."""
    from gro.runs import pages

    pages.inline_svg = lambda *arguments, **options: ""


def quiet(case: Case, base: Path, folder: Path, *, twice: bool = True) -> Quiet:
    """Runs the case undisturbed; twice, as two such runs must be the same before anything else can be asked."""
    folder.mkdir(parents=True)
    path = case.recipe(base, folder)
    first = Quiet(case, base, folder, path, Ended(0, "", 0, 0, False, 0, 0), 0, 0, 0, ())
    if twice:
        _expect(first.attempt(folder / "twin").finish(), folder / "twin.log")
    listing = folder / "operations.tsv"
    attempt = first.attempt(folder / "quiet", listing=listing)
    opening, times = 0.0, []
    while not attempt.over():
        mark = (attempt.board.saves, attempt.board.inside > 0)
        if not times or times[-1][0] != mark:
            times.append((mark, time.monotonic()))
            if mark == (0, True):
                opening = attempt.cpu()
        time.sleep(0.0005)
    ended = attempt.finish()
    _expect(ended, folder / "quiet.log")
    if twice and (found := differences(folder / "quiet", folder / "twin")):
        raise RuntimeError(f"{case.name}: two undisturbed runs differ: {found}")
    if still := _still(folder / "quiet"):
        raise RuntimeError(f"{case.name}: nothing moves in {still}, so that it can prove nothing")
    spans: dict[bool, list[float]] = {True: [0.01], False: [0.01]}
    for (mark, at), (_, until) in pairwise(times):
        if mark[0] > 0:
            spans[mark[1]].append(until - at)
    lines = (line.split("\t") for line in listing.read_text().splitlines())
    operations = tuple((operation, name, int(saves)) for operation, name, saves in lines)
    saving, step = (sorted(spans[kind])[len(spans[kind]) // 2] for kind in (True, False))
    return Quiet(case, base, folder, path, ended, opening, saving, step, operations)


def _still(run: Path) -> list[str]:
    """Weights that are the same in the last two states of a run, or of a run inside it."""
    found = []
    for state in run.rglob(STATE):
        states = sorted(state.glob(f"{PREFIX}*"), key=lambda path: int(path.name.removeprefix(PREFIX)))
        before, after = states[0], states[-1]
        if before == after:  # one step of a probe
            continue
        for name in ("weights.safetensors", "critic.safetensors"):
            if (after / name).exists() and (after / name).read_bytes() == (before / name).read_bytes():
                found.append(str((after / name).relative_to(run)))
    return found


def _expect(ended: Ended, log: Path) -> None:
    if ended.code != 0:
        raise RuntimeError(f"an undisturbed run ended with {ended.code}: {log}: {ended.said[-2000:]}")


# --- random kills


def random_kills(known: Quiet, number: int, seed: int) -> Trial:
    """One run, killed up to _KILLS times at random moments, then left to end."""
    noise = random.Random(f"{known.case.name}/{number}/{seed}")
    run = known.folder / f"random-{number}"
    trial = Trial(known.case.name, "random")
    saves = 0
    while len(trial.kills) < _KILLS:
        moment = noise.choice(MOMENTS)
        attempt = known.attempt(run)
        _wait(attempt, known, moment, known.ended.saves - saves, noise)
        ended = attempt.kill()
        trial.attempts += 1
        trial.seconds += ended.seconds
        saves += ended.saves
        if not ended.killed:
            _check_end(trial, known, run, ended)
            return _done(trial, run)
        trial.kills.append({"moment": moment, "inside": ended.inside, "saves": saves, "at": ended.operations})
    return _finished(trial, known, run)


def _wait(attempt: Attempt, known: Quiet, moment: str, left: int, noise: random.Random) -> None:
    """Until the moment has come, or the attempt is over."""
    board, after = attempt.board, noise.randint(0, max(left, 0))
    if moment == "anywhere":
        rest = (known.ended.cpu - known.opening) * (left + 1) / (known.ended.saves + 1)
        moment_of_clock = noise.uniform(0, known.opening + rest)
        attempt.wait(lambda: attempt.cpu() >= moment_of_clock)
    elif moment == "step":
        attempt.wait(lambda: board.saves >= after)
        _rest(attempt, noise.uniform(0, known.step))
    else:
        attempt.wait(lambda: board.saves >= after and board.inside > 0)
        _rest(attempt, noise.uniform(0, known.saving))


def _rest(attempt: Attempt, seconds: float) -> None:
    until = time.monotonic() + seconds
    attempt.wait(lambda: time.monotonic() >= until)


def _finished(trial: Trial, known: Quiet, run: Path) -> Trial:
    """The same command once more, which has to end with 0."""
    ended = known.attempt(run).finish()
    trial.attempts += 1
    trial.seconds += ended.seconds
    _check_end(trial, known, run, ended)
    return _done(trial, run)


def _check_end(trial: Trial, known: Quiet, run: Path, ended: Ended) -> None:
    if ended.code != 0:
        trial.problems.append(f"the same command ended with {ended.code}: {ended.said[-1500:]}")
    else:
        trial.problems += differences(known.run, run)


def _done(trial: Trial, run: Path) -> Trial:
    """What was as it should be leaves no files behind."""
    if not trial.problems:
        shutil.rmtree(run)
        run.with_suffix(".log").unlink()
    return trial


# --- every operation


@dataclass(frozen=True)
class Stage:
    """A run as it is after some states were written, and the operations of one more attempt at it."""

    saves: int
    folder: Path | None
    """None: there is nothing yet."""
    operations: tuple[tuple[str, str, int], ...]
    until: int
    """Operations from here on are another stage's."""


def stages(known: Quiet) -> list[Stage]:
    """The beginning with the first state; a state in the middle, after which an old one is removed; the end."""
    last = known.ended.saves
    found = []
    for saves in (0, min(2, last - 1), last):
        folder = known.folder / f"after-{saves}"
        if saves:
            _stopped_after(known, saves, folder)
        probe = known.folder / f"probe-{saves}"
        if saves:
            shutil.copytree(folder, probe)
        listing = known.folder / f"operations-{saves}.tsv"
        _expect(known.attempt(probe, listing=listing).finish(), probe.with_suffix(".log"))
        lines = (line.split("\t") for line in listing.read_text().splitlines())
        operations = tuple((operation, name, int(before)) for operation, name, before in lines)
        if saves == last:
            until = len(operations)
        else:
            until = next((i for i, (_, _, before) in enumerate(operations) if before >= 1), len(operations))
        shutil.rmtree(probe)
        found.append(Stage(saves, folder if saves else None, operations, until))
    return found


def _stopped_after(known: Quiet, saves: int, folder: Path) -> None:
    """A run that was killed once so many states were written."""
    at = next(i for i, (_, _, before) in enumerate(known.operations) if before >= saves)
    ended = known.attempt(folder, strikes={at: "SIGKILL"}).finish()
    assert ended.killed, ended
    assert ended.saves == saves, (ended, saves)


def plan(found: list[Stage], every: int = 1) -> Iterator[tuple[int, int, Strike]]:
    """Every operation of every stage with everything that can happen there; or every so-manieth of these."""
    for number, stage in enumerate(found):
        for at in range(stage.until):
            for place, what in enumerate(STRIKES):
                if (at + place) % every == 0:
                    yield number, at, what


def strike(known: Quiet, stage: Stage, at: int, what: Strike) -> Trial:
    """One attempt that is struck at this operation; then the same command."""
    operation, name, _ = stage.operations[at]
    name = re.sub(r"tmp-\d+-\d+", "tmp", name)
    trial = Trial(known.case.name, f"{what} in place of operation {at} after {stage.saves} states: {operation} {name}")
    run = known.folder / f"strike-{stage.saves}-{at}-{what}"
    if stage.folder is not None:
        shutil.copytree(stage.folder, run)
    before = _sound(run)
    ended = known.attempt(run, strikes={at: what}).finish()
    trial.attempts += 1
    if what == "SIGKILL":
        trial.kills.append({"moment": "operation", "inside": ended.inside, "saves": ended.saves, "at": at})
        if not ended.killed:
            trial.problems.append(f"was not killed but ended with {ended.code}: {ended.said[-500:]}")
    else:
        trial.problems += _refused(ended)
    if lost := before - _sound(run):
        trial.problems.append(f"no state is left in {', '.join(sorted(map(str, lost)))}")
    return _finished(trial, known, run)


def _sound(run: Path) -> set[Path]:
    """Where a state can be gone on from: the run, and runs inside it."""
    folders = {path for path in run.rglob(STATE) if path.is_dir()}
    return {folder for folder in folders if files.newest_complete(folder, PREFIX)[0] is not None}


def _refused(ended: Ended) -> list[str]:
    """What is wrong with how a run ended to which the disk had said no: one message, exit code 2; or nothing needed
    what was refused."""
    if ended.code == 0:
        return []
    if ended.code != 2:
        return [f"ended with {ended.code}: {ended.said[-1500:]}"]
    problems = []
    if "Traceback" in ended.said:
        problems.append(f"a traceback: {ended.said[-1500:]}")
    if not re.search(r"^error: .*(No space left on device|Input/output error)", ended.said, re.MULTILINE):
        problems.append(f"the message does not say what the disk refused: {ended.said[-500:]}")
    return problems
