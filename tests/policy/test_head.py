"""Chunked log-probs against full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gro.policy import head
from gro.policy.head import LogitTransform, token_logp

V = 37


@pytest.fixture(params=["kept", "made again", "some of each"], autouse=True)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 rows; all, none or about half of their logits kept."""
    monkeypatch.setattr(head, "MIN_ROWS", 4)
    monkeypatch.setattr(head, "MAX_ROWS", 4)
    keep = {"kept": 1 << 20, "made again": 0, "some of each": 5 * V * 8}
    monkeypatch.setattr(head, "KEEP_BYTES", keep[request.param])


def problem(tokens: int = 11) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "hidden_MH": torch.randn(tokens, 5, generator=g, dtype=torch.float64, requires_grad=True),
        "weight_VH": torch.randn(V, 5, generator=g, dtype=torch.float64, requires_grad=True),
        "bias_V": torch.randn(V, generator=g, dtype=torch.float64, requires_grad=True),
        "target_M": torch.randint(0, V, (tokens,), generator=g),
        "temperature_M": torch.rand(tokens, generator=g, dtype=torch.float64) + 0.5,
    }


def by_the_book(p: dict[str, Tensor], scale: float = 1.0, cap: float | None = None) -> Tensor:
    """[M, V] log-probs from full logits."""
    logits = F.linear(p["hidden_MH"], p["weight_VH"], p.get("bias_V")) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return F.log_softmax(logits / p.get("temperature_M", torch.ones(1))[:, None], -1)


