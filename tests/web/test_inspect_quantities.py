"""What each token was pushed by, worked out again from a run directory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from inspected_runs import records, trained, written

from gro.algorithms import build
from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.web.inspect.quantities import StepParts, _fit, parts_of
from gro.web.inspect.stored import numbers, quantities


def parts(run: Path, step: int, *, whole: bool = False, algorithm: str | None = None) -> StepParts:
    with RunReader(run) as reader:
        name = algorithm or reader.config["algorithm"]["name"]
        return parts_of(reader, step, build(name), whole=whole)


def product(found: StepParts, row: int) -> np.ndarray:
    """Σ share · w · v · slope."""
    terms = [t.rows[row] for t in found.terms]
    return torch.stack([t["share"] * t["w"] * t["v"] * t["slope"] for t in terms]).sum(0).numpy()


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo", "gro", "dpo"])
def test_the_product_of_the_parts_is_the_recorded_coefficient(name: str) -> None:
    run, pushed = trained(name), 0
    with RunReader(run) as reader:
        steps = reader.rollout_steps()
    for step in steps:
        found = parts(run, step)
        largest = max(np.abs(r.tokens.get("coefficient", np.zeros(1))).max() for r in records(run, step))
        for record in records(run, step):
            stored = record.tokens.get("coefficient", np.zeros(len(record.completion_ids)))
            np.testing.assert_allclose(product(found, record.row), stored, atol=1e-5 * largest, rtol=1e-4)
            pushed += int((np.abs(stored) > 0).sum())
        assert found.error < 1e-5
        assert not found.notes
    assert pushed > 10


def test_the_share_is_that_of_the_whole_update_though_half_of_it_is_recorded() -> None:
    run, told = trained("grpo"), 0
    for step in (1, 2, 3):
        rows = records(run, step)
        assert len(rows) == 8  # 2 of 4 groups of 4
        found = parts(run, step)
        for record in rows:
            for term in found.terms:
                if term.determined:  # sequence mean: 1/(B·|y|), B all 16 completions of the update
                    expected = 1 / (16 * len(record.completion_ids))
                    np.testing.assert_allclose(term.rows[record.row]["share"].numpy(), expected, rtol=2e-3)
                    told += 1
    assert told > 20


def by_hand(tmp_path: Path) -> Path:
    """One group of two completions under GRPO with the default clip of 0.2 and β = 0.04; c by the paper's formula.

    Row 0 (A = 1): ratios 1, 1.5 (past the upper bound).  Row 1 (A = −1): ratios 1, 0.5 (past the lower), 1.5 (inside).
    """
    made = []
    for row, (a, ratios, u_ref) in enumerate(
        [(1.0, (1.0, 1.5), (0.0, 0.3)), (-1.0, (1.0, 0.5, 1.5), (0.2, 0.0, -0.4))]
    ):
        logp = [-0.5 - 0.25 * t for t in range(len(ratios))]
        past = [(a > 0 and r > 1.2) or (a < 0 and r < 0.8) for r in ratios]
        share = 1 / (2 * len(ratios))
        pull = [0.0 if out else r * a for r, out in zip(ratios, past, strict=True)]
        kl = [0.04 * (math.exp(-u) - 1) for u in u_ref]
        made.append(
            RolloutRecord(
                group=0, row=row, prompt="p", prompt_ids=[1], completion="c", completion_ids=list(range(len(ratios))),
                reward=a, finish="stop",
                tokens={
                    "logp": logp,
                    "old": [x - math.log(r) for x, r in zip(logp, ratios, strict=True)],
                    "ref": [x - u for x, u in zip(logp, u_ref, strict=True)],
                    "advantage": [a] * len(ratios),
                    "coefficient": [share * (p + k) for p, k in zip(pull, kl, strict=True)],
                    "trained": [1.0] * len(ratios),
                },
            )
        )  # fmt: skip
    return written(tmp_path / "hand", [made])


@pytest.mark.parametrize("whole", [True, False])
def test_parts_by_hand(tmp_path: Path, whole: bool) -> None:
    found = parts(by_hand(tmp_path), 1, whole=whole)
    assert found.error < 1e-6
    pull, kl = found.terms
    assert (pull.clips, kl.clips) == (True, False)
    assert pull.rows[0]["clip"].tolist() == [0, 1]
    assert pull.rows[1]["clip"].tolist() == [0, -1, 0]
    np.testing.assert_allclose(pull.rows[0]["w"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(pull.rows[1]["w"], [1, 0, 1.5], rtol=1e-5)
    np.testing.assert_allclose(pull.rows[0]["share"], [1 / 4] * 2, rtol=1e-4)
    np.testing.assert_allclose(pull.rows[1]["share"], [1 / 6] * 3, rtol=1e-4)
    np.testing.assert_allclose(pull.rows[1]["v"], [-1] * 3)
    np.testing.assert_allclose(kl.rows[0]["w"], [0, 0.04 * (math.exp(-0.3) - 1)], atol=1e-7)
    # ε is what the log-prob is compared with: the old policy's for the first term, the reference's for the second.
    np.testing.assert_allclose(pull.rows[0]["epsilon"], [-0.5, -0.75 - math.log(1.5)], rtol=1e-5)
    np.testing.assert_allclose(kl.rows[1]["epsilon"], [-0.7, -0.75, -0.6], rtol=1e-5)


def test_recorded_quantities_and_what_follows_from_them(tmp_path: Path) -> None:
    (row, _) = records(by_hand(tmp_path), 1)
    found = quantities(row)
    np.testing.assert_allclose(found["ratio"], [1, 1.5], rtol=1e-5)
    np.testing.assert_allclose(found["kl1"], [0, 0.3], atol=1e-6)
    np.testing.assert_allclose(found["kl3"], [0, math.exp(-0.3) - 1 + 0.3], atol=1e-6)
    assert found["reward"].tolist() == [0, 1]
    assert not {"value", "gap"} & set(found)  # nobody recorded them
    assert numbers(np.array([1.0, math.nan, math.inf])) == [1.0, None, None]


def test_the_reward_stands_at_the_last_token_that_carries_loss() -> None:
    record = RolloutRecord(
        group=0, row=0, prompt="", prompt_ids=[1], completion="", completion_ids=[5, 6, 7], reward=2.0,
        tokens={"trained": np.array([1, 1, 0], np.float32)},
    )  # fmt: skip
    assert quantities(record)["reward"].tolist() == [0, 2, 0]


def test_what_the_recorded_rows_do_not_tell_is_said(tmp_path: Path) -> None:
    run = by_hand(tmp_path)
    wrong = parts(run, 1, algorithm="reinforce")
    assert wrong.error > 0.01
    assert "differ from the recorded coefficients" in wrong.notes[0]
    bare = RolloutRecord(
        group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1], reward=1.0,
        tokens={"logp": [-1.0], "coefficient": [0.1], "advantage": [1.0], "trained": [1.0]},
    )  # fmt: skip
    without_reference = written(tmp_path / "bare", [[bare]])
    with pytest.raises(GroError, match=r"cannot be worked out again: .*ref_BT"):
        parts(without_reference, 1)


def test_a_step_without_an_update_is_named(tmp_path: Path) -> None:
    resting = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1], reward=1.0)
    with pytest.raises(GroError, match="no logp: the policy made no update"):
        parts(written(tmp_path / "resting", [[resting]]), 1)


def test_terms_in_proportion_are_not_told_apart() -> None:
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    scales, known = _fit([one, other], 0.5 * one + 0.25 * other)
    np.testing.assert_allclose(scales, [0.5, 0.25], rtol=1e-6)
    assert known == [True, True]
    scales, known = _fit([one, 3 * one], one)
    assert known == [False, False]
    np.testing.assert_allclose(scales[0] + 3 * scales[1], 1, rtol=1e-6)  # their sum is
    assert _fit([torch.zeros(2), one], one) == ([0.0, pytest.approx(1.0)], [False, True])
