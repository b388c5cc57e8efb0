"""`gro train` in several processes: what happens when one of them fails, or is not set up as the others."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gro.runs import operations
from several_ranks import Before, Ranks, finished, left_behind
from torture.attempts import Ended, preload
from torture.cases import Case, online, prepare
from torture.compare import differences

LIMIT = 30.0
"""Seconds in which all must have ended once one has failed."""
_REWARDS = """
import os, time
from pathlib import Path

PAUSE = Path(__file__).with_name("pause")


def digits(completions, **columns):
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def patient(completions, trainer_state, **columns):
    while trainer_state.global_step >= 2 and PAUSE.exists():
        PAUSE.with_name("waiting-" + os.environ.get("RANK", "0")).touch()
        time.sleep(0.02)
    return digits(completions)


def stuck(completions, trainer_state, **columns):
    if trainer_state.global_step >= 2 and os.environ.get("RANK") == "0" and PAUSE.exists():
        time.sleep(1000)
    return digits(completions)


def broken(completions, trainer_state, **columns):
    if trainer_state.global_step >= 2 and os.environ.get("RANK") == "1" and PAUSE.exists():
        return [None / 2 for _ in completions]
    return digits(completions)
"""
_KEYS: dict[str, Any] = {"training": {"steps": 4}, "optimizer": {"learning_rate": 1e-2}}
DIGITS = Case("digits", online, {"rewards": ["BASE/mine.py:digits"], **_KEYS})
PATIENT = Case("patient", online, {"rewards": ["BASE/slow.py:patient"], **_KEYS})
STUCK = Case("stuck", online, {"rewards": [{"reward": "BASE/slow.py:stuck", "time_limit": 100}], **_KEYS})
BROKEN = Case("broken", online, {"rewards": ["BASE/slow.py:broken"], **_KEYS})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model that was taught the form of a sum."""
    preload()
    base = tmp_path_factory.mktemp("several") / "base"
    prepare(base)
    (base / "slow.py").write_text(_REWARDS)
    return base


@pytest.fixture
def pause(base: Path) -> Iterator[Path]:
    """Once this file is made, the slow rewards are slow."""
    file = base / "pause"
    yield file
    file.unlink(missing_ok=True)


class Job:
    """A recipe, and what two processes make of it that nobody disturbs."""

    def __init__(self, case: Case, base: Path) -> None:
        self.folder = base.parent / case.name
        self.folder.mkdir()
        self.case, self.base, self.path = case, base, case.recipe(base, self.folder)
        self.quiet = self.folder / "quiet"
        finished(2, self.command(self.quiet), self.folder)

    def command(self, run: Path, *overrides: str) -> list[str]:
        return [self.case.command, str(self.path), f"run={run}", *overrides]

    def ranks(self, run: Path, *overrides: str, size: int = 2, **how: Any) -> Ranks:
        return Ranks(size, self.command(run, *overrides), self.folder, name=run.name, **how)

    def continued(self, run: Path) -> None:
        """The same command, after which the run is what it would have been."""
        finished(2, self.command(run), self.folder, name=run.name)
        assert differences(self.quiet, run) == []


@pytest.fixture(scope="module")
def job(base: Path) -> Callable[[Case], Job]:
    known: dict[str, Job] = {}

    def of(case: Case) -> Job:
        if case.name not in known:
            known[case.name] = Job(case, base)
        return known[case.name]

    return of


def _errors(ended: Ended | None) -> list[str]:
    assert ended is not None
    return [line for line in ended.said.splitlines() if line.startswith("error: ")]


def _states(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "state").iterdir())


def _marked(mark: str) -> Before:
    return lambda: os.environ.__setitem__("GRO_TEST", mark)


def _gone(mark: str, seconds: float = 10.0) -> bool:
    """Whether nothing of these processes is left, reward processes included."""
    last = time.monotonic() + seconds
    while left_behind(mark) and time.monotonic() < last:
        time.sleep(0.1)
    return not left_behind(mark)


# --- one dies, raises or hangs ----------------------------------------------------------------------------------------


@pytest.mark.fault("X1")
@pytest.mark.parametrize(("victim", "agent"), [(0, True), (1, False), (0, False)])
def test_one_is_killed(victim: int, agent: bool, job: Callable[[Case], Job]) -> None:
    """The other ends by itself, with or without torchrun's help, and says which one it was; nothing is lost."""
    known, mark = job(DIGITS), f"{os.getpid()}-killed-{victim}-{agent}"
    run = known.folder / f"killed-{victim}-{agent}"
    with known.ranks(run, agent=agent, before=_marked(mark)) as ranks:
        assert ranks.wait(lambda: ranks.attempts[victim].board.saves >= 2)
        at = time.monotonic()
        ranks.kill(victim)
        rest = ranks.finish()[1 - victim]
        assert ranks.ends[1 - victim] - at <= LIMIT
    assert rest is not None
    assert rest.code != 0
    assert re.match(rf"error: process {victim}\b.* is gone", _errors(rest)[-1]), rest.said
    assert _gone(mark)
    known.continued(run)


