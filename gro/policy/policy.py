"""The policy: a causal language model that scores packs of completions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gro.errors import GroError
from gro.policy import attention, probe
from gro.policy.limits import longest_row, longest_together
from gro.policy.loading import load, quiet, silence_dropout
from gro.policy.packing import Pack, pack
from gro.policy.scoring import Scored, hidden_states, score
from gro.types import Group

__all__ = ["Layout", "Policy", "Scored"]

Layout = Literal["shared", "rows"]
"""shared: prompts once, a stream without padding.  rows: every completion with its own copy of the prompt."""


class Policy:
    """A model, its tokenizer, and the layout in which it reads groups.

    >>> policy = Policy.load("path/to/model")
    >>> for pack in policy.packs(groups, tokens_per_micro=8192):
    ...     logp_RT = policy.logp(pack).logp_RT
    ...     loss(logp_RT, batch.rows(pack.rows_R)).backward()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layout: Layout | None = None,
        autocast: Literal["bfloat16"] | None = None,
    ) -> None:
        """Takes the model over: dropout off, and attention replaced where the layout is shared.

        Args:
            layout: None probes the model and takes shared where that is valid, else warns and takes rows.
            autocast: run forward passes in this type, with master weights as they are.

        Raises:
            GroError: not a causal language model whose head is understood.
        """
        silence_dropout(model)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.autocast: Literal["bfloat16"] | None = autocast
        self._transform = probe.find_transform(model)
        self.layout: Layout = layout or _choose(model, self._transform)
        # Plain rows keep the model's own attention: the registered one knows nothing but plans.
        stock = probe.stock_attention(model)
        model.set_attn_implementation(attention.NAME if self.layout == "shared" else stock)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        *,
        dtype: str = "float32",
        device: str = "auto",
        activation_checkpointing: bool = False,
        allow_pickle: bool = False,
        autocast: Literal["bfloat16"] | None = None,
    ) -> Policy:
        """A model in Hugging Face format from a folder or the hub.

        Args:
            dtype: of the master weights, whatever the file holds.
            device: "auto" takes a CUDA device where there is one.
            activation_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
            allow_pickle: also read pickled weights, which can run code hidden in them.
            autocast: see `Policy`.

        Raises:
            GroError: what is wrong with the model, by file and tensor.
        """
        model, tokenizer = load(path_or_name, dtype=dtype, device=device, allow_pickle=allow_pickle)
        policy = cls(model, tokenizer, autocast=autocast)
        if activation_checkpointing:
            policy.checkpoint_activations()
        return policy

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def checkpoint_activations(self) -> None:
        """From now on keeps only each layer's input, and computes the rest again in the backward pass."""
        self.model.activation_checkpointing_enable()
        # It makes embeddings require a gradient, for a kind of checkpointing that is not ours: a frozen copy must not.
        self.model.disable_input_require_grads()
        # A layer checkpoints only while it is in training mode; nothing else of the model needs to be.
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True

    def packs(self, groups: Sequence[Group], tokens_per_micro: int, *, width: int | None = None) -> list[Pack]:
        """Micro-batches of at most so many tokens, in batch order; rows count as in `rows_of(groups)`.

        Args:
            groups: what to score.
            tokens_per_micro: the budget of a pack; a single row may exceed it.
            width: T of the scores, where the batch has longer completions than these groups; None: their longest.

        Raises:
            GroError: a row is longer than the model's table of positions.
        """
        limit = longest_row(self.model.config)
        if limit is not None:
            for index, group in enumerate(groups):
                row = len(group.prompt.ids) + max((len(c.ids) for c in group.completions), default=0)
                if row > limit:
                    raise GroError(f"group {index} has a row of {row} tokens; the model has positions for {limit}")
        alone = longest_together(self.model.config)
        shared = self.layout == "shared"
        return pack(groups, tokens_per_micro, shared=shared, width=width, alone_above=alone)

    def logp(self, pack: Pack, *, entropy: bool = False) -> Scored:
        """Scores a pack that `packs` made.  Differentiable once, unless under `torch.no_grad()`."""
        with self._precision():
            return score(self.model, pack, transform=self._transform, entropy=entropy)

    def hidden(self, pack: Pack) -> Tensor:
        """[M, H] hidden states of the positions that predict the pack's scored tokens, differentiable."""
        with self._precision():
            return hidden_states(self.model, pack)

    def snapshot(self) -> Policy:
        """A frozen copy of the policy as it is now: what a reference is."""
        frozen = copy.copy(self)
        frozen.model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return frozen

    def save(self, path: str | Path) -> None:
        """Writes Hugging Face format (safetensors and tokenizer), which plain transformers loads."""
        with quiet():
            self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.autocast))


def _choose(model: PreTrainedModel, transform: probe.LogitTransform) -> Layout:
    fault = probe.shared_layout_fault(model, transform)
    if fault is None:
        return "shared"
    warnings.warn(
        f"{type(model).__name__} cannot share prompts between completions: {fault}. "
        "It is trained on plain rows, which gives the same numbers and takes longer",
        stacklevel=3,
    )
    return "rows"
