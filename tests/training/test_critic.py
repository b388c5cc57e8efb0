"""The critic's learner: its gradient, what is measured of it, and that it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.errors import GroError
from gro.objective import Algorithm, Critic, Term
from gro.objective.credit import Gae
from gro.policy import critic as values_of
from gro.policy.policy import Policy
from gro.training.batching import Minibatch, collate
from gro.training.critic import CriticLearner, observe_critic
from gro.training.prepare import prepare
from gro.training.settings import Optimization
from gro.types import Batch, Completion, Group, Prompt, rows_of
from tiny import tiny_model, tiny_tokenizer

GROUPS = [
    Group(Prompt((5, 9, 4)), (Completion((7, 8, 6), reward=1.0), Completion((11,), reward=0.0))),
    Group(Prompt((12,)), (Completion((7, 9), reward=0.5), Completion((8, 8, 8), reward=None))),
    Group(Prompt((13, 14)), (Completion((7, 3, 9, 4), reward=-1.0, trained=(True, False, True, True)),)),
]


def algorithm(clip: float | None = None, coefficient: float = 1.0) -> Algorithm:
    return Algorithm("to test with", Gae(lam=1.0), (Term(),), critic=Critic(coefficient, clip))


def prepared(policy: Policy, critic: values_of.Critic, how: Algorithm, budget: int = 1000) -> Minibatch:
    minibatch = collate(GROUPS, length_limit=None)
    settings = {"tokens_per_micro": budget, "updates": 1}
    return prepare(minibatch, policy, None, how, {}, critic=critic, **settings)[0]  # type: ignore[arg-type]


def made(shared: bool = False) -> tuple[Policy, values_of.Critic]:
    policy = Policy(tiny_model(dtype=torch.float64), tiny_tokenizer())
    critic = values_of.Critic.on(policy) if shared else values_of.Critic.beside(policy)
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-0.1, 0.1, critic.head.weight.numel())[None])
    return policy, critic


def learner(critic: values_of.Critic, how: Algorithm, budget: int = 1000, rate: float = 1e-12) -> CriticLearner:
    optimization = Optimization(learning_rate=rate, max_grad_norm=0.0)
    return CriticLearner(critic, how, optimization, total_updates=100, tokens_per_micro=budget)


@pytest.mark.parametrize("budget", [1000, 4])
def test_gradient_is_the_mean_over_the_tokens_of_rows_with_a_reward(budget: int) -> None:
    how = algorithm(coefficient=0.7)
    policy, critic = made()
    fitting = learner(critic, how, budget)
    fitting.descent.abandon = lambda: None  # type: ignore[method-assign]
    metrics = fitting.update(prepared(policy, critic, how, budget)).metrics
    trunk, head = tiny_model(dtype=torch.float64), torch.nn.Linear(32, 1, dtype=torch.float64)
    head.load_state_dict({name: p.detach() for name, p in critic.head.state_dict().items()})
    errors: list[Tensor] = []
    for _, g, y in rows_of(GROUPS):
        row = torch.tensor([[*g.prompt.ids, *y.ids]])
        hidden_NH = trunk(input_ids=row, output_hidden_states=True).hidden_states[-1][0]
        values = head(hidden_NH[len(g.prompt.ids) - 1 : -1])[:, 0]
        carried = torch.tensor(y.trained or [True] * len(y.ids))
        if y.reward is not None:
            errors += list(values[carried] - y.reward)  # λ = γ = 1: every return is the reward
    loss = 0.7 * 0.5 * torch.stack(errors).square().mean()
    loss.backward()
    assert metrics["critic/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["critic/learning_rate"] == 1e-12
    norm = torch.cat([p.grad.flatten() for p in (*trunk.model.parameters(), *head.parameters()) if p.grad is not None])
    assert metrics["critic/grad_norm"] == pytest.approx(norm.norm().item(), rel=1e-5)
    for name, p in trunk.model.named_parameters():
        torch.testing.assert_close(critic.parameters[f"trunk.{name}"].grad, p.grad, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(critic.head.weight.grad, head.weight.grad, atol=1e-7, rtol=1e-5)


def test_what_is_measured() -> None:
    """Two tokens of a row with a reward, one of a row without; by hand."""
    batch = Batch(
        mask_BT=torch.tensor([[True, True], [True, False]]),
        group_B=torch.tensor([0, 1]),
        reward_B=torch.tensor([1.0, torch.nan]),
        values_BT=torch.tensor([[0.0, 0.5], [9.0, 9.0]]),
        returns_BT=torch.tensor([[1.0, 3.0], [7.0, 7.0]]),
    )
    metrics = observe_critic(torch.tensor([[0.5, 0.6], [5.0, 5.0]]), batch, Critic(clip=0.2))
    assert metrics["critic/values_mean"] == pytest.approx(0.55)
    assert metrics["critic/returns_mean"] == 2.0
    # Errors 0.5 and 2.4: variance 0.95² = 0.9025 of 1.
    assert metrics["critic/explained_variance"] == pytest.approx(1 - 0.9025)
    assert metrics["critic/clip_fraction"] == 0.5  # it has moved by 0.5 and 0.1
    # Clipped, the first value is 0.2, which is worse: (0.8² + 2.4²)/2/2.
    assert metrics["critic/loss"] == pytest.approx((0.64 + 5.76) / 4)


@pytest.mark.fault("N4")
def test_nothing_to_learn_and_nothing_to_explain() -> None:
    batch = Batch(
        mask_BT=torch.ones(1, 2, dtype=torch.bool),
        group_B=torch.tensor([0]),
        reward_B=torch.tensor([torch.nan]),
        returns_BT=torch.ones(1, 2),
    )
    assert observe_critic(torch.zeros(1, 2), batch, Critic()) == {"critic/loss": 0.0}
    same = replace(batch, reward_B=torch.tensor([1.0]))
    assert "critic/explained_variance" not in observe_critic(torch.zeros(1, 2), same, Critic())


def test_it_fits_a_batch() -> None:
    """Up to what it cannot: completions of one prompt differ in their rewards and begin at one state."""
    how = algorithm()
    policy, critic = made()
    minibatch = prepared(policy, critic, how)
    fitting = learner(critic, how, rate=1e-2)
    explained = [fitting.update(minibatch).metrics["critic/explained_variance"] for _ in range(30)]
    assert explained[0] < 0.3
    assert explained[-1] > 0.85


@pytest.mark.fault("N1")
def test_values_that_are_not_finite_stop_before_the_update() -> None:
    how = algorithm()
    policy, critic = made()
    minibatch = prepared(policy, critic, how)
    with torch.no_grad():
        critic.head.bias.fill_(torch.inf)
    before = {name: p.clone() for name, p in critic.parameters.items()}
    with pytest.raises(GroError, match=r"the critic's values of row 0 \(prompt 0\) are not finite"):
        learner(critic, how, budget=4, rate=1e-2).update(minibatch)
    for name, p in critic.parameters.items():
        assert p.grad is None
        torch.testing.assert_close(p, before[name], atol=0, rtol=0)
