"""Batches through reward processes: who is blamed, what it costs, what comes back."""

from __future__ import annotations

import functools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.rewards.batch import Score, Trouble
from gro.rewards.functions import TrainerState
from gro.rewards.pool import LOST_LIMITS, Pool
from gro.rewards.rules import exact_match

HOSTILE = str(Path(__file__).with_name("hostile.py"))


def kinds(scores: dict[int, Score]) -> dict[int, str]:
    return {row: score.kind for row, score in scores.items() if isinstance(score, Trouble)}


def write(folder: Path, code: str) -> str:
    """A file with a reward function `f`; the place to load it from."""
    (folder / "mine.py").write_text("import os, sys, time\nfrom gro.rewards import reward\n" + code)
    return f"{folder / 'mine.py'}:f"


@pytest.mark.fault("R1", "R4", "R5")
@pytest.mark.parametrize("guilty", ["sleep", "os._exit(7)", "ZeroDivisionError"])
def test_of_a_batch_call_only_the_guilty_fail(guilty: str) -> None:
    completions = ["a", guilty, "b", "c", guilty, "d"]
    with Pool(f"{HOSTILE}:whole", time_limit=0.4) as pool:
        assert not pool.samplewise
        batch = pool.score({"completions": completions})
        again = pool.score({"completions": ["a", "b"]})
    assert kinds(batch.scores).keys() == {1, 4}
    assert [batch.scores[row] for row in (0, 2, 3, 5)] == [1.0] * 4
    assert again.scores == {0: 1.0, 1: 1.0}


@pytest.mark.fault("R2")
def test_values_are_checked_one_by_one() -> None:
    refused = {
        "nan": "float nan",
        "inf": "float inf",
        "-inf": "float -inf",
        "1e30": "float 1e+30, beyond ±1e+06",
        "-2e6": "float -2000000.0, beyond ±1e+06",
        "huge int": "int too large for a float",
        "str": "str '1.0'",
        "True": "bool True",
        "list": "list",
        "dict": "dict",
        "complex": "complex",
        "bytes": "bytes",
        "object": "object",
    }
    completions = [*refused, "int", "none", "anything"]
    with Pool(f"{HOSTILE}:values") as pool:
        scores = pool.score({"completions": completions}).scores
    for row, text in enumerate(refused.values()):
        assert scores[row] == Trouble("value", f"returned {text}, which is not a reward")
    assert [scores[row] for row in range(len(refused), len(completions))] == [3.0, None, 1.0]


@pytest.mark.fault("R2")
def test_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    # A stand-in with the real name, since importing torch takes seconds.
    place = write(
        tmp_path,
        "class Tensor:\n    def __float__(self): return 1.0\n"
        "Tensor.__module__ = 'torch'\n"
        "def f(completions): return [Tensor() for _ in completions]\n",
    )
    with Pool(place) as pool:
        assert pool.score({"completions": ["a"]}).scores == {
            0: Trouble("value", "returned torch.Tensor, which is not a reward")
        }


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", "reward 'too_few' returned 2 values for 3 completions"),
        (
            "one_number",
            "reward 'one_number' must return a list with one number (or None) for each of the 3 completions, and "
            "returned float 1.0",
        ),
    ],
)
def test_a_wrong_return_fails_the_whole_call(function: str, message: str) -> None:
    """Not repeated one by one: a function that lost a row cannot be trusted with the order of the others."""
    with Pool(f"{HOSTILE}:{function}") as pool:
        scores = pool.score({"completions": ["a", "b", "c"]}).scores
    assert scores == dict.fromkeys(range(3), Trouble("return", message))


@pytest.mark.fault("R1")
def test_a_traceback_begins_in_the_reward_and_prints_are_kept(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "def f(completions):\n    print('looking at', completions)\n    return inner()\n\ndef inner():\n    1 // 0\n",
    )
    with Pool(place) as pool:
        trouble = pool.score({"completions": ["a"]}).scores[0]
    assert isinstance(trouble, Trouble)
    assert trouble.message == "ZeroDivisionError: integer division or modulo by zero"
    assert re.findall(r'File ".*/(\w+)\.py", line (\d+)', trouble.traceback) == [("mine", "5"), ("mine", "8")]
    assert trouble.output == "looking at ['a']\n"


def test_columns_arrive_and_only_what_is_wanted_is_sent(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "def f(prompts, completions, answer, trainer_state, **_):\n"
        "    assert set(_) == {'completion_ids', 'log_extra', 'log_metric', 'kind'}, _\n"
        "    return [float(trainer_state.global_step + len(p) + len(c) + a)"
        " for p, c, a in zip(prompts, completions, answer)]\n"
        "def few(completions, answer): return [float(a) for a in answer]\n",
    )
    columns: dict[str, list[Any]] = {
        "prompts": ["p", "pp"],
        "completions": ["c", "cc"],
        "completion_ids": [[1], [1, 2]],
        "answer": [100, 200],
        "kind": ["x", None],
    }
    with Pool(place) as pool:
        assert pool.score(columns, TrainerState(1000)).scores == {0: 1102.0, 1: 1204.0}
    with Pool(place[:-1] + "few") as pool:
        # What cannot be sent does no harm where it is not wanted.
        assert pool.score(columns | {"kind": [lambda: 0, None]}).scores == {0: 100.0, 1: 200.0}
    with Pool(place) as pool:
        with pytest.raises(GroError, match="a column of the data cannot be sent to reward 'f'"):
            pool.score(columns | {"kind": [lambda: 0, None]})
        assert pool.score(columns, TrainerState(0)).scores == {0: 102.0, 1: 204.0}


