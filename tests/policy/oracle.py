"""What a policy must equal: the stock model, one unpadded row at a time, full logits; and groups to try it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.types import Completion, Group, Prompt, rows_of

VOCABULARY = 320


@contextmanager
def upcasts_to_float64() -> Iterator[None]:
    """Models compute norms, rotations and softmaxes in float32 whatever their type; here they do so in float64."""
    float32, to_float = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = float32, to_float  # type: ignore[method-assign, misc]


def stock_logp(model: PreTrainedModel, group: Group, completion: Completion) -> Tensor:
    """[tokens], differentiable."""
    ids = [*group.prompt.ids, *completion.ids]
    logits_NV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] / completion.temperature
    scored_TV = torch.log_softmax(logits_NV[len(group.prompt.ids) - 1 : -1], -1)
    return torch.stack([scored_TV[t, token] for t, token in enumerate(completion.ids)]) if completion.ids else scored_TV


def upstream(row: int, tokens: int) -> Tensor:
    """An arbitrary gradient for each token of a row, so that no two tokens can be exchanged unnoticed."""
    return torch.sin(1.0 + 3.7 * row + torch.arange(tokens) * 1.3)


def worst_gaps(stock: PreTrainedModel, policy: Policy, groups: Sequence[Group], budget: int) -> tuple[float, float]:
    """Largest absolute gap in log-probs, and in any parameter's gradient relative to that gradient's largest entry."""
    return compare(stock, policy, groups, policy.packs(groups, budget))


def compare(
    stock: PreTrainedModel, policy: Policy, groups: Sequence[Group], packs: Sequence[Pack]
) -> tuple[float, float]:
    """As `worst_gaps`, for packs that were made already."""
    stock.zero_grad()
    policy.model.zero_grad()
    rows = rows_of(groups)
    in_logp = 0.0
    seen: list[int] = []
    for pack in packs:
        logp_RT = policy.logp(pack).logp_RT
        push_RT = torch.zeros_like(logp_RT)
        for r, row in enumerate(pack.rows):
            _, group, completion = rows[row]
            n = len(completion.ids)
            trained = torch.tensor(completion.trained or [True] * n, dtype=torch.bool)
            if n:
                truth = stock_logp(stock, group, completion)
                push = torch.where(trained, upstream(row, n).to(truth), 0.0)
                truth.backward(push)
                push_RT[r, :n] = push
                in_logp = max(in_logp, float((logp_RT[r, :n] - torch.where(trained, truth, 0.0)).detach().abs().max()))
            assert (logp_RT[r, n:] == 0).all()
        logp_RT.backward(push_RT)
        seen += pack.rows
    assert sorted(seen) == list(range(len(rows)))
    return in_logp, _gradient_gap(stock, policy)


def _gradient_gap(stock: PreTrainedModel, policy: Policy) -> float:
    worst = 0.0
    scale = max((float(p.grad.abs().max()) for p in stock.parameters() if p.grad is not None), default=0.0) or 1.0
    for (name, a), b in zip(policy.model.named_parameters(), stock.parameters(), strict=True):
        if b.grad is None or a.grad is None:
            # Nothing reached it on either side (a pack of completions without tokens still runs its prompts).
            assert all(p.grad is None or not p.grad.any() for p in (a, b)), name
            continue
        worst = max(worst, float((a.grad - b.grad).abs().max()) / scale)
    return worst


def ids(length: int, seed: int) -> tuple[int, ...]:
    """Tokens that differ from place to place and from call to call."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


@st.composite
def some_groups(draw: st.DrawFn, *, most_groups: int = 4, most_completions: int = 4) -> list[Group]:
    """Groups of every shape: prompts and completions of 1 token, empty completions, temperatures, untrained tokens."""
    groups = []
    seed = draw(st.integers(0, 10**6))
    for _ in range(draw(st.integers(1, most_groups))):
        completions = []
        for _ in range(draw(st.integers(1, most_completions))):
            seed += 1
            n = draw(st.integers(0, 12))
            mask = draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n))
            temperature = draw(st.sampled_from((1.0, 1.0, 0.7, 1.3)))
            trained = None if mask is None else tuple(mask)
            completions.append(Completion(ids(n, seed), trained=trained, temperature=temperature))
        seed += 1
        groups.append(Group(Prompt(ids(draw(st.integers(1, 14)), seed)), tuple(completions)))
    return groups


def shapes(*trees: tuple[int, tuple[int, ...]]) -> list[Group]:
    """Groups with prompts and completions of these lengths.

    >>> shapes((3, (2, 5)), (1, (1,)))
    """
    return [
        Group(Prompt(ids(p, 97 * g)), tuple(Completion(ids(n, 97 * g + c + 1)) for c, n in enumerate(lengths)))
        for g, (p, lengths) in enumerate(trees)
    ]
