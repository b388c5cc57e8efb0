"""The CUDA plan under whole models, as far as a machine without CUDA can tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gro.policy.packing as packing
import gro.policy.varlen as varlen
from gro.policy.plans import Tree
from gro.policy.policy import Policy
from gro.policy.varlen import VarlenPlan, widest_head
from policy.oracle import shapes, upcasts_to_float64, worst_gaps
from policy.varlen_stub import varlen_by_documentation
from tiny import tiny_model, tiny_tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Rows longer than the tiny models' windows of 8, a prompt of 1, completions of 1, a lone completion.
GROUPS = shapes((9, (7, 1, 12, 7)), (1, (5, 1)), (6, (1,)), (14, (3, 0, 9)))


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "mistral", "gemma3_text", "gemma2", "gpt2"])
def test_whole_models_equal_plain_rows(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped queries, sliding windows in all or some layers, soft-caps (by parts), learned positions."""
    calls: list[int] = []

    def stand_in(*arguments, **named):
        calls.append(1)
        return varlen_by_documentation(*arguments, **named)

    policy = Policy(tiny_model(arch, dtype=torch.float64), tiny_tokenizer(), layout="shared")
    monkeypatch.setattr(packing, "plan_for", lambda device, trees: VarlenPlan(trees, device))
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(varlen, "_DTYPES", (torch.float64,))
    with upcasts_to_float64():
        in_logp, in_gradient = worst_gaps(tiny_model(arch, dtype=torch.float64), policy, GROUPS, budget=60)
    assert in_logp < 1e-10
    assert in_gradient < 1e-10
    assert bool(calls) == (arch != "gemma2")


@pytest.mark.parametrize("window", [None, 4])
def test_the_installed_kernel_takes_the_call(window: int | None) -> None:
    """The real operator, forward and backward, on tensors without contents."""
    stream = [Tree(7, (5, 1, 4)), Tree(1, (3,))]
    n = sum(tree.tokens for tree in stream)
    with FakeTensorMode():
        q, k, v = (torch.empty(1, h, n, 8, dtype=torch.bfloat16).requires_grad_(True) for h in (4, 2, 2))
        out = VarlenPlan(stream, CPU).attend(nn.Module(), q, k, v, scaling=0.3, softcap=None, window=window)
        assert (out.shape, out.dtype) == ((1, n, 4, 8), torch.bfloat16)
        grads = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
        assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
        assert "varlen" in str(out.grad_fn and out.grad_fn.next_functions[0][0]).lower()


def test_autocast_lowers_what_the_kernel_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and rotations leave queries and keys in float32 beside values in bfloat16."""
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_documentation)
    q, k, v = (torch.randn(1, h, 5, 8) for h in (4, 2, 2))
    plan = VarlenPlan([Tree(3, (2,))], CPU)
    with torch.autocast("cpu", torch.bfloat16):
        out = plan.attend(nn.Module(), q, k, v.bfloat16(), scaling=0.3, softcap=None, window=None)
    assert out.dtype == torch.bfloat16


def test_float32_goes_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", None)
    q, k, v = (torch.randn(1, h, 5, 8) for h in (4, 2, 2))
    out = VarlenPlan([Tree(3, (2,))], CPU).attend(nn.Module(), q, k, v, scaling=0.3, softcap=None, window=None)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "widest"),
    [((7, 5), 0), ((8, 0), 256), ((8, 6), 192), ((8, 9), 192), ((9, 0), 256), ((10, 0), 256), ((12, 0), 192)],
)
def test_what_a_card_can_do(capability: tuple[int, int], widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    widest_head.cache_clear()
    assert widest_head(CUDA) == widest
    widest_head.cache_clear()
