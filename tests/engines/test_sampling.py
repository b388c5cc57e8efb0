"""Keyed draws: exact probabilities, exact log-probs, and noise that depends on its key only."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gro.engines.base import Sampling
from gro.engines.sampling import draw, sample_keys, uniforms


def _keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, 0, [0], count).view(-1)


def _exact(logits: list[float], sampling: Sampling) -> list[float]:
    """The processed distribution, written from its definition."""
    weight = [math.exp(x / sampling.temperature) for x in logits]
    if sampling.top_k:
        kth = sorted(weight, reverse=True)[min(sampling.top_k, len(weight)) - 1]
        weight = [w if w >= kth else 0.0 for w in weight]
    if sampling.top_p < 1:
        mass, edge = 0.0, math.inf
        for w in sorted(weight, reverse=True):
            if mass >= sampling.top_p * sum(weight):
                break
            mass, edge = mass + w, w
        weight = [w if w >= edge else 0.0 for w in weight]
    return [w / sum(weight) for w in weight]


def _chi_square(token_R: Tensor, prob: list[float]) -> float:
    """(χ² − degrees of freedom) / √(2 · degrees of freedom): about standard normal if the draws follow prob."""
    count = torch.bincount(token_R, minlength=len(prob)).tolist()
    cells = [(c, p * len(token_R)) for c, p in zip(count, prob, strict=True)]
    assert all(c == 0 for c, expected in cells if expected == 0)
    kept = [(c, expected) for c, expected in cells if expected > 0]
    free = len(kept) - 1
    return (sum((c - e) ** 2 / e for c, e in kept) - free) / math.sqrt(2 * free)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("stop_ids", (-1,)),
        ("stop_ids", ("</s>",)),
    ],
)
def test_impossible_sampling_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})  # pyright: ignore[reportArgumentType]


def _splitmix64(state: int, count: int) -> list[int]:
    """https://prng.di.unimi.it/splitmix64.c in Python's integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


@pytest.mark.parametrize("key", [0, 1234567, -1, -(2**63), 2**63 - 1])
def test_uniforms_are_the_splitmix64_stream(key: int) -> None:
    expected = [((z >> 12) + 0.5) / 2**52 for z in _splitmix64(key % 2**64, 50)]
    assert uniforms(torch.tensor([key]), 50)[0].tolist() == expected


def test_uniforms_fill_the_unit_interval() -> None:
    u = uniforms(_keys(2000), 100).flatten()
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    bins = (u * 50).long()
    assert abs(_chi_square(bins, [1 / 50] * 50)) < 4


def test_a_key_depends_on_every_field_and_on_nothing_else() -> None:
    base = sample_keys(1, 2, [3, 4], 5)
    assert torch.equal(base[:, :2], sample_keys(1, 2, [3, 4], 2))  # sample i of 5 is sample i of 2
    assert torch.equal(base[[1]], sample_keys(1, 2, [4], 5))  # whichever prompts are beside it
    others = [
        sample_keys(2, 1, [3, 4], 5),
        sample_keys(1, 3, [3, 4], 5),
        sample_keys(1, 2, [30, 40], 5),
        sample_keys(-1, 2, [3, 4], 5),
        sample_keys(2**70, 2, [3, -4], 5),
    ]
    everything = torch.cat([base.flatten(), *(k.flatten() for k in others)])
    # 3 samples of others[4] with key 3 … all 60 differ.
    assert len(everything.unique()) == len(everything)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=1.7),
        Sampling(top_k=4),
        Sampling(top_p=0.7),
        Sampling(temperature=1.3, top_k=9, top_p=0.8),
    ],
)
@pytest.mark.parametrize("vocab", [2, 5, 11, 37])
def test_frequencies_and_log_probs_are_those_of_the_processed_distribution(sampling: Sampling, vocab: int) -> None:
    rows = 40_000
    logits = (1.5 * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))).tolist()
    logits_RV = torch.tensor(logits).expand(rows, vocab)
    token_R, logp_R = draw(logits_RV, _keys(rows), torch.zeros(rows, dtype=torch.int64), sampling)
    prob = _exact(torch.tensor(logits).double().tolist(), sampling)
    if sum(p > 0 for p in prob) > 1:
        assert abs(_chi_square(token_R, prob)) < 4
    expected = torch.tensor(prob, dtype=torch.float64).log()[token_R]
    torch.testing.assert_close(logp_R.double(), expected, atol=2e-6, rtol=0)


