"""Which jobs are put to which trials, in how many processes, and what is said of it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from torture import trials
from torture.attempts import preload
from torture.cases import CASES, TRAINERS, prepare
from torture.summary import summary


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/gro-torture"), help="folder for all runs; removed first"
    )
    parser.add_argument("--jobs", type=int, default=2, help="jobs under trial at a time")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="these jobs only")
    parser.add_argument("--kills", type=int, default=200, help="random kills of each trainer")
    parser.add_argument("--variant-kills", type=int, default=20, help="random kills of each other job")
    parser.add_argument("--events", choices=("all", "trainers", "none"), default="trainers", help="every operation of")
    parser.add_argument("--every", type=int, default=1, help="every so-manieth of the operations")
    parser.add_argument("--minutes", type=float, default=600.0, help="after these, no new trial begins")
    parser.add_argument("--seed", type=int, default=0)


def main(asked: argparse.Namespace) -> int:
    """Runs the trials; 0 where all came out as they should."""
    torch.set_num_threads(1)
    preload()
    shutil.rmtree(asked.work, ignore_errors=True)
    base = asked.work / "base"
    prepare(base)
    deadline = time.monotonic() + 60 * asked.minutes
    chosen = asked.cases or list(CASES)
    results = asked.work / "results.jsonl"
    work = [(name, asked, base, deadline, results) for name in chosen]
    ended = _shared_out(work, asked.jobs)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    text, fine = summary(lines)
    (asked.work / "summary.md").write_text(text)
    print(text)
    if not ended:
        print("some of the jobs came to no end; see above")
    return 0 if fine and ended else 1


def _shared_out(work: list[tuple[Any, ...]], jobs: int) -> bool:
    """Each job of `work` in a process, so many at a time; whether all came to their end."""
    waiting, running, fine = list(work), set(), True
    while waiting or running:
        while waiting and len(running) < jobs:
            todo = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = _all_of(*todo)
                except BaseException as error:
                    print(f"{todo[0]}: {type(error).__name__}: {error}", flush=True)
                finally:
                    os._exit(code)
            running.add(pid)
        pid, status = os.wait()
        running.discard(pid)
        fine &= status == 0
    return fine


def _all_of(name: str, asked: argparse.Namespace, base: Path, deadline: float, results: Path) -> int:
    """All trials of one job, in a process that was forked for them."""
    assert len(os.listdir("/proc/self/task")) == 1, "what is forked must have no threads"
    case = CASES[name]
    is_trainer = case in TRAINERS
    known = trials.quiet(case, base, asked.work / name)
    _write(results, {"case": name, "quiet": True, "operations": len(known.operations), "saves": known.ended.saves})
    wanted, number, kills = asked.kills if is_trainer else asked.variant_kills, 0, 0
    while kills < wanted and time.monotonic() < deadline:
        trial = trials.random_kills(known, number, asked.seed)
        number, kills = number + 1, kills + len(trial.kills)
        _note(results, trial)
    if asked.events == "all" or (asked.events == "trainers" and is_trainer):
        found = trials.stages(known)
        counts = {f"after {stage.saves} states": stage.until for stage in found}
        _write(results, {"case": name, "stages": counts})
        for place, at, what in trials.plan(found, asked.every):
            if time.monotonic() > deadline:
                break
            _note(results, trials.strike(known, found[place], at, what))
    return 0


def _note(results: Path, trial: trials.Trial) -> None:
    _write(results, trial.plain())
    for problem in trial.problems:
        print(f"{trial.case}: {trial.what}: {problem}", file=sys.stderr, flush=True)


def _write(results: Path, line: dict[str, Any]) -> None:
    """One line, whole: several processes write."""
    with results.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")
