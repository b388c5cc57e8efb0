"""Log-probs and gradients equal those of plain unpadded rows, whatever the layout."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import gro.policy.plans
from gro.policy.policy import Layout, Policy
from gro.types import Group
from policy.oracle import compare, shapes, some_groups, stock_logp, upcasts_to_float64, worst_gaps
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

# Rows longer than the tiny models' windows of 8, a prompt of 1, completions of 1, a lone completion, two of a length.
GROUPS = shapes((9, (7, 1, 12, 7)), (1, (5, 1)), (6, (1,)), (14, (3, 0, 9)), (2, (2, 2, 2)))


@cache
def stock(arch: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny_model(arch, dtype=dtype)


@cache
def policy(arch: str, layout: Layout = "shared", dtype: torch.dtype = torch.float32) -> Policy:
    return Policy(tiny_model(arch, dtype=dtype), tiny_tokenizer(), layout=layout)


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_plain_rows(arch: str, layout: Layout) -> None:
    in_logp, in_gradient = worst_gaps(stock(arch), policy(arch, layout), GROUPS, budget=60)
    assert in_logp < 1e-5
    assert in_gradient < 1e-5


@pytest.mark.parametrize("call_cost", [1, 4_000])  # every rectangle on its own, and everything in one square
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_plain_rows_in_float64(arch: str, call_cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gro.policy.plans, "CALL", call_cost)
    with upcasts_to_float64():
        in_logp, in_gradient = worst_gaps(
            stock(arch, torch.float64), policy(arch, dtype=torch.float64), GROUPS, budget=1000
        )
    assert in_logp < 1e-10
    assert in_gradient < 1e-10


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=some_groups(),
    budget=st.integers(1, 60),
    layout=st.sampled_from(("shared", "rows")),
    arch=st.sampled_from(("qwen3", "mistral", "gemma2", "gpt2")),
    call_cost=st.sampled_from((1, 100, 4_000)),
    data=st.data(),
)
def test_whatever_groups_budget_and_order(
    groups: list[Group], budget: int, layout: Layout, arch: str, call_cost: int, data: st.DataObject
) -> None:
    groups = data.draw(st.permutations(groups))
    with pytest.MonkeyPatch.context() as patch, upcasts_to_float64():
        patch.setattr(gro.policy.plans, "CALL", call_cost)
        in_logp, in_gradient = worst_gaps(
            stock(arch, torch.float64), policy(arch, layout, torch.float64), groups, budget
        )
    assert in_logp < 1e-10
    assert in_gradient < 1e-10


@pytest.mark.parametrize("arch", ["qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_activation_checkpointing_changes_nothing(arch: str) -> None:
    checkpointed = Policy(tiny_model(arch), tiny_tokenizer(), layout="shared")
    checkpointed.checkpoint_activations()
    calls: list[int] = []
    for module in checkpointed.model.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(lambda *_: calls.append(1))
    in_logp, in_gradient = worst_gaps(stock(arch), checkpointed, GROUPS, budget=10**6)
    assert in_logp < 1e-5
    assert in_gradient < 1e-5
    assert len(calls) == 2 * 2  # both layers, forward and again in the backward pass


def test_no_chance_in_scores_even_in_training_mode() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    dropping = Policy(model, tiny_tokenizer())
    dropping.model.train()
    in_logp, _ = worst_gaps(stock("gpt2"), dropping, GROUPS, budget=1000)
    assert in_logp < 1e-5


def test_entropy_is_that_of_the_scored_distribution() -> None:
    (whole,) = policy("qwen3").packs(GROUPS, 10**6)
    entropy_RT = policy("qwen3").logp(whole, entropy=True).entropy_RT
    assert entropy_RT is not None
    group = GROUPS[0]
    row = torch.tensor([[*group.prompt.ids, *group.completions[2].ids]])
    p_TV = stock("qwen3")(input_ids=row).logits[0, 8:-1].softmax(-1)
    torch.testing.assert_close(entropy_RT[2, :12], -(p_TV * p_TV.log()).sum(-1), atol=1e-5, rtol=0)


def test_bfloat16_autocast_is_close_and_leaves_master_weights() -> None:
    half = Policy(tiny_model("qwen3"), tiny_tokenizer(), layout="shared", autocast="bfloat16")
    (whole,) = half.packs(GROUPS, 10**6)
    scored = half.logp(whole)
    scored.logp_RT.sum().backward()
    exact = policy("qwen3").logp(whole).logp_RT
    gap = (scored.logp_RT - exact).abs().max()
    assert 1e-5 < gap < 0.3  # logits of about 10, three significant digits
    weight = half.model.get_input_embeddings().weight
    assert weight.dtype == weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_frozen_weights_get_no_gradient_and_change_nothing() -> None:
    frozen = Policy(tiny_model("llama"), tiny_tokenizer(), layout="shared")
    frozen.model.requires_grad_(False)
    layer = frozen.model.get_decoder().layers[0].mlp.up_proj  # type: ignore[union-attr, index]
    layer.weight.requires_grad_(True)
    (whole,) = frozen.packs(GROUPS, 10**6)
    frozen.logp(whole).logp_RT.sum().backward()
    both = policy("llama")
    both.model.zero_grad()
    both.logp(whole).logp_RT.sum().backward()
    torch.testing.assert_close(layer.weight.grad, both.model.get_decoder().layers[0].mlp.up_proj.weight.grad)  # type: ignore[union-attr, index]
    assert [n for n, p in frozen.model.named_parameters() if p.grad is not None] == [
        "model.layers.0.mlp.up_proj.weight"
    ]


def test_snapshot_stays_where_it_was() -> None:
    moving = Policy(tiny_model("qwen3"), tiny_tokenizer(), layout="shared")
    moving.checkpoint_activations()
    reference = moving.snapshot()
    (whole,) = moving.packs(GROUPS, 10**6)
    before = moving.logp(whole).logp_RT.detach()
    with torch.no_grad():
        for parameter in moving.model.parameters():
            parameter.mul_(1.1)
    after = reference.logp(whole).logp_RT
    assert torch.equal(after, before)
    assert not after.requires_grad
    assert (moving.logp(whole).logp_RT - before).abs().max() > 1e-2


def test_rows_that_change_the_rotary_scaling_are_alone() -> None:
    """Dynamic scaling depends on the longest row of a pass: each row must be scored as if it were the only one."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    dynamic: dict[str, Any] = {"rope_parameters": rope, "max_position_embeddings": 16}
    groups = shapes((9, (4, 3)), (9, (12, 20)), (8, (9,)))
    tested = Policy(tiny_model("llama", **dynamic), tiny_tokenizer(), layout="shared")
    packs = tested.packs(groups, 10**6)
    assert [p.rows for p in packs] == [(0, 1, 4), (2,), (3,)]
    for k in packs:
        fresh = Policy(
            tiny_model("llama", **dynamic), tiny_tokenizer(), layout="shared"
        )  # its cache of scalings is empty
        logp_RT = fresh.logp(k).logp_RT
        for r, row in enumerate(k.rows):
            group, completion = [(g, c) for g in groups for c in g.completions][row]
            # The last token is not run: the scaling is that of the tokens before it, as when it was sampled.
            kept = type(completion)(completion.ids[:-1])
            truth = stock_logp(tiny_model("llama", **dynamic), group, kept)
            torch.testing.assert_close(logp_RT[r, : len(kept.ids)], truth, atol=1e-5, rtol=0)


