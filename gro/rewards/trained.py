"""A trained reward model as a reward: it runs in the trainer's own process and reads the policy's token ids."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gro.rewards.batch import Batch, Score, Trouble
from gro.rewards.functions import TrainerState
from gro.rewards.ranges import ScoreRange

if TYPE_CHECKING:  # it imports torch; the worker processes, which import this package, never need it
    from gro.policy.reward_model import RewardModel


def reward_model(path: str, tokens_per_micro: int = 16384) -> list[float]:
    """A reward model's score: of a run of `gro reward-model`, or any sequence-classification model with one score.

    path: its folder or run directory.  It must have the policy's tokenizer.
    tokens_per_micro: most tokens in one forward pass.
    """
    raise AssertionError("it is made by the job that uses it: Rewards(inside=...)")


class Trained:
    """What scores in place of worker processes."""

    name = "reward_model"

    def __init__(self, model: RewardModel, tokens_per_micro: int = 16384, scores: ScoreRange | None = None) -> None:
        """scores: of the model's own rows, where it is known."""
        self._model, self._tokens_per_micro, self.range = model, tokens_per_micro, scores

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Batch:
        """Scores of the completions; a prompt is read once for those that follow one another."""
        from gro.types import Completion, Group, Prompt

        rows = zip(columns["prompt_ids"], columns["completion_ids"], strict=True)
        groups = [
            Group(Prompt(tuple(prompt)), tuple(Completion(tuple(ids)) for _, ids in same))
            for prompt, same in groupby(rows, key=lambda row: row[0])
        ]
        values = self._model.scores(groups, self._tokens_per_micro).tolist()
        scores: dict[int, Score] = {
            row: value if math.isfinite(value) else Trouble("value", f"the reward model's score is {value}")
            for row, value in enumerate(values)
        }
        return Batch(columns, state, deque(), scores)

    def close(self) -> None:
        """Nothing to end: there is no process."""
