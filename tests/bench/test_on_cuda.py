"""The script for CUDA machines, on a processor: everything but the kernel."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
on_cuda, cuda_ours, cuda_work = (importlib.import_module(name) for name in ("on_cuda", "cuda_ours", "cuda_work"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("on_cuda")
    code = on_cuda.main(
        ["--device", "cpu", "--tiny", "--steps", "1", "--rounds", "1", "--peak-tflops", "0.5", "--out", str(out)]
    )
    assert code == 0
    return out


def test_what_it_leaves_out_is_said(done: Path) -> None:
    text = (done / "cuda.md").read_text()
    assert "SKIPPED without CUDA" in text
    assert "SKIPPED without --peer-python" in text
    assert "figures mean nothing" in text


def test_both_kinds_learn_what_they_should(done: Path) -> None:
    dpo, grpo = json.loads((done / "cuda.json").read_text())["works"]
    assert dpo["sides"]["gro"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert grpo["sides"]["gro"]["loss"] == pytest.approx(0.0, abs=1e-4)
    for work, rows, tokens in ((dpo, 4, 21), (grpo, 8, 14)):
        (report,) = work["reports"]["gro"]
        assert report["tokens_per_micro"] == 65_536, "found by auto"
        assert len(report["steps"]) == 3
        assert all(step["grad_norm"] > 0 for step in report["steps"])
        assert report["tokens_per_second"] == pytest.approx(rows * tokens / report["seconds"])
        flops = 4 * rows * cuda_work.forward_flops(AutoConfig.from_pretrained(done / "tiny"), tokens)
        assert work["sides"]["gro"]["MFU"] == pytest.approx(flops / report["seconds"] / 0.5e12)
    assert all(step["gap"] < 0.1 for step in grpo["reports"]["gro"][0]["steps"])


@pytest.mark.parametrize("shape", ["qwen2", "qwen3"])
def test_the_arithmetic_of_a_row_is_what_a_model_does(shape: str) -> None:
    """Against PyTorch's own count of a forward pass, which counts attention's whole square."""
    tokens = 48
    config = AutoConfig.for_model(
        shape, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96, vocab_size=200,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.int64))
    square = 2 * 2 * 3 * 4 * 16 * tokens**2
    assert cuda_work.forward_flops(config, tokens) == pytest.approx(counted.get_total_flops() - square / 2, rel=2e-3)


def test_a_wrong_plan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ours.varlen.VarlenPlan, "attend", None)  # never used on a processor
    assert cuda_ours.check_attention("mistral", "cpu")["ok"]
    from gro.policy import plans

    parts = plans.PartsPlan.parts
    monkeypatch.setattr(plans.PartsPlan, "parts", lambda self, window, dtype: parts(self, window and window - 1, dtype))
    assert not cuda_ours.check_attention("mistral", "cpu")["ok"]


def test_a_side_that_does_not_fit_has_a_row_all_the_same() -> None:
    work = cuda_work.Work("dpo", "none", "cuda", 32, 2, 512, 256, steps=1)
    assert on_cuda.summary(work, [{"error": "does not fit"}], 1e12) == {"error": "does not fit"}
    shown = on_cuda.compared({"TRL": {"error": "does not fit"}})
    assert shown.splitlines()[-1] == "| TRL | does not fit | – | – | – | – | – |"


def test_work_survives_its_command_line() -> None:
    work = cuda_work.Work("grpo", "m", "cuda", 4, 8, 16, 32, steps=2, options={"tokens_per_micro": "auto"})
    assert cuda_work.Work.from_json(work.to_json()) == work
    assert (work.rows, work.row_tokens, work.tokens) == (32, 48, 1536)
    assert replace(work, kind="dpo").row_tokens == 49, "and the end token"


def test_both_sides_read_the_same_rows(done: Path) -> None:
    work = cuda_work.Work("dpo", str(done / "tiny"), "cpu", 2, 2, 12, 8, steps=1)
    rows = cuda_work.words(work)
    assert [len(ids) for ids in rows[0]] == [12, 8, 8]
    assert len(rows) == 2 * 3
    tokenizer = PreTrainedTokenizerFast.from_pretrained(done / "tiny")
    assert tokenizer(cuda_work.text(rows[0][0])).input_ids == rows[0][0]
    assert cuda_ours._pairs(work, 1)[0].prompt.ids == tuple(rows[2][0])
