"""What is loaded, saved and loaded again is the same; what is wrong with a model is said by name."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gro.errors import GroError
from gro.policy.policy import Policy
from policy.oracle import shapes
from tiny import tiny_model, tiny_tokenizer

GROUPS = shapes((9, (7, 1, 12)), (1, (5, 1)))
NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("qwen3").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def scores(policy: Policy) -> torch.Tensor:
    (whole,) = policy.packs(GROUPS, 10**6)
    return policy.logp(whole).logp_RT.detach()


@pytest.mark.parametrize("arch", ["qwen3", "gemma2", "gpt2", "gptj"])
@pytest.mark.filterwarnings("ignore:GPTJ:UserWarning")
def test_save_and_load_round_trip(arch: str, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"rotary_dim": 4} if arch == "gptj" else {}
    first = Policy(tiny_model(arch, **extra), tiny_tokenizer())
    first.save(tmp_path / "saved")
    assert "gro" not in (tmp_path / "saved" / "config.json").read_text()
    assert not list((tmp_path / "saved").glob("*.bin"))
    second = Policy.load(tmp_path / "saved")
    torch.testing.assert_close(scores(second), scores(first), atol=0, rtol=0)
    # Saving did not change the policy that goes on training.
    torch.testing.assert_close(scores(first), scores(second), atol=0, rtol=0)


def test_plain_transformers_loads_what_was_saved(tmp_path: Path) -> None:
    policy = Policy(tiny_model("qwen3", attention_dropout=0.25), tiny_tokenizer())
    policy.save(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert model.config._attn_implementation == "sdpa"
    assert model.config.attention_dropout == 0.25
    ids = tokenizer("hello world", return_tensors="pt").input_ids
    ours = tiny_model("qwen3")(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, ours, atol=1e-5, rtol=0)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_master_weights_are_float32_whatever_the_file_holds(tmp_path: Path) -> None:
    tiny_model("qwen3", dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.dtype for p in Policy.load(tmp_path).model.parameters()} == {torch.float32}
    half = Policy.load(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.layout == "shared"


@pytest.mark.fault("M6")
def test_dropout_is_off_and_the_saved_configuration_keeps_it(folder: Path) -> None:
    _edit(folder, attention_dropout=0.5)
    policy = Policy.load(folder)
    assert torch.equal(scores(policy), scores(policy))
    policy.save(folder / "again")
    assert json.loads((folder / "again" / "config.json").read_text())["attention_dropout"] == 0.5


def test_activation_checkpointing_by_argument(made: Path) -> None:
    policy = Policy.load(made, activation_checkpointing=True)
    assert policy.model.is_activation_checkpointing
    assert torch.equal(scores(policy), scores(Policy.load(made)))


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def _spoil(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _shards(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")


def _lose_a_shard(folder: Path) -> None:
    _shards(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _lose_a_tensor_of_a_shard(folder: Path) -> None:
    _shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][NORM]
    tensors = load_file(file)
    del tensors[NORM]
    save_file(tensors, file)


def _vocabulary(folder: Path) -> None:
    tiny_model("qwen3", vocab_size=310).save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON: .*line 1"),
    "adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "adapter_config.json: base_model_name_or_path is missing; an adapter needs the model it is for",
    ),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        r"model\.safetensors is a Git LFS pointer, not the file itself",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"holds no weights: expected model\.safetensors, found .*config\.json",
    ),
    "truncated": (_truncate, r"model\.safetensors is truncated or corrupt: \d+ bytes, its header says \d+"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or not safetensors: 0 bytes"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"PK\x03\x04"),
        "is corrupt: its safetensors header cannot be read",
    ),
    "pickle": (_pickle, r"weights are pickled \(pytorch_model\.bin\), and unpickling can run code"),
    "lost shard": (_lose_a_shard, r"1 of \d+ weight files are missing: model-00002-of"),
    "lost tensor of a shard": (_lose_a_tensor_of_a_shard, rf"model-.*\.safetensors: tensor {NORM} is missing"),
    "lost tensor": (_spoil(lambda t: t.pop(NORM)), f"1 tensors of the model are not in its files: {NORM}"),
    "lost head": (
        lambda f: (_spoil(lambda t: t.pop("lm_head.weight", None))(f), _edit(f, tie_word_embeddings=False)),
        "not in its files: lm_head.weight",
    ),
    "wrong shape": (
        _spoil(lambda t: t.update({NORM: torch.ones(31)})),
        rf"model\.safetensors: tensor {NORM} has shape \(31,\), config\.json asks for \(32,\)",
    ),
    "wrong dtype": (
        _spoil(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)})),
        rf"model\.safetensors: tensor {NORM} has dtype I8; expected BF16, F16, F32, F64",
    ),
    "NaN": (
        _spoil(lambda t: t[NORM].__setitem__(slice(2), torch.nan)),
        rf"model\.safetensors: 2 of 32 values of tensor {NORM} are not finite",
    ),
    "infinity": (_spoil(lambda t: t[NORM].__setitem__(0, -torch.inf)), f"1 of 32 values of tensor {NORM}"),
    "untrained head": (
        _spoil(lambda t: [t[k].zero_() for k in ("lm_head.weight", "model.embed_tokens.weight") if k in t]),
        "the output embedding is all zeros",
    ),
    "vocabulary": (_vocabulary, r"highest id is 319 \(320 tokens\), but the model has only 310 embeddings"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "holds no tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
    "unknown kind": (lambda f: _edit(f, model_type="qwen33"), "model_type 'qwen33' is unknown, did you mean 'qwen3"),
    "own code": (
        lambda f: _edit(f, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        r"would take running the code beside it \(modeling_mine\.py\), which is never done",
    ),
    "kernel by name": (
        lambda f: _edit(f, attn_implementation="someone/kernel"),
        "attn_implementation names a kernel to be downloaded and run, 'someone/kernel'",
    ),
    "quantised": (lambda f: _edit(f, quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)"),
    "not a language model": (lambda f: _edit(f, model_type="vit"), "vit is not a causal language model"),
}


@pytest.mark.fault("M1", "M2", "M3", "M4")
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(fault: str, folder: Path) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(GroError, match=message) as caught:
        Policy.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.fault("M2")
def test_code_beside_a_known_kind_is_not_run(folder: Path) -> None:
    _edit(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Config"})
    (folder / "modeling_mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    policy = Policy.load(folder)
    assert type(policy.model).__name__ == "Qwen3ForCausalLM"
    assert not (folder / "ran").exists()
    policy.save(folder / "again")
    assert "auto_map" not in (folder / "again" / "config.json").read_text()


@pytest.mark.fault("M2")
def test_pickled_weights_if_they_are_allowed(folder: Path, made: Path) -> None:
    _pickle(folder)
    assert torch.equal(scores(Policy.load(folder, allow_pickle=True)), scores(Policy.load(made)))


def test_shards_are_read(folder: Path, made: Path) -> None:
    _shards(folder)
    assert torch.equal(scores(Policy.load(folder)), scores(Policy.load(made)))


def test_tensors_that_are_not_part_of_the_model_are_reported(folder: Path) -> None:
    _spoil(lambda t: t.update({"score.weight": torch.ones(2, 32)}))(folder)
    with pytest.warns(UserWarning, match=r"1 tensors are not part of the model and ignored: score\.weight"):
        Policy.load(folder)


def test_loading_is_quiet(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Policy.load(made)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder/at/all", "no/such/folder/at/all does not exist"),
        ("./missing", "missing does not exist"),
        ("nobody/nothing", "nobody/nothing: there is no such folder, and it could not be had from the hub"),
    ],
)
def test_a_model_that_is_nowhere(name: str, message: str) -> None:
    with pytest.raises(GroError, match=message):
        Policy.load(name)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    with pytest.raises(GroError, match=r"config\.json is a file; expected the folder"):
        Policy.load(folder / "config.json")


def test_an_unknown_dtype(made: Path) -> None:
    with pytest.raises(GroError, match="dtype 'fp32' is not one of float32, bfloat16, float16, float64"):
        Policy.load(made, dtype="fp32")
