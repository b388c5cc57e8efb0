"""Updates from which little or nothing can be learnt, through the learner: 0 and finite, and counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from gro.algorithms import build
from gro.policy.policy import Policy
from gro.training.batching import collate
from gro.training.learner import PolicyLearner, accumulate
from gro.training.metrics import describe_rollouts
from gro.training.prepare import Reference, prepare
from gro.training.settings import Optimization
from gro.types import Completion, Finish, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

POLICY = Policy(tiny_model(vocab_size=32, layers=1), tiny_tokenizer())
REFERENCE = Reference(Policy(tiny_model(vocab_size=32, layers=1, seed=1), tiny_tokenizer()))


NO_KL: dict[str, Any] = {"grpo": {"beta": 0.0}, "rloo": {"kl": 0.0}}
"""A KL to the reference pulls whatever the rewards."""


def group(key: int, rewards: Sequence[float | None], *, length: int = 3, trained: bool = True) -> Group:
    completions = tuple(
        Completion(
            tuple(5 + (key + i + t) % 20 for t in range(length)),
            reward=reward,
            finish="stop",
            logp=(-1.0,) * length,
            trained=None if trained else (False,) * length,
        )
        for i, reward in enumerate(rewards)
    )
    return Group(Prompt((3, 4 + key), key=key), completions)


def gradient(name: str, groups: list[Group], budget: int = 1000, **parameters: Any) -> tuple[torch.Tensor, float]:
    """(all gradients as one vector, the loss).  Micro-batches of `budget` tokens."""
    algorithm = build(name, **parameters)
    batch = collate(groups, length_limit=8)
    minibatch, _ = prepare(batch, POLICY, REFERENCE, algorithm, {}, tokens_per_micro=budget, updates=1)
    seen = accumulate(POLICY, algorithm, minibatch, budget)
    parameters_P = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in POLICY.model.parameters()]
    POLICY.model.zero_grad(set_to_none=True)
    return torch.cat(parameters_P), seen.observed(algorithm)["loss"]


def learns(*extra: Group) -> list[Group]:
    return [group(0, (1.0, 0.0, 0.5)), *extra, group(9, (0.0, 1.0, 0.25))]


@pytest.mark.fault("N4")
@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo", "gro", "dapo"])
def test_equal_rewards_pull_nothing_and_are_counted(name: str) -> None:
    """std = 0: exactly no gradient, where the KL to the reference is left out; nor do they disturb the others."""
    parameters = NO_KL.get(name, {})
    alike = [group(k, (0.3, 0.3, 0.3)) for k in range(2)]
    found, loss = gradient(name, alike, **parameters)
    assert not found.any()
    assert math.isfinite(loss)
    assert describe_rollouts(alike)["frac_reward_zero_std"] == 1.0
    assert describe_rollouts(learns(alike[1]))["frac_reward_zero_std"] == pytest.approx(1 / 3)


@pytest.mark.fault("N4")
@pytest.mark.parametrize("name", ["grpo", "dpo", "sft", "simpo", "kto"])
def test_an_all_masked_micro_batch_adds_nothing(name: str) -> None:
    """Between two that learn, in a micro-batch of its own; alone, the gradient is 0 and so is the loss."""
    rewards = (1.0, -1.0)
    first, last = group(0, rewards), group(9, rewards)
    masked = group(4, rewards, trained=False)
    if name in ("sft",):
        first, masked, last = (_demonstrated(g) for g in (first, masked, last))
    without, _ = gradient(name, [first, last], budget=8)
    among, loss = gradient(name, [first, masked, last], budget=8)
    assert without.any()
    torch.testing.assert_close(among, without, rtol=1e-5, atol=1e-7)
    assert math.isfinite(loss)
    alone, nothing = gradient(name, [masked], budget=8)
    assert not alone.any()
    assert math.isfinite(nothing)
    assert describe_rollouts([first, masked, last])["completions/untrained"] == len(masked.completions)
    assert "completions/untrained" not in describe_rollouts([first, last])


def _demonstrated(of: Group) -> Group:
    return replace(of, completions=tuple(replace(c, role="target", reward=None) for c in of.completions))


@pytest.mark.fault("N4")
@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_pp", "gspo", "gro", "dpo", "simpo", "orpo", "cpl"])
def test_answers_of_one_token(name: str) -> None:
    rewards = (1.0, -1.0)
    found, loss = gradient(name, [group(k, rewards, length=1) for k in range(3)])
    assert found.isfinite().all()
    assert found.any()
    assert math.isfinite(loss)


@pytest.mark.fault("N4")
@pytest.mark.parametrize("name", ["grpo", "rloo", "dapo", "gro"])
def test_one_member_with_a_reward_is_compared_with_nobody(name: str) -> None:
    """The others' rewards failed: no gradient comes from this group, and it is counted."""
    parameters = NO_KL.get(name, {})
    lonely = group(4, (1.0, None, None))
    alone, _ = gradient(name, [lonely], **parameters)
    assert not alone.any()
    assert describe_rollouts([*learns(lonely)])["groups/alone"] == 1.0
    assert "groups/alone" not in describe_rollouts(learns())
    found, loss = gradient(name, learns(lonely), **parameters)
    assert found.isfinite().all()
    assert math.isfinite(loss)


@pytest.mark.fault("N4")
def test_an_update_of_nothing_changes_no_weight_but_by_decay() -> None:
    policy = Policy(tiny_model(vocab_size=32, layers=1), tiny_tokenizer())
    before = [p.clone() for p in policy.model.parameters()]
    algorithm = build("grpo", beta=0.0)
    learner = PolicyLearner(policy, algorithm, Optimization(), total_updates=1, tokens_per_micro=100)
    nothing = [group(0, (0.5, 0.5)), group(1, (None, None)), group(2, (1.0, 0.0), trained=False)]
    batch = collate(nothing, length_limit=8)
    minibatch, _ = prepare(batch, policy, None, algorithm, {}, tokens_per_micro=100, updates=1)
    metrics = learner.update(minibatch).metrics
    assert metrics["grad_norm"] == 0.0
    for old, new in zip(before, policy.model.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.fault("R11")
def test_a_cut_off_answer_counts_by_its_tokens_above_and_below_the_line() -> None:
    """Its finish is data, it keeps its loss, and the share divides by the tokens that it sums over, its own among
    them: with token mean, 1 over 3 + 2 trained tokens, untrained ones left out of both."""

    def answer(n: int, finish: Finish, reward: float, untrained: int = 0) -> Completion:
        trained = tuple(t >= untrained for t in range(n))
        return Completion(tuple(range(5, 5 + n)), trained=trained, reward=reward, finish=finish)

    groups = [Group(Prompt((3,)), (answer(3, "stop", 1.0), answer(4, "length", 0.0, untrained=2)))]
    batch = collate(groups, length_limit=4).batch
    assert batch.truncated_B is not None
    assert batch.truncated_B.tolist() == [False, True]
    algorithm = build("dapo")
    minibatch, _ = prepare(
        collate(groups, length_limit=4), POLICY, None, algorithm, {}, tokens_per_micro=100, updates=1
    )
    seen = accumulate(POLICY, algorithm, minibatch, 100)
    POLICY.model.zero_grad(set_to_none=True)
    assert minibatch.batch.advantage_BX is not None
    size = minibatch.batch.advantage_BX[:, :1]
    expected = (size * minibatch.batch.mask_BT / 5).tolist()
    assert seen.c_BT.tolist() == [pytest.approx(row) for row in expected]
    assert minibatch.batch.mask_BT.sum() == 5
    assert describe_rollouts(groups)["completions/clipped_ratio"] == 0.5