@pytest.mark.fault("X1", "X5")
def test_one_is_killed_while_a_reward_of_another_hangs(job: Callable[[Case], Job], pause: Path) -> None:
    """What cannot be interrupted is ended, and its reward process with it."""
    known, mark = job(STUCK), f"{os.getpid()}-stuck"
    pause.touch()
    run = known.folder / "stuck"
    with known.ranks(run, agent=False, before=_marked(mark)) as ranks:
        assert ranks.wait(lambda: ranks.attempts[0].board.saves >= 2)
        time.sleep(0.5)
        ranks.kill(1)
        at = time.monotonic()
        rest = ranks.finish()[0]
        assert ranks.ends[0] - at <= LIMIT
    assert rest is not None
    assert rest.code == 1
    assert re.match(r"error: process 1 .* is gone; this one \(0\) ends too", _errors(rest)[-1])
    assert _gone(mark)
    texts = [p.read_text() for p in (run / "failures").glob("stopped-*.txt")]
    assert any("process 1" in text and "is gone" in text for text in texts), "the run remembers it"
    pause.unlink()
    known.continued(run)


def _failing(error: type[Exception]) -> Before:
    """At its second update."""

    def before() -> None:
        from gro.training.learner import PolicyLearner

        update, count = PolicyLearner.update, iter(range(100))

        def fails(self: Any, minibatch: Any) -> Any:
            if next(count) == 1:
                raise error("the seventh seal")
            return update(self, minibatch)

        PolicyLearner.update = fails  # type: ignore[method-assign]

    return before


@pytest.mark.fault("X1")
def test_one_raises(job: Callable[[Case], Job]) -> None:
    """An error that nobody has foreseen, then one that is meant for the user; then the run goes on."""
    from gro.errors import GroError

    known = job(DIGITS)
    run = known.folder / "raised"
    for error, code in ((ZeroDivisionError, 1), (GroError, 2)):
        with known.ranks(run, agent=False, before={1: _failing(error)}) as ranks:
            other, guilty = ranks.finish()
            assert abs(ranks.ends[0] - ranks.ends[1]) <= LIMIT
        assert other is not None
        assert guilty is not None
        assert (other.code, guilty.code) == (2, code), ranks.said()
        words = rf"error: process 1 on \S+ stopped: {error.__name__}: .*the seventh seal"
        assert re.match(words, _errors(other)[-1]), other.said
        assert "Traceback" not in other.said
        texts = [p.read_text() for p in (run / "failures").glob("stopped-*.txt")]
        assert sum(f" stopped: {error.__name__}: " in text and "the seventh seal" in text for text in texts) == 1
    known.continued(run)


def _quick() -> None:
    """Looks four times a second."""
    from gro.training import watchdog

    watchdog.INTERVAL = 0.25


@pytest.mark.fault("X1")
@pytest.mark.parametrize(("victim", "agent"), [(1, True), (0, False)])
def test_one_stops_answering(victim: int, agent: bool, job: Callable[[Case], Job]) -> None:
    """As a machine that swaps does; it may be the one that keeps the store."""
    known = job(DIGITS)
    run = known.folder / f"stopped-{victim}"
    with known.ranks(run, agent=agent, before=_quick) as ranks:
        assert ranks.wait(lambda: ranks.attempts[victim].board.saves >= 2)
        ranks.signal(victim, signal.SIGSTOP)
        rest = ranks.finish(but=victim)[1 - victim]
        ranks.kill(victim)
    assert rest is not None
    assert rest.code == 1
    assert re.match(rf"error: process {victim}\b.* has not answered for 5 s", _errors(rest)[-1]), rest.said
    known.continued(run)


@pytest.mark.slow
@pytest.mark.fault("X1")
@pytest.mark.parametrize(("victim", "agent"), [(0, True), (1, False), (0, False)])
def test_one_stops_answering_in_real_time(victim: int, agent: bool, job: Callable[[Case], Job]) -> None:
    known = job(DIGITS)
    run = known.folder / f"slowly-{victim}-{agent}"
    with known.ranks(run, agent=agent) as ranks:
        assert ranks.wait(lambda: ranks.attempts[victim].board.saves >= 2)
        at = time.monotonic()
        ranks.signal(victim, signal.SIGSTOP)
        rest = ranks.finish(but=victim)[1 - victim]
        assert ranks.ends[1 - victim] - at <= LIMIT
        ranks.kill(victim)
    assert re.match(rf"error: process {victim}\b.* has not answered for 20 s", _errors(rest)[-1])
    known.continued(run)


