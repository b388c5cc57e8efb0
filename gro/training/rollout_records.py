"""What a run keeps of some groups of a step: texts, rewards, and what the first update computed of every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gro.objective import Algorithm, FromLoss
from gro.objective.factors import decompose, pushing
from gro.runs.records import FACTORS, RolloutRecord, factor
from gro.training.batching import Minibatch, to_device
from gro.training.learner import Update
from gro.types import Batch, rows_of


def rollout_records(
    update: Update | None,
    minibatch: Minibatch,
    algorithm: Algorithm,
    most_groups: int,
    decode: Callable[[list[int]], Any],
) -> list[RolloutRecord]:
    """The first groups of the step's first update, with what it computed of them; of the step where there is none."""
    seen = update or minibatch
    rows = [(row, place) for row, place in enumerate(rows_of(seen.groups)) if place[0] < most_groups]
    if not rows:
        return []
    known = _known(seen.batch, update, algorithm, len(rows))
    return [
        RolloutRecord(
            group=g,
            row=row,
            prompt=str(decode(list(group.prompt.ids))),
            prompt_ids=group.prompt.ids,
            completion=str(decode(list(completion.ids))),
            completion_ids=completion.ids,
            role=completion.role,
            reward=completion.reward,
            rewards=completion.rewards,
            finish=completion.finish,
            tokens={name: value_BX[row, : len(completion.ids)] for name, value_BX in known.items()},
            key=group.prompt.key,
            temperature=completion.temperature,
            version=completion.version,
        )
        for row, (g, group, completion) in rows
        if completion.role != "mismatch"  # nobody's answer to this prompt
    ]


def _known(batch: Batch, update: Update | None, algorithm: Algorithm, rows: int) -> dict[str, np.ndarray]:
    """[R, X] of the first rows, on the host, by the names under which it is recorded."""
    here = to_device(batch.rows(torch.arange(rows, device=batch.mask_BT.device)), "cpu")
    found: dict[str, Tensor | None] = {
        "sampler": here.sampler_BT,
        "ref": here.ref_BT,
        "old": here.old_BT,
        "value": here.values_BT,
        "return": here.returns_BT,
        "advantage": here.advantage_BX,
        "entropy": here.entropy_BT,
        "trained": here.mask_BT,
    }
    if update is not None:
        found |= {"logp": update.logp_BT[:rows], "coefficient": update.c_BT[:rows]}
        found |= _factors(update, here, algorithm)
    return {name: value_BX.cpu().float().numpy() for name, value_BX in found.items() if value_BX is not None}


def _factors(update: Update, here: Batch, algorithm: Algorithm) -> dict[str, Tensor]:
    """[R, T] by which factors the terms come to the coefficients of the rows that are here.

    Other rows are needed only where a term looks at the whole update: the counts of the shares are known.
    """
    rows = len(here.mask_BT)
    everywhere = algorithm.scope == "batch"
    batch = to_device(update.batch, "cpu") if everywhere else here
    logp_BT = (update.logp_BT if everywhere else update.logp_BT[:rows]).cpu()
    found: dict[str, Tensor] = {}
    for k, (term, factors) in enumerate(zip(pushing(algorithm), decompose(logp_BT, batch, algorithm), strict=True)):
        measure = term.unit if isinstance(term, FromLoss) else term.measure or term.unit
        for name in FACTORS:
            value_BT = getattr(factors, f"{name}_BT")
            if value_BT is not None and not (name == "epsilon" and measure.per_token):  # there it is ℓ − u
                found[factor(k, name)] = value_BT[:rows]
    return found
