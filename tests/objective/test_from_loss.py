"""The escape hatch, and the objective used alone: tensors in, gradients out, in every precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.objective import Algorithm, FromLoss, Term, coefficients, counts, loss_value, select, surrogate
from gro.objective.credit import GroupMean, Labels, NoBaseline
from gro.objective.shares import per_pair, per_sequence, sequence_mean
from gro.objective.units import token
from gro.types import Batch


def credited(algorithm: Algorithm, batch: Batch) -> Batch:
    return replace(batch, advantage_BX=algorithm.credit(batch, {})[0])


def dpo_loss(u_B1: Tensor, batch: Batch) -> Tensor:
    """−log σ(.1 h), half of it at each member of a pair; the members must see each other."""
    paired_B = select("paired", batch)
    same_BB = (batch.group_B[:, None] == batch.group_B[None, :]) & paired_B[:, None] & paired_B[None, :]
    other_B1 = torch.where(same_BB, u_B1.T, 0.0).sum(1, keepdim=True) - u_B1
    assert batch.advantage_BX is not None
    return -F.logsigmoid(0.1 * batch.advantage_BX * (u_B1 - other_B1)) / 2


DPO = Algorithm("dpo by loss", Labels(), (FromLoss(dpo_loss, base="ref", share=per_pair, rows="paired"),))


def test_dpo_in_one_row():
    logp_BT, batch = updates.pairs()
    batch = credited(DPO, batch)
    written, declared = DPO, build("dpo")
    torch.testing.assert_close(
        coefficients(logp_BT, batch, written), coefficients(logp_BT, batch, declared), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        loss_value(logp_BT, batch, written), loss_value(logp_BT, batch, declared), rtol=0, atol=1e-12
    )
    assert written.reads == declared.reads == {"ref"}
    assert written.scope == declared.scope == "group"
    assert counts(batch, written) == counts(batch, declared) == (4.0,)


def plackett_luce(u_B1: Tensor, batch: Batch) -> Tensor:
    """−log of the probability of the ranking by reward: Π_k e^u_k / Σ_{j ≥ k} e^u_j, best first; a summand per row."""
    assert batch.reward_B is not None
    kept_B = select("scored", batch)
    below_BB = (batch.group_B[:, None] == batch.group_B[None, :]) & kept_B[None, :]
    below_BB &= batch.reward_B[None, :] <= batch.reward_B[:, None]
    rest_BB = torch.where(below_BB, u_B1.T, -1e9)
    return rest_BB.logsumexp(1, keepdim=True) - u_B1


RANKING = Algorithm("plackett-luce", GroupMean(), (FromLoss(plackett_luce, base="ref"),))


def ranked() -> tuple[Tensor, Batch]:
    """No ties, which this ranking loss does not define."""
    logp_BT, batch = updates.groups()
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=batch.reward_B + 1e-3 * torch.arange(len(batch.reward_B)))


def test_a_ranking_loss():
    logp_BT, batch = ranked()
    batch = credited(RANKING, batch)
    leaf_BT = logp_BT.clone().requires_grad_()
    update = updates.as_a_paper_sees_it(leaf_BT, batch)
    losses = []
    for group in update.groups:
        best_first = sorted(group, key=lambda y: -y.reward)
        scores = [y.logp.sum() - y.ref.sum() for y in best_first]
        losses += [torch.stack(scores[k:]).logsumexp(0) - scores[k] for k in range(len(scores))]
    loss = torch.stack(losses).sum() / len(update.samples)
    (gradient_BT,) = torch.autograd.grad(loss, leaf_BT)
    assert bool(gradient_BT.any())
    torch.testing.assert_close(-coefficients(logp_BT, batch, RANKING), gradient_BT, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss_value(logp_BT, batch, RANKING), loss.detach(), rtol=0, atol=1e-12)


@pytest.mark.fault("N2")
@pytest.mark.parametrize(("algorithm", "make"), [(DPO, updates.pairs), (RANKING, ranked)], ids=["dpo", "ranking"])
def test_micro_batches_of_groups_sum_to_the_update(algorithm: Algorithm, make):
    logp_BT, batch = make()
    batch = credited(algorithm, batch)
    whole_BT, total = coefficients(logp_BT, batch, algorithm), counts(batch, algorithm)
    for group in batch.group_B.unique():
        index_R = torch.nonzero(batch.group_B == group)[:, 0]
        micro = replace(batch.rows(index_R), counts_K=total)
        found_RT = coefficients(logp_BT[index_R], micro, algorithm)
        torch.testing.assert_close(found_RT, whole_BT[index_R], rtol=0, atol=1e-12)


def test_a_loss_of_tokens_mixes_with_terms():
    focal = FromLoss(lambda u_BT, batch: -((1 - u_BT.exp()) ** 2) * u_BT, unit=token, share=sequence_mean, scale=0.3)
    algorithm = Algorithm("mixed", GroupMean(), (Term(share=per_sequence), focal))
    logp_BT, batch = updates.groups()
    batch = credited(algorithm, batch)
    assert batch.advantage_BX is not None
    leaf_BT = logp_BT.clone().requires_grad_()
    kept_B = select("scored", batch)
    rows = int(kept_B.sum())
    loss = torch.zeros((), dtype=torch.float64)
    for i in torch.nonzero(kept_B)[:, 0].tolist():
        trained = leaf_BT[i][batch.mask_BT[i]]
        loss = loss - batch.advantage_BX[i, 0] * trained.sum() / rows
        loss = loss + 0.3 * (-((1 - trained.exp()) ** 2) * trained).mean() / rows
    (gradient_BT,) = torch.autograd.grad(loss, leaf_BT)
    torch.testing.assert_close(-coefficients(logp_BT, batch, algorithm), gradient_BT, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss_value(logp_BT, batch, algorithm), loss.detach(), rtol=0, atol=1e-12)


def test_it_works_without_gradients_around_it():
    logp_BT, batch = updates.pairs()
    with torch.no_grad():
        c_BT = coefficients(logp_BT, credited(DPO, batch), DPO)
    assert bool(c_BT.any())


# --- by hand, in research code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str
)
def test_the_objective_alone(dtype: torch.dtype, tolerance: float):
    # Two completions of two tokens; the second's last is padding.
    logp_BT = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=dtype, requires_grad=True)
    batch = Batch(
        mask_BT=torch.tensor([[True, True], [True, False]]),
        group_B=torch.tensor([0, 0]),
        reward_B=torch.tensor([1.0, 0.0]),
        old_BT=torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=dtype),
    )
    grpo = build("grpo", beta=0.0, eps=0.0)
    advantage_BX, state = grpo.credit(batch, {})
    assert advantage_BX.tolist() == [[1.0], [-1.0]]
    assert state == {}
    batch = replace(batch, advantage_BX=advantage_BX)
    loss = surrogate(logp_BT, batch, grpo)
    loss.backward()
    assert logp_BT.grad is not None
    assert logp_BT.grad.dtype == dtype
    expected = torch.tensor([[-0.25, -0.25], [0.5, 0.0]], dtype=torch.float64)  # −A/(B|y|)
    torch.testing.assert_close(logp_BT.grad.double(), expected, rtol=0, atol=tolerance)
    # min(rA, clip(r)A) averaged over tokens, then completions: −(1 − 1)/2
    assert float(loss_value(logp_BT, batch, grpo)) == pytest.approx(0.0, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_preferences_alone(dtype: torch.dtype):
    logp_BT = torch.tensor([[-1.0], [-2.0]], dtype=dtype)
    batch = Batch(
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([0, 0]),
        ref_BT=torch.tensor([[-2.0], [-1.0]], dtype=dtype),
        advantage_BX=torch.tensor([[1.0], [-1.0]]),  # given directly, without a credit
    )
    dpo = build("dpo", beta=0.5)
    w = 0.5 * torch.sigmoid(torch.tensor(-0.5 * 2.0)).item()  # h = 1 + 1
    c_BT = coefficients(logp_BT, batch, dpo)
    assert c_BT.dtype == dtype
    assert c_BT.flatten().tolist() == pytest.approx([w, -w], rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    value = -F.logsigmoid(torch.tensor(1.0)).item()
    assert float(loss_value(logp_BT, batch, dpo)) == pytest.approx(value, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_what_is_missing_is_named():
    batch = Batch(torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 0]), reward_B=torch.tensor([1.0, 0.0]))
    logp_BT = -torch.ones(2, 3)
    with pytest.raises(ValueError, match="reads the log-probs of 'old'; the batch has no old_BT"):
        surrogate(logp_BT, batch, build("grpo"))
    with pytest.raises(ValueError, match=r"logp_BT is \[2, 2\], the batch's mask \[2, 3\]"):
        surrogate(logp_BT[:, :2], batch, build("rloo", kl=0.0))
    with pytest.raises(ValueError, match="needs FixedLength"):
        coefficients(logp_BT, batch, build("gro"))


def test_counts_belong_to_terms():
    logp_BT, batch = updates.groups()
    grpo = build("grpo")
    with pytest.raises(ValueError, match="shorter"):
        coefficients(logp_BT, credited(grpo, replace(batch, counts_K=(3.0,))), grpo)


def test_demonstrations_alone():
    batch = Batch(torch.tensor([[True, True], [True, False]]), torch.tensor([0, 1]), role_B=torch.tensor([1, 1]))
    sft = build("sft")
    assert NoBaseline()(batch, {})[0].tolist() == [[0.0], [0.0]]
    c_BT = coefficients(-torch.ones(2, 2), credited(sft, batch), sft)
    assert c_BT.tolist() == [[pytest.approx(1 / 3), pytest.approx(1 / 3)], [pytest.approx(1 / 3), 0.0]]
    assert float(loss_value(-torch.ones(2, 2), batch, sft)) == pytest.approx(1.0)