def test_what_a_reward_logs(tmp_path: Path) -> None:
    code = (
        "def f(completions, log_metric, log_extra):\n"
        "    log_metric('length', sum(map(len, completions)))\n"
        "    log_extra('upper', [c.upper() for c in completions])\n"
        "    return [0.0] * len(completions)\n"
    )
    with Pool(write(tmp_path, code)) as pool:
        batch = pool.score({"completions": ["a", "bb"]})
    assert batch.metrics == {"length": [3.0]}
    assert batch.extra == {"upper": {0: "A", 1: "BB"}}
    with Pool(write(tmp_path, code.replace("def f", "@reward(samplewise=True)\ndef f"))) as pool:
        batch = pool.score({"completions": ["a", "bb"]})
    assert batch.metrics == {"length": [1.0, 2.0]}
    assert batch.extra == {"upper": {0: "A", 1: "BB"}}


def test_an_ordinary_function_sees_the_whole_batch_and_a_samplewise_one_each_alone(tmp_path: Path) -> None:
    code = "def f(completions): return [float(len(completions))] * len(completions)\n"
    with Pool(write(tmp_path, code)) as pool:
        assert set(pool.score({"completions": ["a"] * 100}).scores.values()) == {100.0}
        assert pool.score({"completions": []}).scores == {}
    with Pool(write(tmp_path, "@reward(samplewise=True)\n" + code), workers=3) as pool:
        batch = pool.score({"completions": ["a"] * 100})
        assert batch.scores == dict.fromkeys(range(100), 1.0)
        assert pool.score({"completions": []}).scores == {}


def test_several_processes_share_a_samplewise_batch(tmp_path: Path) -> None:
    code = (
        "@reward(samplewise=True)\ndef f(completions):\n    time.sleep(0.01)\n    return [float(os.getpid() % 10**6)]\n"
    )
    with Pool(write(tmp_path, code), workers=2) as pool:
        batch = pool.score({"completions": ["a"] * 80})
    assert len(set(batch.scores.values())) == 2


@pytest.mark.fault("R4")
def test_the_time_for_what_hangs_is_bounded() -> None:
    """Every completion hangs: after LOST_LIMITS limits the rest is not tried."""
    limit = 0.1
    with Pool(f"{HOSTILE}:obedient", time_limit=limit, workers=1) as pool:
        began = time.monotonic()
        batch = pool.score({"completions": ["sleep"] * 60})
        took = time.monotonic() - began
    assert set(kinds(batch.scores).values()) == {"hung", "untried"}
    # Fewer where the machine is busy: what is counted is time.
    assert 1 <= list(kinds(batch.scores).values()).count("hung") <= LOST_LIMITS + 1
    assert batch.lost < (LOST_LIMITS + 1) * (limit + 1)
    assert took < 30


@pytest.mark.fault("R4")
def test_a_slow_batch_call_is_not_repeated_for_ever(tmp_path: Path) -> None:
    """Each completion alone is within the limit, together they are not, and the repetition has a bound too."""
    place = write(
        tmp_path, "def f(completions):\n    time.sleep(0.09 * len(completions))\n    return [1.0] * len(completions)\n"
    )
    with Pool(place, time_limit=0.1) as pool:
        batch = pool.score({"completions": ["a"] * 50})
    assert "untried" in kinds(batch.scores).values()
    assert 1.0 in batch.scores.values()
    assert len(batch.scores) == 50


@pytest.mark.fault("R5")
def test_a_process_that_dies_idle_is_replaced_and_nobody_is_blamed(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        "import threading\n"
        "def f(completions):\n"
        "    threading.Timer(0.05, os._exit, (1,)).start()\n"
        "    return [1.0] * len(completions)\n",
    )
    with Pool(place) as pool:
        for _ in range(3):
            assert pool.score({"completions": ["a", "b"]}).scores == {0: 1.0, 1: 1.0}
            time.sleep(0.15)


def test_a_reward_that_cannot_start_again_gives_up(tmp_path: Path) -> None:
    """The file changes for the worse while the run is on."""
    place = write(tmp_path, "def f(completions): os._exit(1)\n")
    with Pool(place, time_limit=5.0) as pool:
        (tmp_path / "mine.py").write_text("raise ValueError('broken now')\n")
        batch = pool.score({"completions": ["a", "b", "c"]})
        assert set(kinds(batch.scores).values()) == {"untried"}
        assert len(batch.scores) == 3
        write(tmp_path, "def f(completions): return [2.0] * len(completions)\n")
        assert pool.score({"completions": ["a"]}).scores == {0: 2.0}


