"""Metrics that no other test of training sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gro.algorithms import build
from gro.training.metrics import length_correlation
from gro.types import Batch

LENGTHS = (1, 2, 4, 5, 3)
AVERAGES = (-2.0, -1.5, -0.5, -0.9, -7.0)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, Batch]:
    """Completions of these lengths with uneven log-probs of these averages; the last is another prompt's."""
    mask_BT = torch.arange(6)[None, :] < torch.tensor(lengths)[:, None]
    tilt_BT = (torch.arange(6)[None, :] - (torch.tensor(lengths)[:, None] - 1) / 2) * 0.1
    logp_BT = (torch.tensor(AVERAGES)[:, None] + tilt_BT).masked_fill(~mask_BT, torch.nan)
    return logp_BT, Batch(mask_BT, torch.tensor([0, 0, 1, 1, 1]), role_B=torch.tensor([0, 0, 0, 0, 2]))


@pytest.mark.parametrize("name", ["gro", "simpo"])
def test_the_correlation_of_averages_with_length(name: str) -> None:
    parameters = {"gro": {"base": "zero"}}.get(name, {})
    found = length_correlation(*batch_of(), build(name, **parameters))
    assert found == {"length_correlation": pytest.approx(np.corrcoef(LENGTHS[:4], AVERAGES[:4])[0, 1])}


def test_only_where_bare_averages_are_compared() -> None:
    for name, parameters in (("dpo", {}), ("gro", {"base": "ref"}), ("grpo", {}), ("sft", {})):
        assert length_correlation(*batch_of(), build(name, **parameters)) == {}, name


def test_equal_lengths_have_no_correlation() -> None:
    assert length_correlation(*batch_of((3, 3, 3, 3, 5)), build("simpo")) == {}
