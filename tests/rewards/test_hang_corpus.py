"""Every way of misbehaving that we could think of: the guilty completion fails in time, the others keep theirs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gro.rewards.batch import Trouble
from gro.rewards.pool import Pool
from gro.rewards.worker import ORPHAN_GRACE
from rewards.hostile import DEATHS, ERRORS, HANGS, HARMLESS

HOSTILE = str(Path(__file__).with_name("hostile.py"))
LIMIT = 0.4
SLACK = 2.0
"""Seconds past the limit in which a hanging call must be over."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with (
        family() as alive,
        Pool(f"{HOSTILE}:obedient", time_limit=LIMIT, workers=2, memory_limit=1 << 30) as pool,
    ):
        yield pool
    assert alive() == []


@contextlib.contextmanager
def family() -> Iterator[Callable[[], list[str]]]:
    """Gives a function that lists the living processes that were started, by whomever, since here."""
    with pytest.MonkeyPatch.context() as patch:
        name, value = "GRO_TEST_FAMILY", uuid.uuid4().hex
        patch.setenv(name, value)

        def alive() -> list[str]:
            found = []
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if f"{name}={value}".encode() in (folder / "environ").read_bytes():
                        found.append((folder / "cmdline").read_text()[:60])
            return found

        yield alive


def around(case: str) -> list[str]:
    return ["fine", "fine too", case, "also fine", "and this"]


@pytest.mark.fault("R4")
@pytest.mark.parametrize("case", HANGS)
def test_a_call_that_never_returns_is_over_soon_after_the_limit(pool: Pool, case: str) -> None:
    batch = pool.score({"completions": around(case)})

    guilty = batch.scores[2]
    assert isinstance(guilty, Trouble)
    assert (guilty.kind, guilty.message) == ("hung", f"took longer than {LIMIT} s")
    assert {row: score for row, score in batch.scores.items() if row != 2} == {0: 1.0, 1: 1.0, 3: 1.0, 4: 1.0}
    assert LIMIT <= batch.lost < LIMIT + SLACK


@pytest.mark.fault("R5")
@pytest.mark.parametrize("case", DEATHS)
def test_a_process_that_dies_costs_only_the_guilty_completion(pool: Pool, case: str) -> None:
    began = time.monotonic()
    batch = pool.score({"completions": around(case)})

    guilty = batch.scores[2]
    assert isinstance(guilty, Trouble)
    assert guilty.kind == "died", guilty
    assert {row: score for row, score in batch.scores.items() if row != 2} == {0: 1.0, 1: 1.0, 3: 1.0, 4: 1.0}
    assert time.monotonic() - began < 10


@pytest.mark.fault("R1", "R5")
@pytest.mark.parametrize("case", ERRORS)
def test_an_error_fails_the_completion_and_leaves_the_process(pool: Pool, case: str) -> None:
    batch = pool.score({"completions": around(case)})

    guilty = batch.scores[2]
    assert isinstance(guilty, Trouble)
    assert guilty.kind in ("raised", "hung"), guilty  # a slow machine may need longer than the limit to fill memory
    assert len(guilty.traceback) < 10_000
    assert {row: score for row, score in batch.scores.items() if row != 2} == {0: 1.0, 1: 1.0, 3: 1.0, 4: 1.0}


@pytest.mark.fault("R5")
@pytest.mark.parametrize("case", HARMLESS)
def test_odd_calls_that_return_have_their_score(pool: Pool, case: str) -> None:
    batch = pool.score({"completions": around(case)})
    assert batch.scores == dict.fromkeys(range(5), 1.0)


@pytest.mark.fault("R5")
def test_nothing_survives_the_pool() -> None:
    with family() as alive:
        with Pool(f"{HOSTILE}:obedient", time_limit=5.0, memory_limit=1 << 30) as pool:
            cases = ["leaves a child", "leaves children outside the session", "forks and returns twice"]
            batch = pool.score({"completions": cases * 2})
            assert set(batch.scores.values()) == {1.0}
            assert len(alive()) > 2
        assert alive() == []


@pytest.mark.fault("R5")
def test_an_orphan_of_a_killed_trainer_ends_itself() -> None:
    """The trainer is killed while its reward hangs in C and holds the interpreter: the kernel ends it."""
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; from gro.rewards.pool import Pool\n"
        f"pool = Pool({HOSTILE + ':obedient'!r}, time_limit=0.6)\n"
        "print('ready', flush=True)\n"
        "pool.score({'completions': ['C sleep that holds the interpreter']})"
    )
    with family() as alive:
        trainer = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
        until = time.monotonic() + 0.6 + ORPHAN_GRACE + 5
        while alive() and time.monotonic() < until:
            time.sleep(0.1)
        assert alive() == []
