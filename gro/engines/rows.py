"""Decoding over transformers' own caches: slower, for architectures without the registered attention.

Rows of equal prompt length are decoded together, so there is no padding, for which many of these
architectures (recurrent ones above all) have no correct treatment.  A finished row stays until its batch is
done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from gro.engines.samples import Samples


def decode_rows(model: PreTrainedModel, samples: Samples, slots: int) -> None:
    """Complete all samples, at most `slots` rows at a time."""
    for chunk in _chunks(samples, slots):
        _decode(model, samples, chunk)


def _chunks(samples: Samples, slots: int) -> Iterator[list[int]]:
    def length(s: int) -> int:
        return len(samples.prompts[s // samples.n].ids)

    order = sorted(range(len(samples.prompts) * samples.n), key=length)
    for _, equals in groupby(order, key=length):
        rows = list(equals)
        yield from (rows[i : i + slots] for i in range(0, len(rows), slots))


def _decode(model: Any, samples: Samples, chunk: list[int]) -> None:
    device = samples.length_S.device
    sample_R = torch.tensor(chunk, device=device)
    ids_RL = torch.tensor([samples.prompts[s // samples.n].ids for s in chunk], device=device)
    kwargs: dict[str, Any] = {"use_cache": True, "attention_mask": torch.ones_like(ids_RL)}
    inputs = model.prepare_inputs_for_generation(ids_RL, is_first_iteration=True, **kwargs)
    alive = torch.ones(len(chunk), dtype=torch.bool, device=device)
    while True:
        output = model(**inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        row_A = alive.nonzero()[:, 0]
        done = samples.extend(sample_R[row_A], output.logits[:, -1][row_A])
        alive[row_A[done]] = False
        if not alive.any():
            return
        # Finished rows repeat their last token; what they compute is never read.
        token_R = samples.ids_ST[sample_R, samples.length_S[sample_R] - 1]
        ids_RL = torch.cat([ids_RL, token_R[:, None]], 1)
        inputs = model.prepare_inputs_for_generation(ids_RL, next_sequence_length=1, **kwargs)
