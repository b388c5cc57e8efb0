"""Temporary states of a model, undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from gro.policy import attention


@contextmanager
def registered_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model under the registered attention: every forward pass needs `attention_plan=...`."""
    with _attention(model, attention.NAME):
        yield


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model under an attention of transformers: what it had, or eager, which has every feature, for ours."""
    before = model.config._attn_implementation or "eager"
    with _attention(model, "eager" if before == attention.NAME else before):
        yield


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    if before is None or before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout and the like off.  Modules that were in training, and only those, are put back."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
