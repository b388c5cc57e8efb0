"""The entropy bonus, exact and sampled, against the distributions themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms import updates
from gro.algorithms import build
from gro.objective import (
    Algorithm,
    Anchor,
    EntropyBonus,
    Term,
    coefficients,
    entropy_coefficients,
    loss_value,
    surrogate,
)
from gro.objective.credit import NoBaseline
from gro.objective.shares import per_sequence, sequence_mean, token_mean
from gro.objective.values import one
from gro.objective.weights import SampledEntropy
from gro.types import Batch

VOCABULARY = 5


def logits(batch: Batch, seed: int = 0) -> Tensor:
    """[B, T, V]"""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*batch.mask_BT.shape, VOCABULARY, generator=random, dtype=torch.float64)


def entropy(logits_BTV: Tensor) -> Tensor:
    return -(logits_BTV.softmax(-1) * logits_BTV.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("share", [token_mean, sequence_mean, per_sequence], ids=lambda s: s.symbol)
def test_the_exact_bonus_is_autograds(share):
    """c Σ share H through the logits, on samples that have a reward, trained tokens only."""
    _, batch = updates.groups()
    leaf_BTV = logits(batch).requires_grad_()
    algorithm = Algorithm("test", NoBaseline(), (EntropyBonus(0.3, share),))
    e_BT = entropy_coefficients(batch, algorithm)
    assert e_BT is not None
    (found_BTV,) = torch.autograd.grad(-(e_BT * entropy(leaf_BTV)).sum(), leaf_BTV)

    assert batch.reward_B is not None
    rows = [
        i
        for i in range(len(batch.group_B))
        if bool(batch.samples_B[i] & ~batch.reward_B[i].isnan()) and bool(batch.mask_BT[i].any())
    ]
    tokens = [entropy(leaf_BTV[i][batch.mask_BT[i]]) for i in rows]
    mean = {
        token_mean: torch.cat(tokens).mean(),
        sequence_mean: torch.stack([t.mean() for t in tokens]).mean(),
        per_sequence: torch.stack([t.sum() for t in tokens]).mean(),
    }[share]
    (expected_BTV,) = torch.autograd.grad(-0.3 * mean, leaf_BTV)
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=0, atol=1e-12)
    valued = replace(batch, entropy_BT=entropy(leaf_BTV).detach())
    assert float(loss_value(torch.zeros_like(e_BT), valued, algorithm)) == pytest.approx(-0.3 * mean.item())


def test_the_exact_bonus_leaves_the_log_probs_alone():
    logp_BT, batch = updates.groups()
    with_bonus, without = build("ppo", entropy=0.5), build("ppo")
    batch = replace(batch, advantage_BX=without.credit(batch, {})[0])
    same = coefficients(logp_BT, batch, with_bonus), coefficients(logp_BT, batch, without)
    torch.testing.assert_close(*same, rtol=0, atol=0)
    assert entropy_coefficients(batch, without) is None
    assert float(surrogate(logp_BT, batch, replace(with_bonus, terms=with_bonus.terms[1:]))) == 0


def test_the_exact_bonus_counts_over_the_whole_update():
    _, batch = updates.groups()
    algorithm = build("ppo", entropy=0.5)
    whole_BT = entropy_coefficients(batch, algorithm)
    assert whole_BT is not None
    micro = replace(batch, counts_K=(7.0, 1000.0))
    scaled_BT = entropy_coefficients(micro, algorithm)
    assert scaled_BT is not None
    torch.testing.assert_close(1000 * scaled_BT, whole_BT * (0.5 / whole_BT.max()))


def test_the_value_of_an_exact_bonus_needs_entropies():
    logp_BT, batch = updates.groups()
    algorithm = Algorithm("test", NoBaseline(), (EntropyBonus(0.3),))
    with pytest.raises(ValueError, match="needs the entropies; the batch has no entropy_BT"):
        loss_value(logp_BT, replace(batch, entropy_BT=None), algorithm)


@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_the_sampled_bonus_is_the_exact_one_in_expectation(moved: float):
    """Every token once, in proportion to π_old: the mean of c·r·(ℓ − 1) has the gradient of −c H, also off-policy."""
    random = torch.Generator().manual_seed(0)
    leaf_V = torch.randn(VOCABULARY, generator=random, dtype=torch.float64).requires_grad_()
    old_V = (leaf_V + moved * torch.randn(VOCABULARY, generator=random, dtype=torch.float64)).detach().log_softmax(0)
    logp_V = leaf_V.log_softmax(0)
    batch = Batch(
        torch.ones(VOCABULARY, 1, dtype=torch.bool),
        torch.arange(VOCABULARY),
        torch.zeros(VOCABULARY),
        old_BT=old_V[:, None],
        importance_BT=VOCABULARY * old_V.exp()[:, None],  # instead of sampling in proportion
    )
    term = Term(second=Anchor("old"), weight=SampledEntropy(0.3), value=one)
    sampled = Algorithm("test", NoBaseline(), (term,))
    (found_V,) = torch.autograd.grad(surrogate(logp_V[:, None], batch, sampled), leaf_V, retain_graph=True)
    (expected_V,) = torch.autograd.grad(-0.3 * entropy(leaf_V), leaf_V)
    torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-12)
    # Its value is −c H − c: r has the mean 1.
    value = float(loss_value(logp_V[:, None].detach(), batch, sampled))
    assert value == pytest.approx(-0.3 * entropy(leaf_V).item() - 0.3)


def test_a_declaration_takes_either():
    exact, sampled = build("ppo", entropy=0.1), build("ppo", entropy=0.1, entropy_estimate="sampled")
    assert exact.terms[1] == EntropyBonus(0.1)
    assert sampled.terms[1] == Term(second=Anchor("old"), weight=SampledEntropy(0.1), value=one)
    assert len(build("ppo").terms) == 1