def test_what_was_interrupted_does_not_reach_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(
        tmp_path, "def f(completions):\n    time.sleep(0.2)\n    return [float(len(c)) for c in completions]\n"
    )
    with Pool(place) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_listen", lambda batch: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pool.score({"completions": ["aaaa", "bbbb"]})
        assert pool.score({"completions": ["c"]}).scores == {0: 1.0}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def g(completions): ...\n", "reward function 'f' does not exist"),
        ("1 // 0\n", "cannot be imported: ZeroDivisionError"),
        ("sys.exit(3)\n", "the reward cannot be loaded:"),
        ("print('going'); sys.stdout.flush(); os._exit(3)\n", "its process ended with exit code 3\ngoing"),
        ("def f(completions, /): ...\n", "called with keywords only"),
    ],
)
def test_a_reward_that_cannot_be_loaded_says_why_at_once(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(GroError, match=re.escape(message)):
        Pool(write(tmp_path, code))


def test_an_import_that_prints_a_lot_does_not_block(tmp_path: Path) -> None:
    place = write(tmp_path, "print('x' * 1_000_000)\ndef f(completions): return [1.0]\n")
    with Pool(place) as pool:
        assert pool.score({"completions": ["a"]}).scores == {0: 1.0}


def test_a_function_is_found_again_in_its_process() -> None:
    with Pool(exact_match) as pool:
        assert pool.name == "exact_match"
        assert pool.score({"completions": ["a"], "answer": ["a"]}).scores == {0: 1.0}
    with Pool(functools.partial(exact_match, ignore_case=True)) as pool:
        assert pool.score({"completions": ["A"], "answer": ["a"]}).scores == {0: 1.0}


@pytest.mark.parametrize("function", [lambda completions: [1.0], lambda **_: []])
def test_a_function_that_cannot_be_found_again_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(
        GroError, match=re.escape("define it at the top of a file and give it as path/to/file.py:function")
    ):
        Pool(function)


@pytest.mark.fault("R6")
def test_our_own_rewards_do_not_see_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "hunter2")
    with Pool("exact_match") as pool:
        (worker, *_) = pool._workers
        assert b"hunter2" not in Path(f"/proc/{worker.process._process.pid}/environ").read_bytes()
    place = write(tmp_path, "def f(completions): return [float(os.environ['SECRET_API_KEY'] == 'hunter2')]\n")
    with Pool(place) as pool:  # a judge of one's own needs its key
        assert pool.score({"completions": ["a"]}).scores == {0: 1.0}


@pytest.mark.fault("R5")
def test_no_descriptor_and_no_process_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Pool(f"{HOSTILE}:obedient", time_limit=0.3) as pool:
        pool.score({"completions": ["sleep", "os._exit(0)", "a"]})
        pids = [worker.process._process.pid for worker in pool._workers]
    assert set(os.listdir("/proc/self/fd")) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_pooled_call_is_cheap() -> None:
    with Pool("exact_match") as pool:
        took = []
        for _ in range(50):
            began = time.perf_counter()
            pool.score({"completions": ["a"], "answer": ["a"]})
            took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.005


@pytest.mark.fault("R5")
def test_memory_is_bounded(tmp_path: Path) -> None:
    code = (
        "def f(completions, megabytes):\n"
        "    held = [bytearray(32 << 20) for _ in range(megabytes[0] // 32)]\n"
        "    return [float(len(held))]\n"
    )
    with Pool(write(tmp_path, code), memory_limit=512 << 20) as pool:
        assert pool.score({"completions": ["a"], "megabytes": [256]}).scores == {0: 8.0}
        trouble = pool.score({"completions": ["a"], "megabytes": [1024]}).scores[0]
    assert isinstance(trouble, Trouble)
    assert (trouble.kind, trouble.message) == ("raised", "MemoryError")


@pytest.mark.fault("R5")
def test_children_without_an_environment_end_with_the_session(tmp_path: Path) -> None:
    """They do not carry the mark that the other children are found by."""
    code = (
        "import subprocess\n"
        "def f(completions):\n"
        "    return [subprocess.Popen(['sleep', '1000'], env={}).pid / 10 for _ in completions]\n"  # below 1e6
    )
    with Pool(write(tmp_path, code)) as pool:
        tenth = pool.score({"completions": ["a"]}).scores[0]
        assert isinstance(tenth, float)
        child = Path(f"/proc/{round(10 * tenth)}")
        assert child.exists()
    until = time.monotonic() + 5
    while child.exists() and time.monotonic() < until:  # a zombie, until init has reaped it
        time.sleep(0.01)
    assert not child.exists()


def test_a_function_of_the_main_script_is_found_by_its_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from gro.rewards.pool import Pool\n"
        "def mine(completions): return [float(len(c)) for c in completions]\n"
        "if __name__ == '__main__':\n"
        "    with Pool(mine) as pool:\n"
        "        print(pool.name, pool.score({'completions': ['abc']}).scores)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.stdout == "mine {0: 3.0}\n", done.stderr
