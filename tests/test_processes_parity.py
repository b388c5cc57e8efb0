"""One, two and three processes learn from the same completions and come to the same numbers."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from several_ranks import finished
from torture.attempts import preload
from torture.cases import CASES, Case, online, prepare
from torture.cases import dpo as preferences
from torture.compare import TIMES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model that was taught the form of a sum."""
    preload()
    base = tmp_path_factory.mktemp("parity") / "base"
    prepare(base)
    return base


_HELD_OUT = {"data": {"path": "BASE/sums.jsonl", "start": 80}, "limit": 4, "samples": 3}
EVERYTHING = Case(
    "everything",
    online,
    {
        "rewards": ["BASE/mine.py:digits", "BASE/mine.py:even"],
        "reward_normalise": "each",
        "resample": {"rounds": 2},
        "prompts_per_step": 2,
        "eval": _HELD_OUT,
        "training": {"steps": 4, "eval_every": 2},
    },
)
"""Of which two prompts a step are fewer than the processes."""


def _that_learns(case: Case) -> Case:
    """With rewards that vary: where there is no gradient but rounding, Adam makes steps of it.  Of TRPO two steps, as
    conjugate gradient, before it has converged, makes rounding larger some hundred thousand times at each.
    """
    if case.name not in ("grpo", "ppo-penalty", "trpo"):
        return case
    short = {"training": {"steps": 2}} if case.name == "trpo" else {}
    return replace(case, keys=case.keys | short | {"rewards": ["BASE/mine.py:digits"]})


PARITY = {name: _that_learns(case) for name, case in CASES.items()} | {"everything": EVERYTHING}


def _asked(run: Path, query: str) -> list[tuple[Any, ...]]:
    """Of the run and of the runs inside it."""
    found = []
    for database in sorted(run.rglob("run.db")):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            found += [(str(database.relative_to(run)), *row) for row in connection.execute(query)]
    return found


def _metrics(run: Path) -> dict[tuple[str, str, int], float]:
    found = _asked(run, "SELECT name, step, value FROM metrics")
    missing = math.inf
    return {(p, name, step): missing if value is None else value for p, name, step, value in found if name not in TIMES}


def _rows(run: Path) -> list[tuple[Any, ...]]:
    return _asked(run, "SELECT step, row, ids, role, reward, finish FROM rollouts ORDER BY step, row")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").glob("*.safetensors")))


def check_parity(case: Case, base: Path) -> None:
    """One, two and three processes: the same metrics, completions and weights.

    In double precision, where the rounding of sums in another order is far from what it could hide.
    """
    folder = base.parent / f"parity-{case.name}"
    folder.mkdir()
    path = case.recipe(base, folder)
    model = f"model={{path: {base}/sft, dtype: float64, lora: {'{rank: 4}' if 'lora' in case.name else 'null'}}}"
    double = model if "path: BASE" in str(case.keys) or case.make in (online, preferences) else "model.dtype=float64"
    runs = [folder / str(size) for size in (1, 2, 3)]
    for size, run in enumerate(runs, 1):
        command = [case.command, str(path), f"run={run}", double, "training.record_groups=99"]
        finished(size, command, folder, name=run.name, agent=False)
    alone, *others = ((_metrics(run), _rows(run), _weights(run)) for run in runs)
    moved = [value for (_, name, _), value in alone[0].items() if name in ("grad_norm", "trust_region/improvement")]
    assert max(moved) > 1e-4, "something is learnt"
    if case.make is online:
        assert len({step for _, step, *_ in alone[1]}) > 1, "completions were recorded"
    for metrics, rows, weights in others:
        assert metrics == pytest.approx(alone[0], rel=1e-4, abs=1e-6)
        assert rows == alone[1], "no step is short, and every completion is the same"
        assert weights.keys() == alone[2].keys()
        for tensor_name, tensor in weights.items():
            torch.testing.assert_close(tensor, alone[2][tensor_name], rtol=1e-6, atol=1e-9)


@pytest.mark.fault("X5", "X3")
@pytest.mark.parametrize("name", ["sft", "ppo", "everything"])
def test_several_do_what_one_does(name: str, base: Path) -> None:
    check_parity(PARITY[name], base)


@pytest.mark.slow
@pytest.mark.fault("X5", "X3")
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("sft", "ppo", "bfloat16")])
def test_every_job_on_several_processes(name: str, base: Path) -> None:
    check_parity(PARITY[name], base)


def _last_bits() -> Callable[[], None]:
    """In a process before it begins: gradients of a trust region are changed in their last bits."""

    def change() -> None:
        from gro.training import trust_region

        real, noise = trust_region.conjugate_gradient, torch.Generator().manual_seed(0)

        def perturbed(product: Any, g_P: torch.Tensor, steps: int) -> Any:
            return real(product, g_P * (1 + 2e-16 * torch.randn(len(g_P), generator=noise, dtype=g_P.dtype)), steps)

        trust_region.conjugate_gradient = perturbed

    return change


@pytest.mark.slow
@pytest.mark.fault("X5")
def test_the_drift_of_a_trust_region_is_rounding(base: Path) -> None:
    """A gradient that is changed in its last bits on one process departs as two processes do; prints by how much."""
    case = replace(PARITY["trpo"], keys=PARITY["trpo"].keys | {"training": {"steps": 4}})
    folder = base.parent / "drift"
    folder.mkdir()
    path = case.recipe(base, folder)
    double, norms = f"model={{path: {base}/sft, dtype: float64}}", {}
    for name, size, before in (("one", 1, None), ("bits", 1, _last_bits()), ("two", 2, None)):
        command = [case.command, str(path), f"run={folder / name}", double]
        finished(size, command, folder, name=name, agent=False, before=before)
        norms[name] = [v for (_, metric, _), v in sorted(_metrics(folder / name).items()) if metric == "grad_norm"]
    bits, two = ([abs(a / b - 1) for a, b in zip(norms[k], norms["one"], strict=True)] for k in ("bits", "two"))
    for step, (own, others) in enumerate(zip(bits, two, strict=True), 1):
        print(f"step {step}: {own:.1e} changed in its last bits, {others:.1e} on two processes")
    assert bits[0] == two[0] == 0
    assert 0 < bits[1] < 1e-10
    for own, others in zip(bits[1:], two[1:], strict=True):
        assert 0.1 < own / others < 10
    assert bits[3] > 1e5 * bits[1]
