"""Attention plans cover exactly the allowed pairs of a stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gro.policy.plans as plans
import gro.policy.varlen as varlen
from gro.policy.parts import Eager, MergedAttention, Part
from gro.policy.plans import PartsPlan, Tree, plan_for
from gro.policy.varlen import Gather, VarlenPlan
from policy.oracle import upcasts_to_float64
from policy.varlen_stub import varlen_by_documentation

CPU = torch.device("cpu")
trees = st.lists(
    st.builds(Tree, st.integers(1, 12), st.lists(st.integers(1, 12), max_size=4).map(tuple)), min_size=1, max_size=5
)


def allowed_pairs(stream: list[Tree], window: int | None) -> Tensor:
    """[N, N] by the definition, pair by pair."""
    tokens = []  # (tree, branch, position in the row); branch 0 is the prompt
    for t, tree in enumerate(stream):
        tokens += [(t, 0, p) for p in range(tree.prompt)]
        for b, n in enumerate(tree.completions, 1):
            tokens += [(t, b, tree.prompt + p) for p in range(n)]
    return torch.tensor(
        [
            [
                qt == kt and kb in (0, qb) and qp - kp >= 0 and (window is None or qp - kp < window)
                for kt, kb, kp in tokens
            ]
            for qt, qb, qp in tokens
        ]
    )


def covered(parts: tuple[Part, ...], n: int) -> Tensor:
    """[N, N] how often each pair is covered."""
    count_NN = torch.zeros(n, n, dtype=torch.int64)
    for part in parts:
        seen = torch.ones_like(count_NN[part.queries, part.keys]) if part.bias is None else (part.bias == 0).long()
        assert seen.any(1).all(), "a query without keys in a part has no softmax"
        count_NN[part.queries, part.keys] += seen
    return count_NN


@settings(max_examples=60, deadline=None)
@given(trees, st.none() | st.integers(1, 20), st.sampled_from((1, 30, 1_000)))
def test_every_allowed_pair_exactly_once(stream: list[Tree], window: int | None, call_cost: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "CALL", call_cost)
        parts = PartsPlan(stream, CPU).parts(window, torch.float32)
    truth_NN = allowed_pairs(stream, window)
    assert torch.equal(covered(parts, len(truth_NN)), truth_NN.long())
    begun = torch.zeros(len(truth_NN), dtype=torch.bool)
    for part in parts:
        assert (begun[part.queries] == part.merge).all(), "merged if and only if there is something to merge with"
        begun[part.queries] = True
    assert begun.all()


def test_small_groups_share_a_square_and_large_ones_are_cut() -> None:
    small = PartsPlan([Tree(8, (4, 4))] * 6, CPU).parts(None, torch.float32)
    assert 1 <= len(small) < 6
    large = PartsPlan([Tree(300, (200,) * 4)], CPU).parts(None, torch.float32)
    rectangle = large[-1]
    assert (rectangle.queries, rectangle.keys) == (slice(300, 1100), slice(0, 300))
    assert rectangle.bias is None
    computed = sum((p.queries.stop - p.queries.start) * (p.keys.stop - p.keys.start) for p in large)
    assert computed < 300**2 + 800 * 300 + 4 * 200**2  # against 1100² in one square


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("kernel", ["flash", "eager"])
def test_attention_and_gradients_equal_a_softmax(kernel: str, softcap: float | None) -> None:
    stream = [Tree(7, (5, 1, 4)), Tree(1, (3,)), Tree(6, ())]
    truth, plan = _attend_by_softmax(stream, softcap, None), PartsPlan(stream, CPU)
    q, k, v = _tensors(sum(t.tokens for t in stream), value_size=8 if kernel == "flash" else 6)
    _same(lambda: truth(q, k, v), lambda: _attend(plan, q, k, v, softcap, None), (q, k, v))


@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
def test_varlen_gathers_the_right_keys(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernel itself cannot run here; one that follows its documentation, segment by segment, stands in."""
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_documentation)
    monkeypatch.setattr(varlen, "_DTYPES", (torch.float64,))
    stream = [Tree(7, (5, 1, 4)), Tree(1, (3,)), Tree(6, ())]
    truth, plan = _attend_by_softmax(stream, None, window), VarlenPlan(stream, CPU)
    q, k, v = _tensors(sum(t.tokens for t in stream))
    _same(lambda: truth(q, k, v), lambda: _attend(plan, q, k, v, None, window), (q, k, v))


def test_varlen_leaves_to_parts_what_its_kernel_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", None)
    stream = [Tree(3, (2,))]
    q, k, v = _tensors(5)
    truth = _attend_by_softmax(stream, 5.0, None)
    _same(lambda: truth(q, k, v), lambda: _attend(VarlenPlan(stream, CPU), q, k, v, 5.0, None), (q, k, v))


def test_gather_of_the_documented_example() -> None:
    gather = Gather.of([Tree(2, (1, 3)), Tree(1, ())])
    assert gather.starts_q == (0, 2, 3, 6, 7)
    assert gather.starts_k == (0, 2, 5, 10, 11)
    assert gather.keys == (0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 6)


def test_plan_for_picks_by_device() -> None:
    assert isinstance(plan_for(CPU, [Tree(1, ())]), PartsPlan)


def test_bfloat16_parts_are_close_to_exact() -> None:
    stream = [Tree(40, (20, 30)), Tree(5, (5,))]
    q, k, v = (t.detach() for t in _tensors(100))
    exact = _attend(PartsPlan(stream, CPU), q, k, v, None, None)
    half = _attend(PartsPlan(stream, CPU), q.bfloat16(), k.bfloat16(), v.bfloat16(), None, None)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=3e-2, rtol=3e-2)


def _tensors(n: int, heads: int = 4, kv_heads: int = 2, value_size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)

    def make(h: int, d: int) -> Tensor:  # strided like a projection's output
        x = torch.randn(1, n, h, d, generator=generator, dtype=torch.float64)
        return x.transpose(1, 2).requires_grad_(True)

    return make(heads, 8), make(kv_heads, 8), make(kv_heads, value_size)


def _attend(plan: object, q: Tensor, k: Tensor, v: Tensor, softcap: float | None, window: int | None) -> Tensor:
    return plan.attend(nn.Module(), q, k, v, scaling=0.3, softcap=softcap, window=window)  # type: ignore[attr-defined]


def _attend_by_softmax(stream: list[Tree], softcap: float | None, window: int | None):
    allowed_NN = allowed_pairs(stream, window)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        score = 0.3 * q @ k.transpose(-1, -2)
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return (score.masked_fill(~allowed_NN, -torch.inf).softmax(-1) @ v).transpose(1, 2)

    return attend


def _same(truth, tested, inputs: tuple[Tensor, ...]) -> None:
    with upcasts_to_float64():
        expected, found = truth(), tested()
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        push = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for a, b in zip(
            torch.autograd.grad(found, inputs, push), torch.autograd.grad(expected, inputs, push), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_eager_kernel_is_used_through_the_same_merge() -> None:
    """Two rectangles over the same queries give one softmax over both."""
    q, k, v = (t[0] for t in _tensors(6))
    halves = [Part(slice(0, 6), slice(0, 2), None, merge=False), Part(slice(0, 6), slice(2, 6), None, merge=True)]
    with upcasts_to_float64():
        out = MergedAttention.apply(q, k, v, halves, Eager(0.3))
    full_k, full_v = (x.repeat_interleave(2, 0) for x in (k, v))
    expected = (0.3 * q @ full_k.transpose(-1, -2)).softmax(-1) @ full_v
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=1e-12, rtol=0)
