"""What the gradient of each KL term really is, by exact enumeration of a tabular policy's completions.

A policy is a table of logits: one row of 3 symbols per prefix of a completion of 3 tokens.  All 27 completions are
enumerated, so expectations are sums without sampling error, and true divergences come from the tables themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build
from gro.objective import Algorithm, Anchor, Term, coefficients
from gro.objective.credit import Credit, Greedy, MovingAverage, NoBaseline
from gro.objective.shares import per_sequence
from gro.objective.units import Unit, token, total
from gro.objective.values import Exp, Expm1, one
from gro.objective.weights import K1, K2, K3, Corrected, Ratio, RatioK3, SampledEntropy, Stay, Weight
from gro.types import Batch

V, T = 3, 3
COMPLETIONS = torch.tensor(list(itertools.product(range(V), repeat=T)))
PREFIXES = [prefix for length in range(T) for prefix in itertools.product(range(V), repeat=length)]
STATE_BT = torch.tensor([[PREFIXES.index(tuple(y[:t])) for t in range(T)] for y in COMPLETIONS.tolist()])
"""The row of the table from which each token of each completion is drawn."""
MASK_BT = torch.ones(len(COMPLETIONS), T, dtype=torch.bool)
OLD, REF = Anchor("old"), Anchor("ref")


def table(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(len(PREFIXES), V, generator=random, dtype=torch.float64)


THETA, BEHAVIOUR, REFERENCE = table(1), table(2), table(3)


def logp(logits_SV: Tensor) -> Tensor:
    """[B, T] of every completion's tokens."""
    return logits_SV.log_softmax(1)[STATE_BT, COMPLETIONS]


def probability(logits_SV: Tensor) -> Tensor:
    """[B] of every completion."""
    return logp(logits_SV).sum(1).exp().detach()


def visits(logits_SV: Tensor) -> Tensor:
    """[S] how probable it is to come through a prefix."""
    seen_S = torch.zeros(len(PREFIXES), dtype=torch.float64)
    return seen_S.index_put((STATE_BT,), probability(logits_SV)[:, None].expand(-1, T), accumulate=True)


def expected_gradient(
    term: Term, sampled_from: Tensor, credit: Credit | None = None, reward_B: Tensor | None = None
) -> Tensor:
    """[S, V] the expectation over completions of `sampled_from` of the term's loss gradient in θ's logits."""
    algorithm = Algorithm("test", credit or NoBaseline(), (term,))
    theta_SV = THETA.clone().requires_grad_()
    logp_BT = logp(theta_SV)
    batch = Batch(
        MASK_BT,
        torch.arange(len(COMPLETIONS)),
        reward_B=torch.zeros(len(COMPLETIONS), dtype=torch.float64) if reward_B is None else reward_B,
        greedy_B=torch.zeros(len(COMPLETIONS), dtype=torch.float64),
        old_BT=logp(sampled_from),
        ref_BT=logp(REFERENCE),
        counts_K=(1.0,),  # each completion's own gradient, not the mean
    )
    advantage_BX, _ = algorithm.credit(batch, {"steps": 1, "mean": 0.0})
    c_BT = coefficients(logp_BT, replace(batch, advantage_BX=advantage_BX), algorithm)
    loss = -(probability(sampled_from)[:, None] * c_BT * logp_BT).sum()
    return torch.autograd.grad(loss, theta_SV)[0]


def written_out(loss: Callable[[Tensor, Tensor], Tensor], sampled_from: Tensor) -> Tensor:
    """[S, V] the same of a loss(u_BT, r_BT), u = ℓ − ℓ_ref and r = e^(ℓ − ℓ_old), differentiated as it stands."""
    theta_SV = THETA.clone().requires_grad_()
    logp_BT = logp(theta_SV)
    loss_BT = loss(logp_BT - logp(REFERENCE), (logp_BT - logp(sampled_from)).exp())
    return torch.autograd.grad((probability(sampled_from)[:, None] * loss_BT).sum(), theta_SV)[0]


def gradient(divergence: Callable[[Tensor], Tensor]) -> Tensor:
    theta_SV = THETA.clone().requires_grad_()
    return torch.autograd.grad(divergence(theta_SV), theta_SV)[0]


def kl_of_completions(p_SV: Tensor, q_SV: Tensor) -> Tensor:
    log_p_B, log_q_B = logp(p_SV).sum(1), logp(q_SV).sum(1)
    return (log_p_B.exp() * (log_p_B - log_q_B)).sum()


def kl_of_states(p_SV: Tensor, q_SV: Tensor, seen_S: Tensor) -> Tensor:
    """Σ_s seen(s) KL(p(·|s)‖q(·|s)): the effect of a token on which states come later is not differentiated."""
    log_p_SV, log_q_SV = p_SV.log_softmax(1), q_SV.log_softmax(1)
    return (seen_S * (log_p_SV.exp() * (log_p_SV - log_q_SV)).sum(1)).sum()


REVERSE = gradient(lambda theta: kl_of_completions(theta, REFERENCE))
FORWARD = gradient(lambda theta: kl_of_completions(REFERENCE, theta))


