"""Architectures for which sharing is not valid are found out by numbers, and scored right on plain rows."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gro.policy import probe
from gro.policy.head import LogitTransform
from gro.policy.plans import PartsPlan
from gro.policy.policy import Policy
from policy.oracle import shapes, worst_gaps
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "bos_token_id": 0}
ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "gptj": (GPT | {"rotary_dim": 4, "eos_token_id": 2}, "its attention cannot be replaced"),
    "bloom": ({"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "its attention cannot be replaced"),
    "falcon": (COMMON, "its attention cannot be replaced"),
    "gpt_neo": (
        {
            "vocab_size": 320,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        "its attention cannot be replaced",
    ),
    "stablelm": (COMMON, "its forward pass fails on a packed stream"),
    "mamba": ({"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}, "could not be made"),
    "lfm2": (COMMON | {"layer_types": ["conv", "full_attention"]}, "of its 2 layers 1 use replaceable attention"),
    "llama4_text": (
        COMMON | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 64},
        "log-probs differ by",
    ),
    "gpt_oss": (
        COMMON
        | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "log-probs differ by",
    ),
}
GROUPS = shapes((9, (7, 1, 12)), (1, (5, 1)), (14, (3, 0, 9)))


def make(arch: str, config: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **config)).eval()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shared_where_it_is_valid(arch: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert Policy(tiny_model(arch), tiny_tokenizer()).layout == "shared"


@pytest.mark.parametrize("arch", ELSEWHERE)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_rows_where_it_is_not(arch: str) -> None:
    config, reason = ELSEWHERE[arch]
    with pytest.warns(UserWarning, match=f"cannot share prompts between completions: .*{reason}"):
        fallback = Policy(make(arch, config), tiny_tokenizer())
    assert fallback.layout == "rows"
    in_logp, in_gradient = worst_gaps(make(arch, config), fallback, GROUPS, budget=60)
    assert in_logp < 2e-5
    assert in_gradient < 2e-5


def test_what_only_this_models_weights_show_is_found_too() -> None:
    """The tiny model of the class is right; the model itself has a layer that leaks between branches."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, out: out + out.cumsum(1))
    with pytest.warns(UserWarning, match="log-probs differ by"):
        assert Policy(model, tiny_tokenizer()).layout == "rows"


def test_a_window_longer_than_the_probe_is_probed_on_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that did not pass its window on would be right on short rows and wrong on long ones."""
    parts = PartsPlan.parts
    monkeypatch.setattr(PartsPlan, "parts", lambda self, _, dtype: parts(self, None, dtype))
    probe._class_fault.cache_clear()
    with pytest.warns(UserWarning, match="log-probs differ by"):
        assert Policy(tiny_model("mistral", sliding_window=4096), tiny_tokenizer()).layout == "rows"
    probe._class_fault.cache_clear()


@pytest.mark.parametrize(
    ("arch", "extra", "transform"),
    [
        ("granite", {"logits_scaling": 4.0}, LogitTransform(0.25)),
        ("hyperclovax", {"logits_scaling": 4.0}, LogitTransform(4.0)),
        ("cohere", {"logit_scale": 0.3}, LogitTransform(0.3)),
        ("nanochat", {}, LogitTransform(1.0, 15.0)),
    ],
)
def test_what_an_architecture_does_to_its_logits(arch: str, extra: dict[str, Any], transform: LogitTransform) -> None:
    scaled = Policy(make(arch, COMMON | extra), tiny_tokenizer())
    assert probe.find_transform(scaled.model) == transform
    in_logp, in_gradient = worst_gaps(make(arch, COMMON | extra), scaled, GROUPS, budget=60)
    assert in_logp < 1e-5
    assert in_gradient < 1e-5


def test_a_head_that_is_not_understood_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, out: out.sin())
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .* differ by .* from the model's own"):
        Policy(model, tiny_tokenizer())


def test_a_model_that_sees_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not causal"):
        Policy(make("bert", COMMON), tiny_tokenizer())


def test_probing_leaves_the_random_state_and_the_model_alone() -> None:
    model = tiny_model("qwen3", num_key_value_heads=1)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    Policy(model, tiny_tokenizer())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in model.named_parameters())