def test_positions_beyond_a_learned_table_are_refused() -> None:
    small = Policy(tiny_model("gpt2", n_positions=64), tiny_tokenizer(), layout="shared")
    with pytest.raises(ValueError, match="group 1 has a row of 65 tokens; the model has positions for 64"):
        small.packs(shapes((3, (4,)), (60, (5,))), 1000)
    rotary = Policy(tiny_model("llama", max_position_embeddings=16), tiny_tokenizer(), layout="shared")
    assert len(rotary.packs(shapes((20, (4,))), 1000)) == 1


def test_training_passes_keep_no_cache_and_make_no_mask() -> None:
    seen = []
    tested = Policy(tiny_model("llama"), tiny_tokenizer(), layout="shared")
    tested.model.model.layers[0].register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    (whole,) = tested.packs(GROUPS, 10**6)
    tested.logp(whole)
    assert seen[0]["past_key_values"] is None
    assert seen[0]["attention_mask"] is None


def test_packs_of_another_width_align_with_their_batch() -> None:
    wide = policy("qwen3").packs(GROUPS, 10**6, width=40)
    logp_RT = policy("qwen3").logp(wide[0]).logp_RT
    assert logp_RT.shape == (13, 40)
    in_logp, _ = compare(stock("qwen3"), policy("qwen3"), GROUPS, wide)
    assert in_logp < 1e-5
