"""Every algorithm improves a real model on a tiny language task, with its defaults and the real learners.

The bandit on which every algorithm must improve is among the checks of `gro.conformance`.
"""

from __future__ import annotations

import pytest

from algorithms.language import expected_reward, improve, preference, warm_policy
from gro.algorithms import build, names
from gro.objective.units import score
from gro.policy.policy import Policy

RATE, UPDATES = 0.003, 24
TRUSTED_UPDATES = 8
"""A trust region's steps are long, and each costs a solution of linear equations."""
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
    improve(policy, algorithm, updates=UPDATES if algorithm.step is None else TRUSTED_UPDATES, rate=RATE)
    if algorithm.pairs:
        assert preference(policy, start) > preference(start, start) + NATS
    else:
        assert expected_reward(policy) > expected_reward(start) + REWARD
