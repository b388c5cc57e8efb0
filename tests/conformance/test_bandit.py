"""The bandit on which algorithms must improve."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gro.algorithms import build
from gro.conformance.bandit import BEST, PROMPTS, TOKENS, VOCABULARY, improvement, mean_reward, rollout


def test_the_expected_reward_is_exact():
    assert mean_reward(torch.zeros(PROMPTS, TOKENS, VOCABULARY)) == pytest.approx(2 / VOCABULARY - 1)
    certain = torch.zeros(PROMPTS, TOKENS, VOCABULARY)
    certain[..., BEST] = 50.0
    assert mean_reward(certain) == pytest.approx(1)


def test_rewards_and_values_agree_with_the_policy():
    random = torch.Generator().manual_seed(0)
    logits_PTV = torch.randn(PROMPTS, TOKENS, VOCABULARY, generator=random, dtype=torch.float64)
    tokens_BT, batch = rollout(build("rloo"), logits_PTV, logits_PTV, 4000, random)
    assert batch.reward_B is not None
    assert batch.values_BT is not None
    right_BT = (tokens_BT == BEST).double()
    torch.testing.assert_close(batch.reward_B, right_BT.mean(1) * 2 - 1)
    assert float(batch.reward_B.mean()) == pytest.approx(mean_reward(logits_PTV), abs=0.02)
    # The value before the first token is the prompt's mean reward; before the last, what is left is one token.
    by_prompt_P = torch.stack([batch.reward_B[batch.group_B == p].mean() for p in range(PROMPTS)])
    torch.testing.assert_close(batch.values_BT[:, 0], by_prompt_P[batch.group_B], atol=0.05, rtol=0)
    last_B = right_BT[:, 0] + logits_PTV.softmax(-1)[batch.group_B, 1, BEST] - 1
    torch.testing.assert_close(batch.values_BT[:, 1], last_B)


def test_the_other_direction_gets_worse():
    rloo = build("rloo", kl=0.0)
    backwards = replace(rloo, terms=(replace(rloo.terms[0], scale=-1.0),))
    before, after = improvement(rloo)
    assert improvement(rloo) == (before, after), "it is not keyed by the seed alone"
    assert after > 0.9
    assert improvement(backwards)[1] < before
