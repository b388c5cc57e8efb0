"""What a run keeps of some groups of a step: texts, rewards, and what the first update computed of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gro.runs.records import RolloutRecord
from gro.training.batching import Minibatch
from gro.training.learner import Update
from gro.types import rows_of


def rollout_records(
    update: Update | None, minibatch: Minibatch, most_groups: int, decode: Callable[[list[int]], Any]
) -> list[RolloutRecord]:
    """The first groups of the step's first update, with what it computed of them; of the step where there is none."""
    seen = update or minibatch

    def text(ids: Sequence[int]) -> str:
        return str(decode(list(ids)))

    batch = seen.batch
    records = []
    for row, (g, group, completion) in enumerate(rows_of(seen.groups)):
        if g >= most_groups:
            break
        if completion.role == "mismatch":  # nobody's answer to this prompt
            continue
        n = len(completion.ids)

        def tokens(quantity_BX, row: int = row, n: int = n):
            if quantity_BX is None:
                return math.nan
            return quantity_BX[row, :n] if quantity_BX.shape[1] != 1 else quantity_BX[row]

        records.append(
            RolloutRecord(
                group=g,
                row=row,
                prompt=text(group.prompt.ids),
                prompt_ids=group.prompt.ids,
                completion=text(completion.ids),
                completion_ids=completion.ids,
                role=completion.role,
                reward=completion.reward,
                rewards=completion.rewards,
                finish=completion.finish,
                tokens={
                    "logp": tokens(update and update.logp_BT),
                    "sampler": tokens(batch.sampler_BT),
                    "ref": tokens(batch.ref_BT),
                    "old": tokens(batch.old_BT),
                    "value": tokens(batch.values_BT),
                    "return": tokens(batch.returns_BT),
                    "advantage": tokens(batch.advantage_BX),
                    "entropy": tokens(batch.entropy_BT),
                    "coefficient": tokens(update and update.c_BT),
                    "trained": tokens(batch.mask_BT.float()),
                },
                key=group.prompt.key,
                temperature=completion.temperature,
                version=completion.version,
            )
        )
    return records
