"""The microscope: factors that multiply to the coefficients, and gradients that are as near as mathematics says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build, names
from gro.conformance import subject
from gro.errors import GroError
from gro.evaluation.material import Material, why_not, with_drift
from gro.evaluation.microscope import Microscope, by_likeness, cosines, gradient, same_direction
from gro.objective import coefficients
from gro.objective.factors import decompose
from gro.policy.policy import Policy
from gro.training.batching import Minibatch
from gro.types import Batch, Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("name", names())
def test_factors_multiply_to_the_coefficients(name: str) -> None:
    under_test = subject(name, {})
    logp_BT, batch = under_test.update(seed=3)
    terms = decompose(logp_BT, batch, under_test.algorithm)
    assert terms
    product_BT = torch.stack([t.share_BT * t.w_BT * t.v_BT * t.slope_BT for t in terms]).sum(0)
    expected_BT = coefficients(logp_BT, batch, under_test.algorithm)
    assert float(expected_BT.abs().max()) > 0
    torch.testing.assert_close(product_BT, expected_BT, rtol=0, atol=1e-12)


def pair_batch() -> tuple[Tensor, Batch]:
    """A pair: three tokens against two; the reference is 0.4 nats per token below on the first, 0.1 on the second."""
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    logp_BT = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -0.3, 0.0]], dtype=torch.float64)
    ref_BT = logp_BT - torch.tensor([[0.4], [0.1]], dtype=torch.float64)
    reward_B = torch.tensor([1.0, -1.0], dtype=torch.float64)
    batch = Batch(mask_BT, torch.tensor([0, 0]), reward_B, ref_BT=ref_BT, advantage_BX=reward_B[:, None])
    return logp_BT, batch


def test_dpo_by_hand() -> None:
    logp_BT, batch = pair_batch()
    (term,) = decompose(logp_BT, batch, build("dpo", beta=0.5))
    gap = 3 * 0.4 - 2 * 0.1
    assert term.u_BT[0].tolist() == pytest.approx([gap] * 3)
    assert term.u_BT[1].tolist() == pytest.approx([-gap, -gap, 0])
    pull = 0.5 / (1 + math.exp(0.5 * gap))
    assert term.c_BT[0].tolist() == pytest.approx([pull] * 3), "the better completion is made likelier"
    assert term.c_BT[1].tolist() == pytest.approx([-pull, -pull, 0])
    assert term.v_BT[:, 0].tolist() == [1, -1]
    assert term.slope_BT.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_averages_have_a_slope() -> None:
    logp_BT, batch = pair_batch()
    (term,) = decompose(logp_BT, batch, build("simpo"))
    assert term.slope_BT[0].tolist() == pytest.approx([1 / 3] * 3)
    assert term.slope_BT[1].tolist() == pytest.approx([0.5, 0.5, 0])


def test_cosines_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gro.evaluation.microscope._AT_ONCE", 4)  # so that several parts are summed
    vectors = [torch.tensor(v) for v in ([3.0, 0, 0, 4, 0], [0, 0, 0, 2.0, 0], [-6.0, 0, 0, -8, 0], [0.0] * 5)]
    norms_A, found_AA = cosines(vectors)
    assert norms_A.tolist() == [5, 2, 10, 0]
    assert found_AA[0, :3].tolist() == pytest.approx([1, 0.8, -1])
    assert bool(found_AA[3].isnan().all()), "a gradient of 0 has no direction"
    assert same_direction(found_AA) == [[0], [1], [2], [3]]


def test_like_beside_like() -> None:
    found_AA = torch.eye(4)
    for i, j, value in ((0, 2, 0.9), (1, 3, 0.8), (0, 1, 0.1)):
        found_AA[i, j] = found_AA[j, i] = value
    assert by_likeness(found_AA) == [0, 2, 1, 3]
    assert same_direction(torch.tensor([[1.0, 0.2, 1.0], [0.2, 1, 0.2], [1, 0.2, 1]])) == [[0, 2], [1]]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(tiny_model(layers=1), tiny_tokenizer())


def group(key: int, *rewards: float | None, length: int | None = None, role: str = "sample") -> Group:
    """Completions with these rewards, of `length` tokens or all of different lengths."""
    completions = tuple(
        Completion(tuple(10 + (7 * key + 3 * i + t) % 200 for t in range(length or 2 + i)), reward=r, role=role)  # type: ignore[arg-type]
        for i, r in enumerate(rewards)
    )
    return Group(Prompt((5, 9 + key), key), completions)


PAIRS = Material((group(0, 1.0, -1.0), group(1, 1.0, -1.0)))
ROLLOUTS = Material((group(0, 1.0, 0.0, 0.5, length=3), group(1, 0.2, 0.9, 0.4, length=3)))


def compared(policy: Policy, material: Material, *labels: str, drift: float = 0.0, **parameters: dict) -> Tensor:
    microscope = Microscope(policy, material, drift=drift)
    vectors = [microscope.look(name, build(name, **parameters.get(name, {})))[1] for name in labels]
    return cosines(vectors)[1]


@pytest.mark.parametrize(
    ("a", "b", "parameters"),
    [
        ("dpo", "gpo", {"gpo": {"loss": "logistic"}}),
        ("dpo", "gro", {"gro": {"base": "ref", "unit": "total"}}),
        ("dpo", "ipo", {}),
        ("rloo", "reinforce", {}),
    ],
)
def test_pairs_that_push_the_same_way_at_the_reference(policy: Policy, a: str, b: str, parameters: dict) -> None:
    assert float(compared(policy, PAIRS, a, b, **parameters)[0, 1]) == pytest.approx(1, abs=1e-5)


def test_rollouts_that_push_the_same_way_at_the_first_step(policy: Policy) -> None:
    found_AA = compared(policy, ROLLOUTS, "rloo", "dr_grpo", "grpo")
    assert float(found_AA[0, 1]) == pytest.approx(1, abs=1e-5)
    assert float(found_AA[0, 2]) < 0.9999, "grpo divides by each group's spread"


def test_the_gradient_is_that_of_the_loss(policy: Policy) -> None:
    """Against autograd on plain log-probs: −Σ c·ℓ with the coefficients that were reported."""
    seen, flat_P = Microscope(policy, PAIRS).look("simpo", build("simpo"))
    plain, loss = tiny_model(layers=1), torch.zeros(())  # the same weights, under the model's own attention
    for place, c_T in zip(PAIRS.places, seen.c, strict=True):
        ids = PAIRS.groups[place[0]].prompt.ids + PAIRS.completion(place).ids
        logits = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(PAIRS.groups[place[0]].prompt.ids) - 1
        logp_T = logits[torch.arange(start, len(ids) - 1), torch.tensor(ids[start + 1 :])]
        loss = loss - (c_T * logp_T).sum()
    expected = torch.autograd.grad(loss, [p for p in plain.parameters() if p.requires_grad])
    torch.testing.assert_close(flat_P, torch.cat([g.flatten() for g in expected]), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in policy.model.parameters())


def test_what_is_left_out_has_zeros(policy: Policy) -> None:
    """Of three samples a preference algorithm learns from the best and the worst."""
    seen, _ = Microscope(policy, ROLLOUTS).look("dpo", build("dpo"))
    signs = [c.sign().unique().tolist() for c in seen.c]
    assert signs == [[1], [-1], [0], [-1], [1], [0]]


def test_drift_makes_ratios(policy: Policy) -> None:
    microscope = Microscope(policy, ROLLOUTS, drift=0.5)
    seen, _ = microscope.look("grpo", build("grpo"))
    assert float(torch.cat(seen.terms[0]["u"]).std()) == pytest.approx(0.5, rel=0.6)
    assert "old policy: the model, 0.5 nats of noise away" in microscope.notes
    still = Microscope(policy, ROLLOUTS)
    assert float(torch.cat(still.look("grpo", build("grpo"))[0].terms[0]["u"]).abs().max()) == 0
    assert "old policy: the model itself, so every ratio is 1" in still.notes


def test_noise_does_not_make_probabilities_above_one() -> None:
    noisy = with_drift(PAIRS, torch.full((4, 3), -0.01), 1.0)
    assert noisy.knows("old")
    assert max(float(t["old"].max()) for t in noisy.tokens.values()) == 0.0


def test_who_cannot_learn_from_it(policy: Policy) -> None:
    demonstrations = Material((group(0, None, role="target"),))
    alone = Material((group(0, 1.0), group(1, -1.0)))
    for name, material, reason in (
        ("sft", PAIRS, "learns from demonstrations, and there are none"),
        ("dpo", demonstrations, "completions with rewards or labels, and there are none"),
        ("rloo", alone, "at least 2 completions of a prompt, and here is 1"),
        ("remax", ROLLOUTS, "the greedy answer"),
        ("bradley_terry", PAIRS, "reward model"),
        ("spin", PAIRS, "a demonstration and samples of the same prompt"),
    ):
        assert reason in str(why_not(build(name), material)), name
    assert why_not(build("sft"), demonstrations) is None
    with pytest.raises(GroError, match="no prompt has two answers of which one is better"):
        Microscope(policy, alone).look("dpo", build("dpo"))


def test_references_of_a_run_do_not_know_other_prompts(policy: Policy) -> None:
    tokens = {place: {"ref": torch.zeros(len(PAIRS.completion(place).ids)).numpy()} for place in PAIRS.places}
    microscope = Microscope(policy, replace(PAIRS, tokens=tokens))
    seen, _ = microscope.look("dpo", build("dpo"))
    assert float(seen.terms[0]["u"][0][0]) != 0
    assert microscope.notes == ("reference: of the run",)
    with pytest.raises(GroError, match="other prompts' completions"):
        microscope.look("kto", build("kto"))


def test_one_gradient_leaves_nothing_for_the_next(policy: Policy) -> None:
    minibatch, _ = PAIRS.shaped(build("simpo"))
    batch = replace(minibatch.batch, advantage_BX=build("simpo").credit(minibatch.batch, {})[0])
    once, again = (gradient(policy, build("simpo"), Minibatch(minibatch.groups, batch), 64)[1] for _ in range(2))
    assert torch.equal(once, again)
