"""Every algorithm improves a real model on a tiny language task, with its defaults and the real learners.

The bandit on which every algorithm must improve is among the checks of `gro.conformance`.
"""

from __future__ import annotations

import pytest

from algorithms.language import RATE, expected_reward, improve, pairs_of, preference, updates_of, warm_policy
from gro.algorithms import build, names
from gro.objective.units import score
from gro.policy.policy import Policy

REWARD, NATS = 0.15, 1.5
"""The least by which the expected reward rises from 0.36 of 1, and the log-odds of pairs from 2.9.

What was seen is at least 0.27 and 2.4.
"""
POLICIES = [name for name in names() if all(term.unit != score for term in build(name).terms)]
"""The others train reward models."""


@pytest.fixture(scope="module")
def start() -> Policy:
    return warm_policy()


def test_the_start_can_become_better_and_worse(start: Policy) -> None:
    assert 0.25 < expected_reward(start) < 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_improves(name: str, start: Policy) -> None:
    """By its exact expected reward; where only pairs are learnt from, by the log-odds of the better completion."""
    policy, algorithm = start.snapshot(), build(name)
    policy.model.requires_grad_(True)
    improve(policy, algorithm, updates=updates_of(algorithm), rate=RATE)
    if algorithm.pairs:
        pairs = pairs_of(start)
        assert preference(policy, pairs) > preference(start, pairs) + NATS
    else:
        assert expected_reward(policy) > expected_reward(start) + REWARD
