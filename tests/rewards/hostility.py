"""What hostile rewards and hostile answers come to, in figures: the section of docs/reliability.md.

python tests/rewards/hostility.py
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gro.rewards.batch import Trouble
from gro.rewards.pool import Pool
from rewards.bombs import BOMBS
from rewards.hostile import CASES, DEATHS, ERRORS, HANGS
from rewards.hostile_code import ATTACKS, FORGERIES, GOOD, GOOD_PROGRAM, PAIRS, TESTS
from rewards.hostile_code import HANGS as CODE_HANGS
from rewards.test_code import Listener, strays
from rewards.test_hang_corpus import HOSTILE, around, family
from rewards.test_maths import CODE, WRAPPINGS

LIMIT = 0.4
"""Seconds that a call of the functions may take, and one of the grader."""
CODE_LIMIT = 2.0


def functions() -> None:
    """Reward functions that misbehave, each call with four ordinary completions."""
    late: list[float] = []
    blamed = others = 0
    with family() as alive:
        with Pool(f"{HOSTILE}:obedient", time_limit=LIMIT, memory_limit=1 << 30) as pool:
            for case in CASES:
                batch = pool.score({"completions": around(case)})
                others += sum(batch.scores[row] != 1.0 for row in (0, 1, 3, 4))
                blamed += isinstance(batch.scores[2], Trouble)
                if case in HANGS:
                    late.append(batch.lost - LIMIT)
        left = alive()
    print(
        f"functions: {len(CASES)} cases, {blamed} of {len(HANGS) + len(DEATHS) + len(ERRORS)} that hang, die or raise "
        f"failed with a reason; {others} of {4 * len(CASES)} other completions changed; {len(left)} processes left; "
        f"killed after the limit: median {statistics.median(late):.2f} s, latest {max(late):.2f} s"
    )


def code() -> None:
    """Code of a model against tests, with right code beside it."""
    listener = Listener()
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary"
        fill = {"CANARY": str(canary), "PARENT": str(os.getpid()), "PORT": str(listener.port)}
        attacks = list(ATTACKS.values())
        for name, value in fill.items():
            attacks = [text.replace(name, value) for text in attacks]
        cases = [(f"```\n{text}\n```", TESTS, 60.0) for text in FORGERIES.values()]
        cases += [(text, tests, CODE_LIMIT) for text in attacks for tests in (TESTS, PAIRS)]
        cases += [(text, tests, CODE_LIMIT) for text in CODE_HANGS.values() for tests in (TESTS, PAIRS)]

        def passed(case: tuple[str, object, float]) -> tuple[bool, bool]:
            text, tests, limit = case
            good = GOOD if tests is TESTS else GOOD_PROGRAM
            with Pool("code", {"timeout": limit, "memory": 256}) as pool, Pool("code", {"timeout": 60.0}) as patient:
                found = pool.score({"completions": [text], "tests": [tests]}).scores[0] != 0.0
                beside = patient.score({"completions": [good], "tests": [tests]}).scores[0] != 1.0
            return found, beside

        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(passed, cases))
        escapes = sum(found for found, _ in results) + canary.exists() + listener.calls
        programs = len(FORGERIES) + len(ATTACKS) + len(CODE_HANGS)
        print(
            f"code: {len(cases)} runs of {programs} programs, {escapes} passed or reached anything; "
            f"{sum(beside for _, beside in results)} right programs beside them changed; {len(strays())} processes left"
        )
    listener.close()


def grader() -> None:
    """Answers that cannot be worked out, and answers that are code."""
    with Pool("maths", time_limit=LIMIT) as pool:
        took, wrong = [], 0
        for bomb in BOMBS:
            completions = ["\\boxed{72}", f"\\boxed{{{bomb}}}", "\\boxed{72}"]
            batch = pool.score({"completions": completions, "answer": ["72"] * 3})
            wrong += batch.scores[1] == 1.0 or batch.scores[0] != 1.0 or batch.scores[2] != 1.0
            took.append(batch.lost - LIMIT if isinstance(batch.scores[1], Trouble) else -1.0)
    failed = [t for t in took if t > -1.0]
    latest = f", latest {max(failed):.2f} s after the limit" if failed else ""
    print(f"grader: {len(BOMBS)} answers, {len(failed)} ended by the limit{latest}; {wrong} wrong scores")
    with tempfile.TemporaryDirectory() as folder, Pool("maths", time_limit=20.0) as pool:
        canary = Path(folder) / "canary"
        hostile = [wrapping % text.replace("CANARY", str(canary)) for text in CODE for wrapping in WRAPPINGS]
        pool.score({"completions": hostile, "answer": ["72"] * len(hostile)})
        print(f"grader: {len(CODE)} pieces of code in {len(hostile)} answers, {int(canary.exists())} executed")


def median_ms(call: Callable[[], object], times: int) -> float:
    """Of so many calls, after a first one."""
    call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took)


def cost() -> None:
    """Of one completion, alone."""
    with Pool("exact_match") as pool:
        pooled = median_ms(lambda: pool.score({"completions": ["a"], "answer": ["a"]}), 200)
    with Pool("code", {"timeout": 60.0}) as pool:
        isolated = median_ms(lambda: pool.score({"completions": [GOOD_PROGRAM], "tests": [PAIRS[:1]]}), 30)
    print(f"cost of a call: median {pooled:.1f} ms pooled, {isolated:.0f} ms in a fresh sandbox")


if __name__ == "__main__":
    for part in (cost, functions, grader, code):
        part()