@pytest.mark.fault("X1")
@pytest.mark.parametrize("agent", [True, False])
def test_one_never_comes(agent: bool, job: Callable[[Case], Job]) -> None:
    def before() -> None:
        import gro.jobs.launch
        from gro.training import watchdog

        _quick()
        watchdog.LATE = gro.jobs.launch.LATE = 8
        gro.jobs.launch.INTERVAL = 0.25

    known = job(DIGITS)
    with known.ranks(known.folder / f"late-{agent}", agent=agent, before=before, commands={1: ["--help"]}) as ranks:
        first, second = ranks.finish()
    assert first is not None
    assert second is not None
    assert second.code == 0
    assert first.code != 0
    words = "process 1 has not come within 2 s" if agent else "process 0 of 2 does not find the others at 127.0.0.1:"
    assert words in _errors(first)[-1]


@pytest.mark.fault("X1")
def test_one_is_killed_before_they_have_met(job: Callable[[Case], Job]) -> None:
    """Then torchrun asks the other to end, which waits where no handler could be run."""

    def before() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    known = job(DIGITS)
    with known.ranks(known.folder / "early", before={0: before}) as ranks:
        first, second = ranks.finish(seconds=LIMIT)
    assert first is not None
    assert second is not None
    assert first.killed
    assert second.code in (-signal.SIGTERM, 2)


@pytest.mark.fault("X1", "P3")
@pytest.mark.parametrize("asked", [(0, 1), (1,)])
def test_asked_to_stop_all_save_together(asked: tuple[int, ...], job: Callable[[Case], Job]) -> None:
    """As torchrun asks all when it is asked itself; or only one is asked."""
    known = job(DIGITS)
    run = known.folder / f"asked-{len(asked)}"
    with known.ranks(run, "training.resume_every=null", strikes={}, before=dict.fromkeys(asked, _asked_at_2)) as ranks:
        ended = ranks.finish()
    assert [one.code for one in ended if one is not None] == [75, 75], ranks.said()
    for one in ended:
        assert one is not None
        assert "SIGTERM: the state after step 2 is saved; the same command continues" in one.said
    assert _states(run) == ["step-2"]
    known.continued(run)


def _asked_at_2() -> None:
    """SIGTERM within the second update."""
    from gro.training.learner import PolicyLearner

    update, count = PolicyLearner.update, iter(range(100))

    def asked(self: Any, minibatch: Any) -> Any:
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, minibatch)

    PolicyLearner.update = asked  # type: ignore[method-assign]


# --- torchrun itself --------------------------------------------------------------------------------------------------


def _pids(mark: str) -> dict[int, int]:
    """Processes of this mark that were given a rank, without their reward processes."""
    found = {}
    for pid in left_behind(mark):
        try:
            values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(v[5:]) for v in values if v.startswith(b"RANK=")]
        if ranks and not any(v.startswith(b"GRO_REWARD_WORKER") for v in values):
            found[ranks[0]] = pid
    return found


@pytest.mark.fault("X1", "P3")
def test_under_torchrun(job: Callable[[Case], Job], pause: Path) -> None:
    """One is killed; then torchrun is asked to stop; then the same command ends the run."""
    known, mark = job(PATIENT), f"{os.getpid()}-torchrun"
    pause.touch()
    run, log = known.folder / "torchrun", known.folder / "torchrun.log"
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    line += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "gro", *known.command(run)]
    environment = os.environ | {"GRO_TEST": mark, "GLOO_SOCKET_IFNAME": "lo"}

    def started() -> subprocess.Popen[bytes]:
        """torchrun, when both processes wait for rewards in the third step."""
        waiting = [known.base / f"waiting-{rank}" for rank in range(2)]
        for file in waiting:
            file.unlink(missing_ok=True)
        with log.open("wb") as out:
            one = subprocess.Popen(line, stdout=out, stderr=out, env=environment, cwd=known.folder)
        while not all(file.exists() for file in waiting):
            assert one.poll() is None, log.read_text()
            time.sleep(0.05)
        return one

    agent = started()
    at = time.monotonic()
    os.kill(_pids(mark)[1], signal.SIGKILL)
    assert agent.wait() == 1
    assert time.monotonic() - at <= 2 * LIMIT
    said = log.read_text()
    assert "error: process 1 " in said or "process 1 (pid" in said, said
    assert re.search(r"rank\s*: 1 .*", said), "torchrun says it too"
    assert _gone(mark)

    agent = started()
    os.kill(agent.pid, signal.SIGTERM)
    time.sleep(1.0)
    pause.unlink()
    assert agent.wait() != 0
    said = log.read_text()
    assert len(re.findall(r"SIGTERM: the state after step 3 is saved; the same command continues", said)) == 2, said
    assert _gone(mark)

    with log.open("wb") as out:
        assert subprocess.run(line, stdout=out, stderr=out, env=environment, cwd=known.folder).returncode == 0
    assert "continues after step 3" in log.read_text()
    assert differences(known.quiet, run) == []


