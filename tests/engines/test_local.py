"""The local engine against stock forward passes of the same model, whatever the layout."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.types import Completion, Prompt
from tiny import ARCHITECTURES, tiny_model

VOCAB = 320
STOPS = tuple(range(3, 18))
"""Enough of the vocabulary to end some completions early."""


def _prompts(*lengths: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(7)
    return [
        Prompt(ids=tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist()), key=10 + i)
        for i, length in enumerate(lengths)
    ]


PROMPTS = _prompts(12, 1, 5, 5, 2)


def _foreign_model(arch: str) -> PreTrainedModel:
    """Architectures that do not go through the registered attention."""
    kwargs: dict[str, Any] = {
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    }[arch]
    config = AutoConfig.for_model(
        arch, vocab_size=VOCAB, bos_token_id=0, eos_token_id=2, initializer_range=0.2, **kwargs
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def _stock_logits(model: PreTrainedModel, prompt: Prompt, completion: Completion) -> Tensor:
    """[tokens of the completion, V] by one plain forward pass over the row."""
    row = torch.tensor([prompt.ids + completion.ids], device=model.device)
    return model(input_ids=row, use_cache=False).logits[0, len(prompt.ids) - 1 : -1].double()


def _gap(model: PreTrainedModel, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> float:
    """Largest difference between reported log-probs and the full softmax of stock logits at the temperature."""
    gaps = []
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            logp = (_stock_logits(model, prompt, c) / c.temperature).log_softmax(-1)
            assert c.logp is not None
            gaps.append((logp.gather(1, torch.tensor(c.ids)[:, None])[:, 0] - torch.tensor(c.logp)).abs().max().item())
    return max(gaps)


def _ids(groups: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[c.ids for c in group] for group in groups]


@pytest.mark.fault("N3")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_log_probs_equal_the_trainers_in_every_architecture(arch: str) -> None:
    model = tiny_model(arch)
    sampling = Sampling(temperature=0.7, max_new_tokens=14, stop_ids=STOPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these falls back
        groups = LocalEngine(model, slots=7).generate(PROMPTS, 4, sampling, seed=0, step=0)
    lengths = [len(c.ids) for group in groups for c in group]
    assert min(lengths) < 14 == max(lengths)
    assert _gap(model, PROMPTS, groups) < 1e-5


@pytest.mark.parametrize("arch", ["gptj", "mamba", "bloom", "falcon"])
def test_other_architectures_fall_back_with_one_warning(arch: str) -> None:
    model = _foreign_model(arch)
    engine = LocalEngine(model, slots=7)
    sampling = Sampling(temperature=0.7, max_new_tokens=8, stop_ids=STOPS)
    with pytest.warns(UserWarning, match="over transformers' cache"):
        groups = engine.generate(PROMPTS, 3, sampling, seed=0, step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine.generate(PROMPTS, 3, sampling, seed=0, step=0) == groups
    assert _gap(model, PROMPTS, groups) < 1e-5


@settings(deadline=None, max_examples=12)
@given(
    slots=st.integers(1, 20),
    n=st.integers(1, 6),
    order=st.permutations(range(len(PROMPTS))),
    kept=st.integers(1, len(PROMPTS)),
    arch=st.sampled_from(["qwen3", "gemma2", "mistral"]),
)
@pytest.mark.fault("N2")
def test_a_sample_does_not_depend_on_its_layout(slots: int, n: int, order: list[int], kept: int, arch: str) -> None:
    # float64: two layouts may round differently in the last bits, which there never decides.
    model = tiny_model(arch, dtype=torch.float64)
    sampling = Sampling(max_new_tokens=9, stop_ids=STOPS, top_p=0.95)
    want = LocalEngine(model).generate(PROMPTS, 6, sampling, seed=3, step=5)
    prompts = [PROMPTS[p] for p in order[:kept]]
    groups = LocalEngine(model, slots=slots).generate(prompts, n, sampling, seed=3, step=5)
    for p, group in zip(order, groups, strict=False):
        for got, wanted in zip(group, want[p][:n], strict=True):
            assert got.ids == wanted.ids
            assert got.finish == wanted.finish
            assert got.logp == pytest.approx(wanted.logp, abs=1e-6)


def test_seed_step_and_key_each_change_the_samples() -> None:
    engine = LocalEngine(tiny_model())
    sampling = Sampling(max_new_tokens=12)
    base = _ids(engine.generate(PROMPTS, 2, sampling, seed=0, step=0))
    assert _ids(engine.generate(PROMPTS, 2, sampling, seed=0, step=0)) == base
    assert _ids(engine.generate(PROMPTS, 2, sampling, seed=1, step=0)) != base
    assert _ids(engine.generate(PROMPTS, 2, sampling, seed=0, step=1)) != base
    other = [Prompt(ids=p.ids, key=p.key + 100) for p in PROMPTS]
    assert _ids(engine.generate(other, 2, sampling, seed=0, step=0)) != base
    assert base[0][0] != base[0][1]


def test_both_decoding_loops_draw_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype=torch.float64)
    sampling = Sampling(max_new_tokens=10, stop_ids=STOPS, top_k=50)
    want = LocalEngine(model, slots=5).generate(PROMPTS, 3, sampling, seed=1, step=1)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.warns(UserWarning, match="not interchangeable"):
        rows = LocalEngine(model, slots=5).generate(PROMPTS, 3, sampling, seed=1, step=1)
    assert _ids(rows) == _ids(want)


@pytest.mark.parametrize("sampling", [Sampling(top_k=5), Sampling(temperature=1.5, top_p=0.8)])
def test_log_probs_are_those_of_the_restricted_distribution(sampling: Sampling) -> None:
    model = tiny_model()
    groups = LocalEngine(model).generate(PROMPTS, 2, sampling, seed=0, step=0)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for c in group:
            assert c.logp is not None
            prob = (_stock_logits(model, prompt, c) / sampling.temperature).softmax(-1)
            ranked = prob.sort(-1, descending=True).values
            if sampling.top_k:
                edge = ranked[:, sampling.top_k - 1]
            else:
                inside = (ranked.cumsum(-1) - ranked < sampling.top_p).sum(-1)
                edge = ranked.gather(1, inside[:, None] - 1)[:, 0]
            kept = prob.masked_fill(prob < edge[:, None] * (1 - 1e-6), 0)
            logp = (kept / kept.sum(-1, keepdim=True)).log().gather(1, torch.tensor(c.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(c.logp).double(), logp, atol=2e-5, rtol=0)


def test_samples_follow_the_models_distribution() -> None:
    # Pairs of tokens after one prompt: 20 × 20 cells, probabilities by stock forward passes.
    model = tiny_model(vocab_size=20, hidden=16, layers=1)
    prompt, n = Prompt(ids=(4, 7), key=0), 8000
    (group,) = LocalEngine(model).generate([prompt], n, Sampling(max_new_tokens=2), seed=0, step=0)
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[4, 7]])).logits[0, -1].double().softmax(-1)
        rows = torch.tensor([[4, 7, t] for t in range(20)])
        second = model(input_ids=rows).logits[:, -1].double().softmax(-1)
    expected = (first[:, None] * second * n).flatten()
    count = torch.bincount(torch.tensor([c.ids[0] * 20 + c.ids[1] for c in group]), minlength=400).double()
    rare = expected < 5  # pooled: the statistic's distribution needs some counts in each cell
    count = torch.cat([count[~rare], count[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    free = len(count) - 1
    assert free > 50
    chi_square = ((count - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - free) < 4 * math.sqrt(2 * free)


def test_greedy_is_the_argmax_and_reports_plain_log_probs() -> None:
    model = tiny_model()
    sampling = Sampling(greedy=True, temperature=0.2, top_k=1, max_new_tokens=10)
    groups = LocalEngine(model).generate(PROMPTS, 2, sampling, seed=0, step=0)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert group[0] == group[1]
        assert group[0].temperature == 1.0
        assert _stock_logits(model, prompt, group[0]).argmax(-1).tolist() == list(group[0].ids)
    assert _gap(model, PROMPTS, groups) < 1e-5


@pytest.mark.fault("R11")
def test_a_stop_id_ends_a_completion_and_is_its_last_token() -> None:
    model = tiny_model()
    sampling = Sampling(max_new_tokens=30, stop_ids=STOPS)
    groups = LocalEngine(model, slots=3).generate(PROMPTS, 4, sampling, seed=0, step=0)
    free = LocalEngine(model).generate(PROMPTS, 4, Sampling(max_new_tokens=30), seed=0, step=0)
    finishes = set()
    for group, unstopped in zip(groups, free, strict=True):
        for c, long in zip(group, unstopped, strict=True):
            assert len(long.ids) == 30
            assert long.finish == "length"
            ends = [i for i, t in enumerate(long.ids) if t in STOPS]
            assert c.ids == (long.ids[: ends[0] + 1] if ends else long.ids)
            assert c.finish == ("stop" if ends else "length")
            finishes.add((c.finish, c.ids[-1]))
    assert len({t for finish, t in finishes if finish == "stop"}) > 1  # different stop ids
    assert any(finish == "length" for finish, _ in finishes)


def test_every_completion_may_stop_at_its_first_token() -> None:
    sampling = Sampling(max_new_tokens=5, stop_ids=tuple(range(VOCAB)))
    groups = LocalEngine(tiny_model(), slots=2).generate(PROMPTS, 3, sampling, seed=0, step=0)
    assert {(len(c.ids), c.finish) for group in groups for c in group} == {(1, "stop")}


def test_one_new_token() -> None:
    model = tiny_model()
    groups = LocalEngine(model, slots=2).generate(PROMPTS, 3, Sampling(max_new_tokens=1), seed=0, step=0)
    assert {(len(c.ids), c.finish) for group in groups for c in group} == {(1, "length")}
    assert _gap(model, PROMPTS, groups) < 1e-5


def test_the_model_computes_nothing_twice_and_no_padding() -> None:
    model = tiny_model()
    engine = LocalEngine(model, slots=6)
    sampling = Sampling(max_new_tokens=12, stop_ids=STOPS)
    engine.generate(PROMPTS, 1, sampling, seed=0, step=0)  # the probe runs at the first call
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: fed.append(args[0].numel()))
    groups = engine.generate(PROMPTS, 4, sampling, seed=0, step=1)
    new = [len(c.ids) for group in groups for c in group]
    # Each prompt once; of each completion everything but its last token.
    assert sum(fed) == sum(len(p.ids) for p in PROMPTS) + sum(new) - len(new)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    sampling = Sampling(max_new_tokens=6)
    want = LocalEngine(model).generate(PROMPTS, 2, sampling, seed=0, step=0)
    model.train()
    frozen = model.get_submodule("transformer.h.0.mlp")
    frozen.eval()
    before = {name: module.training for name, module in model.named_modules()}
    groups = LocalEngine(model).generate(PROMPTS, 2, sampling, seed=0, step=0)
    assert groups == want  # dropout was off
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "eager"
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    loss = model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum()
    loss.backward()  # nothing of it is an inference tensor


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()

    def stop(finished: int, tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(model).generate(PROMPTS, 2, Sampling(), seed=0, step=0, on_progress=stop)
    assert model.training
    assert model.config._attn_implementation == "eager"


def test_new_weights_are_sampled_from_at_once() -> None:
    model = tiny_model()
    engine = LocalEngine(model)
    sampling = Sampling(max_new_tokens=8)
    old = engine.generate(PROMPTS, 2, sampling, seed=0, step=0)
    assert {c.version for group in old for c in group} == {0}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    engine.update(1)
    new = engine.generate(PROMPTS, 2, sampling, seed=0, step=0)
    assert {c.version for group in new for c in group} == {1}
    assert _gap(model, PROMPTS, new) < 1e-5
    assert _gap(model, PROMPTS, old) > 1e-2


def test_a_copy_in_another_dtype_follows_the_weights() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    engine = LocalEngine(model, compute_dtype=torch.bfloat16)
    sampling = Sampling(max_new_tokens=8)
    for _ in range(2):
        groups = engine.generate(PROMPTS, 2, sampling, seed=0, step=0)
        assert 1e-4 < _gap(model, PROMPTS, groups) < 0.5
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    assert model.dtype == torch.float32
    engine.close()


def test_a_small_cache_means_fewer_rows_and_the_same_samples() -> None:
    model = tiny_model(dtype=torch.float64)
    sampling = Sampling(max_new_tokens=9, stop_ids=STOPS)
    want = LocalEngine(model).generate(PROMPTS, 4, sampling, seed=0, step=0)
    per_token = 2 * 2 * 2 * 8 * 8  # layers, keys and values, heads, their size, bytes
    engine = LocalEngine(model, cache_gib=per_token * 60 / 2**30)
    engine.generate(PROMPTS, 1, sampling, seed=0, step=0)
    rows: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: rows.append(args[0].numel()))
    assert _ids(engine.generate(PROMPTS, 4, sampling, seed=0, step=0)) == _ids(want)
    # 12 tokens of the longest prompt twice, and 4 × 9 own tokens, are 60.
    assert max(rows) == max(4, *(len(p.ids) for p in PROMPTS))


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    groups = LocalEngine(tiny_model(), slots=4).generate(
        PROMPTS,
        3,
        Sampling(max_new_tokens=7, stop_ids=STOPS),
        seed=0,
        step=0,
        on_progress=lambda done, tokens: seen.append((done, tokens)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (15, sum(len(c.ids) for group in groups for c in group))
    assert len(seen) > 5


def test_long_prompts_beyond_one_prefill_and_windows() -> None:
    model = tiny_model("gemma3_text", max_position_embeddings=4096)
    prompts = _prompts(3000, 1500, 700, 3)  # more than one prefill holds
    groups = LocalEngine(model).generate(prompts, 2, Sampling(max_new_tokens=4), seed=0, step=0)
    assert _gap(model, prompts, groups) < 1e-5


def test_position_scaling_by_the_longest_row_falls_back() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", max_position_embeddings=24, rope_parameters=rope)
    engine = LocalEngine(model)
    prompts = _prompts(10, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = engine.generate(prompts, 2, Sampling(max_new_tokens=12), seed=0, step=0)
    assert _gap(model, prompts, groups) < 1e-5
    with pytest.warns(UserWarning, match="dynamic position scaling beyond 24 tokens"):
        engine.generate(prompts, 2, Sampling(max_new_tokens=30), seed=0, step=0)


def test_learned_positions_end() -> None:
    engine = LocalEngine(tiny_model("gpt2", n_positions=20))
    prompts = _prompts(10)
    engine.generate(prompts, 1, Sampling(max_new_tokens=11), seed=0, step=0)
    with pytest.raises(ValueError, match="need 21 positions, the model has 20"):
        engine.generate(prompts, 1, Sampling(max_new_tokens=12), seed=0, step=0)


@pytest.mark.fault("N1")
def test_weights_that_are_not_numbers_are_refused() -> None:
    model = tiny_model()
    engine = LocalEngine(model)
    engine.generate(PROMPTS, 1, Sampling(max_new_tokens=3), seed=0, step=0)
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[5, 3] = math.nan
    engine.update(4)
    with pytest.raises(FloatingPointError, match="version 4"):
        engine.generate(PROMPTS, 1, Sampling(max_new_tokens=3), seed=0, step=0)
    with pytest.raises(FloatingPointError, match="not numbers"):
        LocalEngine(model).generate(PROMPTS, 1, Sampling(max_new_tokens=3), seed=0, step=0)


def test_impossible_requests_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="slots"):
        LocalEngine(model, slots=0)
    with pytest.raises(ValueError, match="cache_gib"):
        LocalEngine(model, cache_gib=0)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        LocalEngine(model).generate(PROMPTS, 0, Sampling(), seed=0, step=0)
    assert LocalEngine(model).generate([], 2, Sampling(), seed=0, step=0) == []
