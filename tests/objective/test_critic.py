"""The critic's loss: by hand, and against autograd of the papers' formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.objective import Critic
from gro.objective.shares import per_sequence
from gro.types import Batch


def one_value(old: float, ret: float) -> Batch:
    batch = Batch(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    values = {"values_BT": old, "returns_BT": ret}
    return replace(batch, **{k: torch.full((1, 1), x, dtype=torch.float64) for k, x in values.items()})


@pytest.mark.parametrize(
    ("ret", "loss", "gradient"),
    [
        (2.0, 0.32, 0.0),  # V 1.5 is past 1 + .2 and nearer to 2 than that: ½·.8², and nothing pulls
        (1.0, 0.125, 0.5),  # on the way back it is: ½·.5²
    ],
)
def test_the_clipped_loss(ret: float, loss: float, gradient: float):
    critic, batch = Critic(clip=0.2), one_value(1.0, ret)
    values_BT = torch.full((1, 1), 1.5, dtype=torch.float64)
    assert float(critic.loss_value(values_BT, batch)) == pytest.approx(loss)
    assert float(-critic.coefficients(values_BT, batch)) == pytest.approx(gradient)


def test_the_plain_loss():
    values_BT, batch = torch.full((1, 1), 1.5, dtype=torch.float64), one_value(1.0, 2.0)
    assert float(Critic().loss_value(values_BT, batch)) == 0.125
    assert float(-Critic().coefficients(values_BT, batch)) == -0.5
    assert float(Critic(coefficient=0.1).loss_value(values_BT, batch)) == pytest.approx(0.0125)
    assert float(-Critic(coefficient=0.1).coefficients(values_BT, batch)) == pytest.approx(-0.05)


def update(name: str, seed: int = 0, **params) -> tuple[Tensor, Batch, Critic]:
    """(values now, the batch with returns, the declaration's critic)."""
    algorithm = build(name, **params)
    logp_BT, batch = updates.groups(seed)
    batch = replace(batch, returns_BT=algorithm.credit.returns(batch, {}))  # type: ignore[attr-defined]
    assert batch.values_BT is not None
    assert algorithm.critic is not None
    random = torch.Generator().manual_seed(seed + 1)
    moved_BT = batch.values_BT + 0.4 * torch.randn(logp_BT.shape, generator=random, dtype=torch.float64)
    return moved_BT, batch, algorithm.critic


def samples(batch: Batch) -> list[tuple[int, Tensor]]:
    """(row, its trained tokens) of the samples with a reward."""
    assert batch.reward_B is not None
    scored_B = batch.samples_B & ~batch.reward_B.isnan() & batch.mask_BT.any(1)
    return [(i, batch.mask_BT[i]) for i in torch.nonzero(scored_B)[:, 0].tolist()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "params", "coefficient", "clip"),
    [
        ("ppo", {}, 0.1, 0.2),
        ("ppo", {"value_clip": None, "value_coefficient": 0.5, "gamma": 0.9}, 0.5, None),
        ("ppo", {"kl_target": 6.0, "value_clip": 0.3}, 0.1, 0.3),
        ("ppo_penalty", {"lam": 0.5}, 0.1, 0.2),
        ("ppo_ptx", {}, 0.1, 0.2),
        ("trpo", {"value_clip": None}, 0.1, None),
        ("awr", {}, 1.0, None),
        ("marwil", {}, 1.0, None),
        ("a_lol", {"value_coefficient": 2.0}, 2.0, None),
    ],
    ids=str,
)
def test_a_declarations_critic_learns_by_its_papers_formula(
    name: str, params: dict, coefficient: float, clip: float | None, seed: int
):
    """c (1/N) Σ ½ max((V − ret)², (V_old + clip(V − V_old, ±ε) − ret)²), the returns worked out here."""
    values_BT, batch, critic = update(name, seed, **params)
    leaf_BT = values_BT.detach().clone().requires_grad_()
    losses = []
    for i, trained_T in samples(batch):
        V, V_old, ret = leaf_BT[i][trained_T], batch.values_BT[i][trained_T], returns(name, params, batch, i)  # type: ignore[index]
        square = (V - ret) ** 2
        if clip is not None:
            square = torch.maximum(square, (V_old + (V - V_old).clamp(-clip, clip) - ret) ** 2)
        losses.append(square / 2)
    loss = coefficient * torch.cat(losses).mean()
    (gradient_BT,) = torch.autograd.grad(loss, leaf_BT)
    assert float(critic.loss_value(values_BT, batch)) == pytest.approx(loss.item(), abs=1e-10)
    torch.testing.assert_close(-critic.coefficients(values_BT, batch), gradient_BT, rtol=0, atol=1e-10)