# --- they are not set up alike ----------------------------------------------------------------------------------------


def _other_threads() -> None:
    torch.set_num_threads(2)


def _other_version() -> None:
    import gro.jobs.launch
    from gro.runs.identity import versions

    gro.jobs.launch.versions = lambda: versions() | {"transformers": "4.0.0"}


def _other_folder() -> None:
    os.chdir("elsewhere")


DISAGREEMENTS: dict[str, tuple[list[str], Before | None, str]] = {
    "seed": (["training.seed=3"], None, r"recipe\.training\.seed: 0 → 3"),
    "recipe": (["prompts_per_step=2"], None, r"recipe\.prompts_per_step: 4 → 2"),
    "threads": ([], _other_threads, r"versions\.threads: 1 → 2"),
    "versions": ([], _other_version, r"versions\.transformers: '[0-9.]+' → '4\.0\.0'"),
    "data": ([], _other_folder, r"content\.online: file 1: '[0-9a-f]{64}' → '[0-9a-f]{64}'"),
}


@pytest.mark.fault("X2")
@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_processes_that_are_not_set_up_alike(what: str, job: Callable[[Case], Job]) -> None:
    """Refused before the first step, naming the key and two of the processes."""
    known, (overrides, before, words) = job(DIGITS), DISAGREEMENTS[what]
    shutil.copy(known.base / "sums.jsonl", known.folder)
    (known.folder / "elsewhere").mkdir(exist_ok=True)
    changed = (known.base / "sums.jsonl").read_text().replace('"1+2="', '"2+2="')
    (known.folder / "elsewhere" / "sums.jsonl").write_text(changed)
    run = known.folder / f"unlike-{what}"
    common = known.command(run, "online.path=sums.jsonl")
    size = 3 if what == "seed" else 2
    odd = size - 1
    how: dict[str, Any] = {"commands": {odd: [*common, *overrides]}, "before": {odd: before} if before else {}}
    with Ranks(size, common, known.folder, name=run.name, agent=False, **how) as ranks:
        ended = ranks.finish()
    for one in ended:
        assert one is not None
        assert one.code == 2, ranks.said()
        assert re.match(rf"error: processes 0 and {odd} are not set up alike: {words}$", _errors(one)[-1]), one.said
    assert not (run / "state").exists()


# --- all decide alike -------------------------------------------------------------------------------------------------


def _not_a_number() -> None:
    """The log-probs of one pass, of one process's rows."""
    from gro.policy.policy import Policy
    from gro.training.learner import PolicyLearner

    update, logp, count = PolicyLearner.update, Policy.logp, iter(range(100))
    inside: list[bool] = []

    def updated(self: Any, minibatch: Any) -> Any:
        inside[:] = [next(count) == 2]
        return update(self, minibatch)

    def spoilt(self: Any, pack: Any, **how: Any) -> Any:
        found = logp(self, pack, **how)
        if inside == [True]:
            with torch.no_grad():
                found.logp_RT[0, 0] = float("nan")
        return found

    PolicyLearner.update, Policy.logp = updated, spoilt  # type: ignore[method-assign, assignment]


@pytest.mark.fault("X3", "N1")
def test_one_finds_what_is_not_finite(job: Callable[[Case], Job]) -> None:
    known = job(DIGITS)
    run = known.folder / "nan"
    with known.ranks(run, agent=False, before={1: _not_a_number}) as ranks:
        ended = ranks.finish()
    messages = {_errors(one)[-1] for one in ended}
    assert len(messages) == 1, messages
    assert "step 3: " in messages.pop()
    for one in ended:
        assert one is not None
        assert one.code == 2
        assert "no weight was changed" in one.said
    assert _states(run) == ["step-1", "step-2"]
    known.continued(run)


