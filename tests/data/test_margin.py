"""By how much a chosen completion is better reaches the batch."""

from __future__ import annotations

import math

from data.small_data import load
from gro.training.batching import collate
from tiny import tiny_tokenizer

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_margins_reach_the_batch() -> None:
    data = load([PAIR | {"margin": 1.5}, PAIR | {"prompt": "d", "margin": -2}], tiny_tokenizer())
    assert [group.margin for group in data] == [1.5, -2.0]
    margin_B = collate(list(data), length_limit=None).batch.margin_B
    assert margin_B is not None
    assert margin_B.tolist() == [1.5, 1.5, -2.0, -2.0]


def test_a_margin_may_be_called_otherwise() -> None:
    data = load([PAIR | {"score": "0.25"}], tiny_tokenizer(), columns={"margin": "score"})
    assert data[0].margin == 0.25


def test_other_rows_have_none() -> None:
    assert load([PAIR], tiny_tokenizer())[0].margin is None
    demonstration = load([{"prompt": "a", "completion": "b", "margin": "wide"}], tiny_tokenizer())
    assert demonstration[0].margin is None
    margin_B = collate(list(load([PAIR], tiny_tokenizer())), length_limit=None).batch.margin_B
    assert margin_B is not None
    assert all(math.isnan(m) for m in margin_B.tolist())
