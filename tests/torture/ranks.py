"""Two processes that train together, of which one is killed at a random time.

    python -m torture.ranks --kills 50           from tests/

Each trial begins a run anew, kills one of its processes (in turn the first and the second), waits for the other to
end, and gives the same command again.  In two of four trials the part of torchrun is played: something else keeps the
store at which they meet, and the other process is asked to end.  In the other two, nobody helps.  The finished run is
compared with one of two processes that nobody disturbed: weights, optimizer, and everything in run.db but times.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a process with threads cannot be forked
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

import argparse
import json
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from several_ranks import Ranks, finished, left_behind
from torture.attempts import Ended, preload
from torture.cases import TRAINERS, Case, prepare
from torture.compare import differences

SIZE = 2
LIMIT = 30.0
"""Seconds in which the rest must have ended."""


@dataclass
class Kill:
    """One trial."""

    case: str
    victim: int
    torchrun: bool
    """Whether the part of torchrun was played."""
    met: bool
    """Whether the processes watched over each other already."""
    states: int
    """Written when the process was killed."""
    seconds: float
    """Until the other had ended."""
    code: int
    named: bool
    said: str
    again: int = 0
    """Exit code of the same command afterwards."""
    problems: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not self.problems


def trial(number: int, case: Case, path: Path, quiet: Path, cpu: float, seed: int) -> Kill | None:
    """Kills one of two at a random time, and continues; None where it ended before."""
    noise = random.Random(f"{number}/{seed}")
    victim, agent, moment = number % SIZE, number // SIZE % 2 == 0, noise.uniform(0, cpu)
    run, mark = path.parent / f"killed-{number}", f"{os.getpid()}-{number}"
    shutil.rmtree(run, ignore_errors=True)
    command = [case.command, str(path), f"run={run}"]
    before = {rank: lambda: os.environ.__setitem__("GRO_TEST", mark) for rank in range(SIZE)}
    with Ranks(SIZE, command, path.parent, agent=agent, before=before) as ranks:
        ranks.wait(lambda: ranks.attempts[victim].cpu() >= moment and (agent or ranks.met))
        if ranks.ends:
            return None
        met, states = ranks.met, ranks.attempts[0].board.saves
        at = time.monotonic()
        ranks.kill(victim)
        rest = ranks.finish()[1 - victim]
        seconds = ranks.ends[1 - victim] - at
    assert isinstance(rest, Ended)
    if rest.code == 0:  # all was done already when the process was killed
        found = differences(quiet, run)
        assert not found, found
        return None
    kill = Kill(case.name, victim, agent, met, states, seconds, rest.code, _names(rest, victim), _last(rest.said))
    if seconds > LIMIT:
        kill.problems.append(f"the other ended after {seconds:.1f} s")
    if not kill.named and met:
        kill.problems.append(f"process {victim} is not named: exit code {rest.code}, {rest.said[-1000:]}")
    if rest.code == -signal.SIGTERM and met:
        kill.problems.append("ended by SIGTERM without a word")
    time.sleep(1.0)  # reward processes notice that nobody is there any more
    if left := left_behind(mark):
        kill.problems.append(f"processes are left behind: {left}")
    for one in finished(SIZE, command, path.parent, name="again", agent=agent):
        kill.again = max(kill.again, one.code)
    kill.problems += differences(quiet, run)
    if kill.fine:
        shutil.rmtree(run)
    return kill


def _names(ended: Ended, victim: int) -> bool:
    return re.search(rf"^error: process {victim}\b", ended.said, re.MULTILINE) is not None


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith(("error:", "interrupted:"))]
    return lines[-1] if lines else ""


def main(asked: argparse.Namespace) -> int:
    """Runs the trials; 0 where all came out as they should."""
    torch.set_num_threads(1)
    preload()
    shutil.rmtree(asked.work, ignore_errors=True)
    base = asked.work / "base"
    prepare(base)
    known: dict[str, tuple[Path, Path, float]] = {}
    kills: list[Kill] = []
    number = 0
    while len(kills) < asked.kills:
        case = TRAINERS[number % len(TRAINERS)]
        if case.name not in known:
            folder = asked.work / case.name
            folder.mkdir()
            path = case.recipe(base, folder)
            quiet, twin = folder / "quiet", folder / "twin"
            ended = finished(SIZE, [case.command, str(path), f"run={quiet}"], folder)
            finished(SIZE, [case.command, str(path), f"run={twin}"], folder, agent=False)
            if found := differences(quiet, twin):
                raise RuntimeError(f"{case.name}: two undisturbed runs differ: {found}")
            known[case.name] = path, quiet, min(one.cpu for one in ended)
        kill = trial(number, case, *known[case.name], asked.seed)
        number += 1
        if kill is None:
            continue
        kills.append(kill)
        with (asked.work / "results.jsonl").open("a") as file:
            file.write(json.dumps(asdict(kill)) + "\n")
        for problem in kill.problems:
            print(f"{number}: {kill.case}, process {kill.victim}: {problem}", file=sys.stderr, flush=True)
    print(summary(kills))
    return 0 if all(kill.fine for kill in kills) else 1


def summary(kills: list[Kill]) -> str:
    """What came of them, by who keeps the store and who was killed."""
    lines = ["| store | killed | kills | longest, s | median, s | named | the same bits afterwards |", "|" + "---|" * 7]
    for agent in (True, False):
        for victim in range(SIZE):
            some = [k for k in kills if (k.torchrun, k.victim) == (agent, victim)]
            if not some:
                continue
            times = sorted(k.seconds for k in some)
            named, early = sum(k.named for k in some), sum(not k.met for k in some)
            same = sum(k.again == 0 and k.fine for k in some)
            lines.append(
                f"| {'torchrun' if agent else 'process 0'} | process {victim} | {len(some)} | {times[-1]:.1f} | "
                f"{times[len(times) // 2]:.1f} | {named} ({early} before they had met) | {same} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m torture.ranks", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("/tmp/gro-ranks"), help="folder for all runs; removed first")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