def _no_room_for(name: str) -> Before:
    """The disk refuses every file whose path has this in it."""

    def before() -> None:
        inner = operations.on_operation
        assert inner is not None

        def hook(operation: str, path: Path) -> None:
            inner(operation, path)
            if name in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        operations.on_operation = hook

    return before


@pytest.mark.fault("X3", "P4")
def test_the_disk_of_the_first_is_full(job: Callable[[Case], Job]) -> None:
    """It alone writes, and all stop with what it found; then there is room again."""
    known = job(DIGITS)
    run = known.folder / "full"
    with known.ranks(run, agent=False, before={0: _no_room_for("step-3")}) as ranks:
        ended = ranks.finish()
    for one in ended:
        assert one is not None
        assert one.code == 2, ranks.said()
        assert re.match(r"error: process 0: cannot .*step-3.*No space left on device", _errors(one)[-1]), one.said
    assert _states(run) == ["step-1", "step-2"]
    with known.ranks(run, agent=False, before={0: _no_room_for("run.db")}) as ranks:
        first, second = ranks.finish()
    assert first is not None
    assert second is not None
    assert first.code == second.code == 2, ranks.said()
    assert "No space left on device" in _errors(first)[-1]
    assert re.match(r"error: process 0 on \S+ stopped: .*No space left on device", _errors(second)[-1]), second.said
    known.continued(run)


@pytest.mark.fault("X3")
def test_a_failure_that_cannot_be_written(job: Callable[[Case], Job], pause: Path) -> None:
    """A reward of the second process fails, and so does the file that tells of it: all stop."""
    known = job(BROKEN)
    pause.touch()
    run = known.folder / "unwritten"
    with known.ranks(run, agent=False, before={1: _no_room_for("failures/process-1")}) as ranks:
        ended = ranks.finish()
    for one in ended:
        assert one is not None
        assert one.code == 2, ranks.said()
        assert re.match(r"error: step \d+: process 1: cannot .*failures.*No space left on device", _errors(one)[-1]), (
            one.said
        )
    pause.unlink()
    known.continued(run)


@pytest.mark.fault("R1")
def test_failed_rewards_are_counted_over_all_processes(job: Callable[[Case], Job], pause: Path) -> None:
    """A reward fails on all that the second process judges, which is half of the step."""
    known = job(BROKEN)
    pause.touch()
    run = known.folder / "half"
    with known.ranks(run, "reward_failure_stop_share=0.49") as ranks:
        ended = ranks.finish()
    said = [_errors(one) for one in ended]
    assert said[0] == said[1], ranks.said()
    assert re.match(r"error: step 3: reward 'broken' failed on (\d+) of \d+ completions \(50%;", said[0][-1])
    assert [one.code for one in ended if one is not None] == [2, 2]
    finished(2, known.command(run, "reward_failure_stop_share=0.5"), known.folder, name="half")


@pytest.mark.fault("C3", "P3")
def test_an_alarm_ends_all_after_the_same_step(job: Callable[[Case], Job]) -> None:
    known = job(DIGITS)
    run = known.folder / "alarmed"
    always = ("training.alarms.flat_groups=0", "training.flat_steps=2", "training.resume_every=null")
    for _ in range(2):
        with known.ranks(run, *always) as ranks:
            ended = ranks.finish()
        said = [_errors(one) for one in ended]
        assert said[0] == said[1], ranks.said()
        assert said[0][-1].startswith("error: stopped at step 2, the second such step in a row: flat_groups")
        assert _states(run) == ["step-2"]
    finished(2, known.command(run), known.folder, name="alarmed")
    one, two = (folder / "model" / "model.safetensors" for folder in (run, known.quiet))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.fault("X4")
def test_another_number_of_processes(job: Callable[[Case], Job]) -> None:
    """Refused with both numbers, or as the recipe allows it, and then said."""
    known = job(DIGITS)
    run = known.folder / "fewer"
    with known.ranks(run, "training.resume_every=null", before={1: _asked_at_2}) as ranks:
        ranks.finish()
    for size, elastic in ((1, False), (3, False), (3, True)):
        overrides = ["distributed.elastic=true"] if elastic else []
        with known.ranks(run, *overrides, size=size, agent=False) as ranks:
            ended = ranks.finish()
        for one in ended:
            assert one is not None
            assert one.code == (0 if elastic else 2), ranks.said()
            if not elastic:
                assert "this run was on 2 processes" in one.said
                assert f"here are {size}" in one.said
    found = differences(known.quiet, run)
    assert not any("rollouts" in line for line in found), "the same groups were learnt from"
