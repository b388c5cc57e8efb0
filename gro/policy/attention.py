"""The one attention function that every forward pass of a policy goes through.

transformers lets a library register an attention under a name and hands it, unchanged, every extra keyword of
`model(...)`.  Ours forwards each layer's queries, keys and values to a *plan*, an object made once per forward pass
that knows who attends to whom: a packed training stream, a step of the decode loop, ...  So layouts are values, and
the model does not know about them.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "gro"
"""The `attn_implementation` under which the function is registered."""


class AttentionPlan(Protocol):
    """Who attends to whom in one forward pass; used by every layer of it."""

    def attend(
        self,
        module: nn.Module,
        query_bhnd: Tensor,
        key_bknd: Tensor,
        value_bknd: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """[b, heads, n, d], [b, kv_heads, n, d] twice → [b, n, heads, d]."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    # Without a plan there is nobody to apply sliding windows and soft-caps: plain calls use the model's own attention.
    assert attention_plan is not None, "a forward pass under attention 'gro' needs attention_plan=..."
    scaling = kwargs.get("scaling")
    out_bnhd = attention_plan.attend(
        module,
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
    )
    return out_bnhd, None


AttentionInterface.register(NAME, _attention)