def reverse_of_states(sampled_from: Tensor) -> Tensor:
    return gradient(lambda theta: kl_of_states(theta, REFERENCE, visits(sampled_from)))


def equal(found: Tensor, expected: Tensor) -> None:
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def different(found: Tensor, other: Tensor) -> None:
    assert float((found - other).norm() / other.norm()) > 0.1


def in_loss(weight: Weight, unit: Unit = token, anchor: Anchor = REF, second: Anchor | None = None) -> Term:
    return Term(unit=unit, anchor=anchor, second=second, weight=weight, value=one, share=per_sequence)


def test_enumeration_is_complete():
    assert float(probability(THETA).sum()) == pytest.approx(1)
    assert visits(THETA)[0].item() == pytest.approx(1)
    assert visits(THETA)[1:4].sum().item() == pytest.approx(1)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="k1 as a loss term has zero expected gradient"):
        K1(0.1)
    # …because this is what it would do: w = −β on completions of θ itself.
    k1 = -0.1 * expected_gradient(Term(unit=token, value=one, share=per_sequence), sampled_from=THETA)
    assert float(k1.abs().max()) < 1e-15
    assert float(written_out(lambda u, r: 0.1 * u, sampled_from=THETA).abs().max()) < 1e-15


def test_k2_is_the_reverse_kl_state_by_state():
    found = expected_gradient(in_loss(K2(0.3)), sampled_from=THETA)
    equal(found, 0.3 * reverse_of_states(THETA))
    different(found, 0.3 * REVERSE)  # later states are ignored


def test_k2_of_whole_completions_is_the_reverse_kl():
    equal(expected_gradient(in_loss(K2(0.3), unit=total), sampled_from=THETA), 0.3 * REVERSE)


def test_k3_is_the_forward_kl():
    found = expected_gradient(in_loss(K3(0.3)), sampled_from=THETA)
    equal(found, 0.3 * gradient(lambda theta: kl_of_states(REFERENCE, theta, visits(THETA))))
    different(found, 0.3 * reverse_of_states(THETA))
    equal(expected_gradient(in_loss(K3(0.3), unit=total), sampled_from=THETA), 0.3 * FORWARD)