def returns(name: str, params: dict, batch: Batch, i: int) -> Tensor:
    """λ-returns as the sum over horizons: Σ_k (γλ)^k δ_t+k + V_t; of A-LoL the reward."""
    assert batch.reward_B is not None
    assert batch.values_BT is not None
    assert batch.old_BT is not None
    assert batch.ref_BT is not None
    trained_T, reward = batch.mask_BT[i], float(batch.reward_B[i])
    n = int(trained_T.sum())
    if name == "a_lol":
        return torch.full((n,), reward, dtype=torch.float64)
    gamma, lam = params.get("gamma", 1.0), 1.0 if name == "marwil" else params.get("lam", 0.95)
    kl = {"ppo": 0.05, "ppo_ptx": 0.02}.get(name, 0.0)
    r = (-kl * (batch.old_BT[i] - batch.ref_BT[i])[trained_T]).tolist()
    r[-1] += reward
    V = [*batch.values_BT[i][trained_T].tolist(), 0.0]
    delta = [r[t] + gamma * V[t + 1] - V[t] for t in range(n)]
    found = [V[t] + sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.fault("N2")
@pytest.mark.parametrize("critic", [Critic(), Critic(0.5, clip=0.2), Critic(share=per_sequence)], ids=repr)
def test_micro_batches_sum_to_the_update(critic: Critic):
    values_BT, batch, _ = update("ppo")
    whole_BT, count = critic.coefficients(values_BT, batch), critic.count(batch)
    value = 0.0
    for part in torch.arange(len(values_BT)).split(3):
        micro = batch.rows(part)
        torch.testing.assert_close(critic.coefficients(values_BT[part], micro, count), whole_BT[part])
        value += float(critic.loss_value(values_BT[part], micro, count))
    assert sum(critic.count(batch.rows(part)) for part in torch.arange(len(values_BT)).split(3)) == count
    assert value == pytest.approx(float(critic.loss_value(values_BT, batch)))


def test_only_scored_samples_teach_the_critic():
    values_BT, batch, critic = update("ppo", value_clip=None)
    c_BT = critic.coefficients(values_BT, batch)
    taught = {i for i, _ in samples(batch)}
    for i in range(len(c_BT)):
        assert bool(c_BT[i].any()) == (i in taught)
    assert not bool(c_BT[~batch.mask_BT].any())


def test_returns_are_needed():
    batch = Batch(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="the critic learns returns; the batch has no returns_BT"):
        Critic().coefficients(torch.zeros(1, 1), batch)
    with pytest.raises(ValueError, match="no returns_BT"):
        Critic(clip=0.2).loss_value(torch.zeros(1, 1), batch)


def test_a_critic_belongs_to_a_credit_that_reads_values():
    for name in ("ppo", "grpo"):
        algorithm = build(name)
        other = None if algorithm.critic is not None else Critic()
        with pytest.raises(ValueError, match=f"{name}: a critic is declared exactly where the credit reads values"):
            replace(algorithm, critic=other)


def test_a_frozen_critic_is_a_lols_only():
    frozen = {n for n in ("ppo", "ppo_penalty", "trpo", "awr", "marwil", "a_lol") if build(n).critic.frozen}  # type: ignore[union-attr]
    assert frozen == {"a_lol"}
