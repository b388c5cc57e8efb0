"""Small models by recipe."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gro.policy.create import create_model, train_tokenizer
from gro.policy.policy import Policy
from gro.policy.spec import ARCHITECTURES, CreateSpec

TEXTS = ["Question: 12 + 34 = 46. The quick brown fox jumps over the lazy dog, déjà vu!"] * 3
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 4,
    "vocab_size": 320,
    "max_positions": 64,
}


def test_the_default_has_the_size_it_says() -> None:
    spec = CreateSpec()
    h, i, v, kv = 384, spec.feed_forward, 16_000, 2 * 64
    layer = 2 * h * h + 2 * h * kv + 3 * h * i + 2 * h + 2 * 64
    assert i == 1024
    assert v * h + 6 * layer + h == 15_586_944


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_made_and_shares_prompts(arch: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    folder = create_model(CreateSpec(architecture=arch, **SMALL), tokenizer, tmp_path / arch)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    assert model.get_input_embeddings().weight.shape == (320, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    policy = Policy.load(folder)
    assert policy.layout == "shared"
    assert policy.tokenizer.eos_token_id == policy.model.config.eos_token_id


def test_the_same_spec_gives_the_same_weights(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    state = torch.get_rng_state()
    folders = [create_model(CreateSpec(**SMALL, seed=s), tokenizer, tmp_path / str(n)) for n, s in enumerate((3, 3, 4))]
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = ((f / "model.safetensors").read_bytes() for f in folders)
    assert a == b
    assert a != c


def test_the_tokenizer_round_trips_and_keeps_digits_apart() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "  12345 +\t6\n\n你好 déjà <|im_end|> we'll  "
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(digit in tokenizer.tokenize(text) for digit in "12345")
    assert tokenizer.eos_token_id in ids


def test_the_chat_template() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    turns = [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "yo"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_training_a_tokenizer_is_deterministic_across_processes() -> None:
    code = (
        "from gro.policy.create import train_tokenizer; import hashlib;"
        f"print(hashlib.sha256(train_tokenizer({TEXTS!r}, 290).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    printed = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(printed) == 1


def test_the_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    create_model(CreateSpec(**SMALL), tokenizer, tmp_path / "m")
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "The quick 12 <|im_start|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|endoftext|>", "<|im_end|>", "<|endoftext|>")
    assert again.model_max_length == 64


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, the spec 299 embeddings"):
        create_model(replace(CreateSpec(**SMALL), vocab_size=299), tokenizer, tmp_path / "m")
    create_model(CreateSpec(**SMALL), tokenizer, tmp_path / "m")
    with pytest.raises(ValueError, match="already holds a model"):
        create_model(CreateSpec(**SMALL), tokenizer, tmp_path / "m")
    with pytest.raises(ValueError, match="vocab_size must be at least 259"):
        train_tokenizer(TEXTS, 100)
    spec = CreateSpec("gpt2", hidden_size=32, heads=4, kv_heads=2, vocab_size=320)
    with pytest.raises(ValueError, match="gpt2 has no grouped queries: kv_heads must equal heads, 4"):
        create_model(spec, tokenizer, tmp_path / "other")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "qwen4"}, "architecture 'qwen4' is not one of llama"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of heads 4"),
        ({"hidden_size": 12}, "hidden_size 12 / heads 4 must be even"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_a_spec_that_makes_no_sense(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CreateSpec(**(SMALL | wrong))


def test_without_all_bytes_only_what_occurs_is_a_token():
    tokenizer = train_tokenizer(["12+34=46", "90+58=7"], 16, all_bytes=False)
    assert len(tokenizer) == 15  # ten digits, + and =, three special tokens
    assert tokenizer.decode(tokenizer("58+34=").input_ids) == "58+34="
    assert tokenizer("5x").input_ids == [tokenizer("5").input_ids[0], 0]
