"""Groups become tensors without loss, and minibatches never split a group."""

from __future__ import annotations

import math

import pytest
import torch

from gro.training.batching import collate
from gro.types import Completion, Group, Prompt


def group(key: int, *lengths: int) -> Group:
    completions = tuple(
        Completion(ids=tuple(range(n)), reward=float(i), logp=(-0.5,) * n) for i, n in enumerate(lengths)
    )
    return Group(Prompt((1,), key=key), completions)


@pytest.mark.fault("R11")
def test_collate_keeps_every_field_in_its_row():
    failed = Completion(ids=(5, 6, 7), trained=(False, True, True), reward=None, finish="length", temperature=0.7)
    target = Completion(ids=(8,), role="target")
    batch = collate([group(0, 2, 1), Group(Prompt((1,)), (failed, target))], length_limit=9).batch
    assert batch.mask_BT.tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert batch.group_B.tolist() == [0, 0, 1, 1]
    assert batch.reward_B is not None
    assert batch.reward_B.tolist()[:2] == [0.0, 1.0]
    assert all(math.isnan(r) for r in batch.reward_B.tolist()[2:])
    assert batch.role_B is not None
    assert batch.role_B.tolist() == [0, 0, 0, 1]
    assert batch.temperature_B is not None
    assert torch.equal(batch.temperature_B, torch.tensor([1.0, 1.0, 0.7, 1.0]))
    assert batch.truncated_B is not None
    assert batch.truncated_B.tolist() == [False, False, True, False]
    assert batch.sampler_BT is not None
    assert batch.sampler_BT[0].tolist()[:2] == [-0.5, -0.5]
    assert bool(batch.sampler_BT[2].isnan().all())
    assert batch.length_limit == 9


def test_minibatches_partition_the_groups_and_are_keyed():
    minibatch = collate([group(k, *range(1, 2 + k % 3)) for k in range(7)], length_limit=None)
    parts = list(minibatch.epoch(1, 3, seed=4, step=5))
    keys = [[g.prompt.key for g in part.groups] for part in parts]
    assert sorted(key for part in keys for key in part) == list(range(7))
    assert keys == [[g.prompt.key for g in part.groups] for part in minibatch.epoch(1, 3, seed=4, step=5)]
    assert keys != [[g.prompt.key for g in part.groups] for part in minibatch.epoch(0, 3, seed=4, step=5)]
    for part in parts:
        assert part.batch.epoch == 1
        lengths = [len(c.ids) for g in part.groups for c in g.completions]
        assert part.batch.mask_BT.sum(1).tolist() == lengths