def test_the_pull_of_k3_has_no_bound():
    u, one_ = torch.tensor([-1.0, -5.0, -10.0, 10.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert K3(1.0)(u, one_, one_, None).tolist() == pytest.approx([1.718282, 147.413159, 22025.465795, -0.999955])
    assert K2(1.0)(u, one_, one_, None).tolist() == [1, 5, 10, -10]


@pytest.mark.parametrize("sampled_from", [THETA, BEHAVIOUR], ids=["on-policy", "off-policy"])
def test_the_ratio_times_k3_is_the_reverse_kl_also_off_policy(sampled_from: Tensor):
    found = expected_gradient(in_loss(RatioK3(0.3), anchor=OLD, second=REF), sampled_from)
    equal(found, 0.3 * reverse_of_states(sampled_from))
    whole = expected_gradient(in_loss(RatioK3(0.3), unit=total, anchor=OLD, second=REF), sampled_from)
    equal(whole, 0.3 * REVERSE)
    equal(written_out(lambda u, r: 0.3 * r * ((-u).exp() - 1 + u), sampled_from), found)  # d(r·k3)/dℓ = r·u
    equal(written_out(lambda u, r: 0.3 * r * u, sampled_from), found)  # r·k1 likewise


def test_on_policy_it_is_k2():
    ratio_k3 = expected_gradient(in_loss(RatioK3(0.3), anchor=OLD, second=REF), sampled_from=THETA)
    equal(ratio_k3, expected_gradient(in_loss(K2(0.3)), sampled_from=THETA))


def test_the_ratio_times_k2_with_a_constant_ratio_is_the_same():
    term = in_loss(Corrected(K2(0.3)), anchor=REF, second=OLD)
    equal(expected_gradient(term, sampled_from=BEHAVIOUR), 0.3 * reverse_of_states(BEHAVIOUR))


@pytest.mark.parametrize("sampled_from", [THETA, BEHAVIOUR], ids=["on-policy", "off-policy"])
def test_the_ratio_times_k2_is_biased_where_the_ratio_is_differentiated(sampled_from: Tensor):
    expected = 0.3 * reverse_of_states(sampled_from)
    equal(written_out(lambda u, r: 0.3 * r.detach() * u.square() / 2, sampled_from), expected)
    different(written_out(lambda u, r: 0.3 * r * u.square() / 2, sampled_from), expected)


def test_k2_off_policy_is_not():
    different(expected_gradient(in_loss(K2(0.3)), sampled_from=BEHAVIOUR), 0.3 * reverse_of_states(BEHAVIOUR))


def test_stay_is_the_kl_from_old():
    # The states are old's, whatever θ does, so nothing is ignored: token by token it is the divergence of completions.
    expected = 0.3 * gradient(lambda theta: kl_of_completions(BEHAVIOUR, theta))
    equal(expected_gradient(in_loss(Stay(0.3), anchor=OLD), sampled_from=BEHAVIOUR), expected)
    equal(expected_gradient(in_loss(Stay(0.3), unit=total, anchor=OLD), sampled_from=BEHAVIOUR), expected)


def test_stay_is_nothing_at_old_where_the_naive_form_is_noise():
    batch = Batch(MASK_BT, torch.arange(len(COMPLETIONS)), old_BT=logp(THETA))
    stay = Algorithm("test", NoBaseline(), (in_loss(Stay(0.3), anchor=OLD),))
    naive = Algorithm("test", NoBaseline(), (Term(unit=token, value=one, scale=0.3, share=per_sequence),))
    assert not bool(coefficients(logp(THETA), batch, stay).any())
    assert bool(coefficients(logp(THETA), batch, naive).all()), "−u = ℓ_old − ℓ, whose weight is +β everywhere"
    different(coefficients(logp(BEHAVIOUR), batch, stay), coefficients(logp(BEHAVIOUR), batch, naive))


@pytest.mark.parametrize(
    ("kl", "sampled_from", "expected"),
    [
        ("k3", THETA, lambda: gradient(lambda theta: kl_of_states(REFERENCE, theta, visits(THETA)))),
        ("k2", THETA, lambda: reverse_of_states(THETA)),
        ("rk3", THETA, lambda: reverse_of_states(THETA)),
        ("rk3", BEHAVIOUR, lambda: reverse_of_states(BEHAVIOUR)),
    ],
)
def test_what_grpo_adds_to_its_loss(kl: str, sampled_from: Tensor, expected: Callable[[], Tensor]):
    _, term = build("grpo", kl=kl, beta=0.3).terms
    assert isinstance(term, Term)
    equal(expected_gradient(term, sampled_from), 0.3 / T * expected())  # the mean over a completion's T tokens


@pytest.mark.parametrize("credit", [Greedy(kl=0.3), MovingAverage(kl=0.3)], ids=repr)
def test_k1_in_the_reward_to_go_is_the_reverse_kl(credit: Credit):
    equal(expected_gradient(Term(share=per_sequence), THETA, credit), 0.3 * REVERSE)


def test_k1_in_the_reward_of_whole_completions_is_the_reverse_kl():
    equal(expected_gradient(Term(unit=total, share=per_sequence), THETA, NoBaseline(kl=0.3)), 0.3 * REVERSE)


def test_immediate_k1_in_the_reward_is_k2():
    found = expected_gradient(Term(share=per_sequence), THETA, Greedy(kl=0.3, immediate=True))
    equal(found, 0.3 * reverse_of_states(THETA))


def test_k2_and_k3_in_the_reward_are_biased():
    u_B = (logp(THETA) - logp(REFERENCE)).sum(1)
    whole = Term(unit=total, share=per_sequence)
    k3 = expected_gradient(whole, THETA, reward_B=-0.3 * ((-u_B).exp() - 1 + u_B))
    equal(k3, 0.3 * (REVERSE - FORWARD))
    different(k3, 0.3 * REVERSE)
    different(expected_gradient(whole, THETA, reward_B=-0.3 * u_B.square() / 2), 0.3 * REVERSE)


def test_sampled_entropy_is_exact_on_policy_and_with_the_ratio_off_policy():
    def less_entropy(sampled_from: Tensor) -> Tensor:
        uniform = torch.zeros_like(THETA)
        return gradient(lambda theta: kl_of_states(theta, uniform, visits(sampled_from)))  # −H + log V

    with_ratio = in_loss(SampledEntropy(0.2), anchor=Anchor(), second=OLD)
    without = in_loss(K2(0.2), anchor=Anchor())  # w = −c·u
    for sampled_from in (THETA, BEHAVIOUR):
        equal(expected_gradient(with_ratio, sampled_from), 0.2 * less_entropy(sampled_from))
    equal(expected_gradient(without, THETA), 0.2 * less_entropy(THETA))
    different(expected_gradient(without, BEHAVIOUR), 0.2 * less_entropy(BEHAVIOUR))


def test_policy_gradients_are_the_gradient_of_the_expected_reward():
    reward_B = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def expected_reward(theta_SV: Tensor) -> Tensor:
        return -(logp(theta_SV).sum(1).exp() * reward_B).sum()

    for sampled_from, term in (
        (THETA, Term(share=per_sequence)),
        (BEHAVIOUR, Term(unit=total, anchor=OLD, weight=Ratio(), share=per_sequence)),
    ):
        equal(expected_gradient(term, sampled_from, reward_B=reward_B), gradient(expected_reward))


def test_exponential_values_agree_with_and_without_their_one_on_policy_only():
    """Σ ∇log π is 0 in expectation, but only under the policy itself."""
    reward_B = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exp, less_one = (Term(value=v(0.7), share=per_sequence) for v in (Exp, Expm1))
    equal(expected_gradient(exp, THETA, reward_B=reward_B), expected_gradient(less_one, THETA, reward_B=reward_B))
    different(
        expected_gradient(exp, BEHAVIOUR, reward_B=reward_B), expected_gradient(less_one, BEHAVIOUR, reward_B=reward_B)
    )