def test_draws_at_two_positions_of_a_sample_are_independent() -> None:
    rows, prob = 60_000, [0.5, 0.3, 0.2]
    logits_RV = torch.tensor(prob).log().expand(rows, 3)
    first, second = (draw(logits_RV, _keys(rows), torch.full((rows,), position), Sampling())[0] for position in (0, 1))
    assert abs(_chi_square(first * 3 + second, [p * q for p in prob for q in prob])) < 4
    # and neighbouring samples
    assert abs(_chi_square(first[:-1] * 3 + first[1:], [p * q for p in prob for q in prob])) < 4


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=20),
    top_k=st.integers(0, 21),
    top_p=st.floats(0.05, 1),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_top_k_and_top_p_keep_ties_and_renormalise(
    logits: list[float], top_k: int, top_p: float, temperature: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits_RV = torch.tensor(logits, dtype=torch.float64).expand(64, -1)
    token_R, logp_R = draw(logits_RV, _keys(64, seed), torch.arange(64), sampling)
    prob = _exact(logits, sampling)
    near_edge = any(  # where the mass reaches top_p to the last bit, either side is right
        abs(sum(sorted(_exact(logits, Sampling(temperature=temperature, top_k=top_k)), reverse=True)[:m]) - top_p)
        < 1e-12
        for m in range(len(logits))
    )
    if not near_edge:
        for token, logp in zip(token_R.tolist(), logp_R.tolist(), strict=True):
            assert prob[token] > 0
            assert logp == pytest.approx(math.log(prob[token]), abs=1e-12)


def test_a_nucleus_of_hundreds_of_tokens() -> None:
    logits = (0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).tolist()
    sampling = Sampling(top_p=0.9)
    token_R, logp_R = draw(
        torch.tensor(logits, dtype=torch.float64).expand(3000, -1), _keys(3000), torch.zeros(3000).long(), sampling
    )
    prob = torch.tensor(_exact(logits, sampling), dtype=torch.float64)
    assert (prob > 0).sum() > 850
    torch.testing.assert_close(logp_R, prob.log()[token_R], atol=1e-12, rtol=0)


def test_errors_of_the_logits_rarely_change_a_draw() -> None:
    # By inverting the distribution function 70 of these 4,000 draws change, in an exponential race about none.
    generator = torch.Generator().manual_seed(0)
    logits_RV = 2 * torch.randn(4000, 16384, generator=generator)
    other_RV = logits_RV + 1e-4 * torch.randn(4000, 16384, generator=generator)
    position_R = torch.zeros(4000, dtype=torch.int64)
    token_R, _ = draw(logits_RV, _keys(4000), position_R, Sampling())
    again_R, _ = draw(other_RV, _keys(4000), position_R, Sampling())
    assert (token_R != again_R).sum() <= 4


def test_greedy_takes_the_best_token_and_reports_the_plain_log_prob() -> None:
    logits_RV = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(greedy=True, temperature=0.3, top_k=2, top_p=0.5)
    token_R, logp_R = draw(logits_RV, _keys(50), torch.zeros(50, dtype=torch.int64), sampling)
    best = [max(range(30), key=row.__getitem__) for row in logits_RV.tolist()]
    assert token_R.tolist() == best
    expected = [row[b] - math.log(sum(map(math.exp, row))) for row, b in zip(logits_RV.tolist(), best, strict=True)]
    assert logp_R.tolist() == pytest.approx(expected, abs=1e-5)
    assert sampling.scored_at == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_show_in_the_log_prob(bad: float) -> None:
    logits_RV = torch.zeros(2, 10)
    logits_RV[1, 3] = bad
    _, logp_R = draw(logits_RV, _keys(2), torch.zeros(2, dtype=torch.int64), Sampling())
    assert logp_R.isnan().tolist() == [False, True]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits_RV = torch.zeros(5000, 6)
    logits_RV[:, [0, 5]] = -math.inf
    token_R, logp_R = draw(logits_RV, _keys(5000), torch.zeros(5000, dtype=torch.int64), Sampling())
    assert set(token_R.tolist()) == {1, 2, 3, 4}
    torch.testing.assert_close(logp_R, torch.full((5000,), -math.log(4)))
