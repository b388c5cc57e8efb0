"""A reward model is trained by the learner and the loss of everything else."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from gro.algorithms import build
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.training.batching import collate
from gro.training.learner import PolicyLearner, accumulate
from gro.training.prepare import prepare
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer


def reward_model() -> RewardModel:
    model = RewardModel.beside(Policy(tiny_model(seed=0), tiny_tokenizer()))
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model


def pairs(n: int, seed: int = 0) -> list[Group]:
    """The chosen completion has more of token 7."""
    rng = random.Random(seed)
    found = []
    for key in range(n):
        prompt = Prompt(tuple(rng.randrange(10, 300) for _ in range(rng.randint(1, 4))), key=key)
        good, bad = ([rng.randrange(10, 300) for _ in range(rng.randint(2, 6))] for _ in range(2))
        good[rng.randrange(len(good))] = 7
        found.append(Group(prompt, (Completion(tuple(good), reward=1.0), Completion(tuple(bad), reward=-1.0))))
    return found


@pytest.mark.parametrize("budget", [8, 10_000])
def test_the_gradient_is_that_of_the_papers_loss_on_plain_rows(budget: int):
    model, groups = reward_model(), pairs(5)
    algorithm = build("bradley_terry", margin=0.3, centring=0.05)
    learnt = [judged(g) for g in groups]
    minibatch, _ = prepare(
        collate(learnt, length_limit=None), model, None, algorithm, {}, tokens_per_micro=budget, updates=1
    )
    seen = accumulate(model, algorithm, minibatch, budget)
    found = {n: p.grad.clone() for n, p in model.model.named_parameters() if p.grad is not None}

    plain = tiny_model(seed=0)
    head = model.head.weight.detach().clone().requires_grad_()
    losses = []
    for g in groups:
        scores = []
        for c in g.completions:
            row = torch.tensor([[*g.prompt.ids, *c.ids]])
            scores.append((plain.base_model(row).last_hidden_state[0, -1] * head[0]).sum())
        won, lost = scores
        losses.append(-F.logsigmoid(won - lost - 0.3) + 0.05 * (won + lost).square())
    loss = torch.stack(losses).mean()
    loss.backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None and "lm_head" not in n}
    output = next(n for n, p in model.model.named_parameters() if p is model.head.weight)
    assert head.grad is not None
    torch.testing.assert_close(found[output], head.grad, rtol=1e-4, atol=1e-6)
    assert len(expected) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert seen.observed(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_it_learns_what_the_pairs_have_in_common():
    model, algorithm = reward_model(), build("bradley_terry")
    learner = PolicyLearner(
        model, algorithm, Optimization(learning_rate=3e-3), total_updates=30, tokens_per_micro=4096, entropy=False
    )
    for step in range(30):
        learnt = [judged(g) for g in pairs(16, seed=step)]
        minibatch, _ = prepare(
            collate(learnt, length_limit=None), model, None, algorithm, {}, tokens_per_micro=4096, updates=1
        )
        learner.update(minibatch)
    fresh = pairs(64, seed=1000)
    won, lost = model.scores(fresh, 4096).reshape(-1, 2).T
    assert (won > lost).float().mean() > 0.9
