"""The average of models is the average of their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gro.errors import GroError
from gro.policy.averaging import average
from tiny import tiny_model, tiny_tokenizer


def saved(folder: Path, seed: int, arch: str = "qwen3", shards: str = "1GB") -> Path:
    tiny_model(arch, seed=seed).save_pretrained(folder, max_shard_size=shards)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_every_weight_is_the_mean(tmp_path: Path):
    paths = [saved(tmp_path / str(seed), seed, shards="20KB" if seed == 1 else "1GB") for seed in range(3)]
    average(paths, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    whole = [tiny_model(seed=seed).state_dict() for seed in range(3)]
    for name, tensor in found.items():
        expected = (whole[0][name].double() + whole[1][name].double() + whole[2][name].double()) / 3
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=1e-7)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    assert set(loaded.state_dict()) >= set(found)
    assert (tmp_path / "mean" / "tokenizer.json").exists()
    assert not (tmp_path / "mean" / "model.safetensors.index.json").exists()


def test_equal_models_average_to_themselves(tmp_path: Path):
    one = saved(tmp_path / "one", 0)
    average([one, one, one], tmp_path / "mean")
    again = load_file(tmp_path / "mean" / "model.safetensors")
    assert all(torch.equal(tensor, load_file(one / "model.safetensors")[name]) for name, tensor in again.items())


def test_what_is_refused(tmp_path: Path):
    one, other = saved(tmp_path / "one", 0), saved(tmp_path / "other", 0, "gpt2")
    with pytest.raises(GroError, match="at least 2 models; found 1"):
        average([one], tmp_path / "mean")
    with pytest.raises(GroError, match=r"other: not the same model as .*one: only one has '"):
        average([one, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
