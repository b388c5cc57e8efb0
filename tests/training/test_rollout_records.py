"""What is recorded of a step's first update: the factors of every coefficient, exactly, for every algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gro.algorithms import build, names
from gro.conformance import subject
from gro.conformance.updates import cast
from gro.objective import Algorithm, coefficients, counts
from gro.runs import Run, RunReader
from gro.runs.records import RolloutRecord
from gro.training.batching import Minibatch
from gro.training.learner import Update
from gro.training.rollout_records import rollout_records
from gro.types import ROLES, Batch, Completion, Group, Prompt

GROUPS = 3
"""Recorded, of 6 to 9."""


def groups_of(batch: Batch) -> tuple[Group, ...]:
    """Groups with completions of these roles and masks; the texts are of no consequence."""
    assert batch.role_B is not None
    found: dict[int, list[Completion]] = {}
    for mask_T, group, role in zip(batch.mask_BT, batch.group_B.tolist(), batch.role_B.tolist(), strict=True):
        trained = tuple(mask_T.tolist())
        found.setdefault(group, []).append(Completion(tuple(range(len(mask_T))), trained, role=ROLES[role]))
    return tuple(Group(Prompt((g,)), tuple(completions)) for g, completions in found.items())


def written(path: Path, batch: Batch, logp_BT: torch.Tensor, algorithm: Algorithm) -> list[RolloutRecord]:
    """The first groups as a run keeps them, read again."""
    batch = replace(batch, counts_K=counts(batch, algorithm))
    c_BT = coefficients(logp_BT, batch, algorithm)
    update = Update({}, groups_of(batch), batch, logp_BT, None, c_BT)
    with Run.open(path, {}) as run:
        run.record_rollouts(1, rollout_records(update, Minibatch(update.groups, batch), algorithm, GROUPS, str))
        run.record(1, {"loss": 0.0})
    with RunReader(path) as reader:
        return reader.rollouts(1)


@pytest.mark.parametrize("later", [False, True], ids=["first update", "several updates"])
@pytest.mark.parametrize("name", names())
def test_factors_multiply_to_the_recorded_coefficients(tmp_path: Path, name: str, later: bool) -> None:
    """later: the ratios to the old policy are no longer 1, and terms have other factors than at the start."""
    under_test = subject(name, {})
    algorithm = under_test.algorithm
    logp_BT, batch = under_test.update(seed=3)
    logp_BT, batch = logp_BT.float(), cast(batch, torch.float32)
    if later:
        batch = replace(batch, scales_K=tuple(0.5 + k for k in range(len(algorithm.terms))))
    else:
        batch = replace(batch, old_BT=logp_BT)
    records, pushed = written(tmp_path / "run", batch, logp_BT, algorithm), 0
    assert len({record.group for record in records}) == GROUPS
    for record in records:
        tokens = record.tokens
        terms = [name.removesuffix(".share") for name in tokens if name.endswith(".share")]
        products = [np.prod([tokens[f"{k}.{f}"] for f in ("share", "w", "v", "slope")], axis=0) for k in terms]
        c_T, size_T = tokens["coefficient"], np.abs(products).sum(0)
        assert (np.abs(np.sum(products, axis=0) - c_T) <= 1e-6 * size_T).all(), (products, c_T)
        pushed += int((c_T != 0).sum())
    assert pushed > 0


def test_what_other_rows_decide_is_that_of_the_whole_update(tmp_path: Path) -> None:
    """KTO's z₀ is a mean over mismatched completions of all prompts, and its share counts all rows."""
    algorithm = build("kto")
    logp_BT, batch = subject("kto", {}).update(seed=3)
    assert batch.role_B is not None
    assert batch.ref_BT is not None
    ratio_B = (logp_BT - batch.ref_BT).masked_fill(~batch.mask_BT, 0.0).sum(1)
    other_B = (batch.role_B == ROLES.index("mismatch")) & batch.mask_BT.any(1)
    z0, kept = float(ratio_B[other_B].mean()), 0
    assert z0 > 0, "or it would be cut to 0"
    assert int(batch.group_B[other_B].max()) >= GROUPS, "rows that are not recorded"
    for record in written(tmp_path / "run", batch, logp_BT, algorithm):
        if record.tokens["term0.slope"].any():
            trained = record.tokens["trained"] > 0
            ref = float(batch.ref_BT[record.row][trained].sum())
            np.testing.assert_allclose(record.tokens["term0.epsilon"][trained], ref + z0, rtol=1e-5)
            np.testing.assert_allclose(record.tokens["term0.u"][trained], float(ratio_B[record.row]) - z0, rtol=1e-5)
            kept += 1
    assert kept > 2


def test_clips_by_hand(tmp_path: Path) -> None:
    """Row 0 (A = 1): ratios 1 and 1.5, past the upper bound.  Row 1 (A = −1): 1, 0.5 past the lower, 1.5 inside."""
    logp_BT = torch.tensor([[-0.5, -0.75, 0.0], [-0.5, -0.75, -1.0]])
    log_r_BT = torch.tensor([[1, 1.5, 1], [1, 0.5, 1.5]]).log()
    batch = Batch(
        mask_BT=torch.tensor([[True, True, False], [True] * 3]),
        group_B=torch.tensor([0, 0]),
        role_B=torch.tensor([0, 0]),
        reward_B=torch.tensor([1.0, 0.0]),
        old_BT=logp_BT - log_r_BT,
        ref_BT=logp_BT - torch.tensor([[0.0, 0.3, 0.0], [0.2, 0.0, -0.4]]),
        advantage_BX=torch.tensor([[1.0], [-1.0]]),
    )
    better, worse = (r.tokens for r in written(tmp_path / "run", batch, logp_BT, build("grpo", beta=0.04)))
    assert better["term0.clip"].tolist() == [0, 1, 0]
    assert worse["term0.clip"].tolist() == [0, -1, 0]
    np.testing.assert_allclose(worse["term0.w"], [1, 0, 1.5], rtol=1e-6)
    np.testing.assert_allclose(worse["term0.share"], [1 / 6] * 3, rtol=1e-6)
    np.testing.assert_allclose(better["term0.share"], [1 / 4, 1 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(better["term1.w"], [0, 0.04 * (math.exp(-0.3) - 1), 0], atol=1e-8)
    assert not {"term1.clip", "term0.epsilon"} & set(better), "nothing is clipped; ε is ℓ − u"


def test_a_number_that_holds_for_all_tokens_is_kept_once(tmp_path: Path) -> None:
    tokens = {"advantage": [0.5] * 1000, "logp": np.linspace(-1, 0, 1000), "trained": 1.0}
    record = RolloutRecord(
        group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=list(range(1000)), tokens=tokens
    )
    with Run.open(tmp_path / "run", {}) as run:
        run.record_rollouts(1, [record])
        run.record(1, {})
    with RunReader(tmp_path / "run") as reader:
        sizes = dict(reader._connection.execute('SELECT name, length("values") FROM tokens'))
        (found,) = reader.rollouts(1)
    assert sizes == {"advantage": 4, "logp": 4000, "trained": 4}
    assert found.tokens["advantage"].tolist() == [0.5] * 1000
    assert found.tokens["trained"].tolist() == [1.0] * 1000