@pytest.mark.parametrize("left_out", [(), ("bias_V",), ("temperature_M",), ("bias_V", "temperature_M")])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.0, 2.0), (1.7, 3.0)])
def test_values_and_gradients(left_out: tuple[str, ...], scale: float, cap: float | None) -> None:
    p = {k: v for k, v in problem().items() if k not in left_out}
    expected = by_the_book(p, scale, cap).gather(-1, p["target_M"][:, None])[:, 0]
    found, entropy = token_logp(**p, transform=LogitTransform(scale, cap))  # type: ignore[arg-type]
    assert entropy is None
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    push_M = torch.randn(len(found), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [x for x in p.values() if x.requires_grad]
    for _ in range(2):  # a second time from the same graph: nothing saved was overwritten
        found_grads = torch.autograd.grad(found, inputs, push_M, retain_graph=True)
        for a, b in zip(found_grads, torch.autograd.grad(expected, inputs, push_M, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("frozen", [("weight_VH", "bias_V"), ("hidden_MH",), ("hidden_MH", "weight_VH")])
def test_what_is_frozen_gets_no_gradient(frozen: tuple[str, ...]) -> None:
    p = problem()
    for name in frozen:
        p[name].requires_grad_(False)
    token_logp(**p)[0].sum().backward()  # type: ignore[arg-type]
    truth = problem()
    by_the_book(truth).gather(-1, truth["target_M"][:, None]).sum().backward()
    for name in ("hidden_MH", "weight_VH", "bias_V"):
        if name in frozen:
            assert p[name].grad is None
        else:
            torch.testing.assert_close(p[name].grad, truth[name].grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("left_out", [(), ("bias_V", "temperature_M")])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("pushed", ["entropy", "both"])
def test_entropy_and_its_gradient(left_out: tuple[str, ...], cap: float | None, pushed: str) -> None:
    p = {k: v for k, v in problem().items() if k not in left_out}
    logp_MV = by_the_book(p, cap=cap)
    expected = logp_MV.gather(-1, p["target_M"][:, None])[:, 0], -(logp_MV.exp() * logp_MV).sum(-1)
    found = token_logp(**p, transform=LogitTransform(cap=cap), entropy=True)  # type: ignore[arg-type]
    assert found[1] is not None
    torch.testing.assert_close(found[1], expected[1], atol=1e-12, rtol=0)
    push_2M = torch.randn(2, len(found[0]), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = [x for x in p.values() if x.requires_grad]
    both = slice(0 if pushed == "both" else 1, 2)
    found_grads = torch.autograd.grad(found[both], inputs, list(push_2M[both]))  # type: ignore[arg-type]
    for a, b in zip(found_grads, torch.autograd.grad(expected[both], inputs, list(push_2M[both])), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.fault("N4")
def test_no_tokens() -> None:
    p = problem(tokens=0)
    logp_M, entropy_M = token_logp(**p, entropy=True)  # type: ignore[arg-type]
    assert entropy_M is not None
    assert logp_M.shape == entropy_M.shape == (0,)
    logp_M.sum().backward()
    assert not p["weight_VH"].grad.any()  # type: ignore[union-attr]


def test_bfloat16_weights_give_float32_log_probs() -> None:
    p = problem()
    half = {k: v.detach().bfloat16() if v.is_floating_point() else v for k, v in p.items()}
    half["hidden_MH"].requires_grad_(True)
    logp_M, _ = token_logp(**half)  # type: ignore[arg-type]
    assert logp_M.dtype == torch.float32
    exact = by_the_book(p).gather(-1, p["target_M"][:, None])[:, 0]
    torch.testing.assert_close(logp_M.double(), exact, atol=0.1, rtol=0.02)
    logp_M.sum().backward()
    assert half["hidden_MH"].grad.dtype == torch.bfloat16  # type: ignore[union-attr]


class _LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self._made = {k: (ref, size) for k, (ref, size) in self._made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


def test_peak_memory_has_no_term_in_vocabulary_times_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 << 20)
    monkeypatch.setattr(head, "KEEP_BYTES", 8 << 20)
    monkeypatch.setattr(head, "MIN_ROWS", 1)
    monkeypatch.setattr(head, "MAX_ROWS", 1024)
    tokens, vocabulary = 1500, 30_000  # 180 MB of logits
    hidden_MH = torch.randn(tokens, 8, requires_grad=True)
    weight_VH = torch.randn(vocabulary, 8, requires_grad=True)
    target_M = torch.zeros(tokens, dtype=torch.int64)
    with _LiveBytes() as live:
        logp_M, entropy_M = token_logp(hidden_MH, weight_VH, target_M, entropy=True)
        assert entropy_M is not None
        (logp_M + entropy_M).sum().backward()
    assert 8 << 20 < live.peak < 30 << 20


def test_under_autocast_the_weights_gradient_is_summed_in_its_own_precision() -> None:
    """A thousand chunks, each of them a bfloat16 product: their sum must not lose what each of them adds."""
    g = torch.Generator().manual_seed(0)
    hidden_MH, weight_VH = torch.randn(4000, 16, generator=g), torch.randn(V, 16, generator=g).requires_grad_(True)
    target_M, push_M = torch.randint(0, V, (4000,), generator=g), torch.rand(4000, generator=g)
    low_VH = weight_VH.detach().bfloat16().double().requires_grad_(True)
    by_the_book({"hidden_MH": hidden_MH.bfloat16().double(), "weight_VH": low_VH}).gather(-1, target_M[:, None])[
        :, 0
    ].backward(push_M.double())
    with torch.autocast("cpu", torch.bfloat16):
        logp_M, _ = token_logp(hidden_MH, weight_VH, target_M)
    logp_M.backward(push_M)
    assert weight_VH.grad is not None
    assert low_VH.grad is not None
    assert weight_VH.grad.dtype == torch.float32
    error = torch.linalg.vector_norm(weight_VH.grad.double() - low_VH.grad) / torch.linalg.vector_norm(low_VH.grad)
    assert error < 3e-3  # 0.05 where the sum is kept in bfloat16


@pytest.mark.parametrize("vocabulary", [50, 5_000])
def test_the_bound_on_the_heads_memory_holds(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(head, "KEEP_BYTES", 2 << 20)
    monkeypatch.setattr(head, "MAX_ROWS", 1024)
    hidden_MH = torch.randn(2000, 4, requires_grad=True)
    weight_VH = torch.randn(vocabulary, 4, requires_grad=True)
    with _LiveBytes() as live:
        temperature_M = torch.full((2000,), 0.5)
        target_M = torch.zeros(2000, dtype=torch.int64)
        logp_M, entropy_M = token_logp(
            hidden_MH,
            weight_VH,
            target_M,
            temperature_M=temperature_M,
            transform=LogitTransform(0.5, 3.0),
            entropy=True,
        )
        assert entropy_M is not None
        (logp_M + entropy_M).sum().backward()
    beside = 4 * (vocabulary * 4 + 10 * 2000) * 3
    bound = head.most_bytes(vocabulary, hidden_MH.device)
    assert live.peak <= bound + beside
    assert live.peak >= bound / 3  # it is not a bound on anything
