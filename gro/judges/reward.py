"""A judge as a reward: it runs in the trainer's own process, since it may be a model that is decoded here."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from gro.judges.endpoint import Endpoint
from gro.judges.judge import Case, Comparison, Judge, Rating
from gro.judges.local import Local
from gro.judges.spec import JudgeSettings
from gro.rewards.batch import Batch, Score, Trouble
from gro.rewards.functions import TrainerState

_NOT_COLUMNS = frozenset(("prompts", "prompt_ids", "completions", "completion_ids", "group_index"))


def judge(model: str, **settings: Any) -> list[float | None]:
    """What a judge says: its score, or the share of comparisons that a completion wins, ties counting one half.

    model: a folder, hub name or run that is decoded here; with base_url, the endpoint's name for it.
    settings: as in `gro.judges.JudgeSettings`.

    >>> judge("runs/judge", kind="scores", scale=[0, 5])
    """
    raise AssertionError("it is made by the job that uses it: Rewards(inside=...)")


def open_judge(settings: JudgeSettings) -> Judge:
    """The judge with its model or endpoint; a GroError where either cannot be had."""
    return Judge(settings, Endpoint(settings) if settings.base_url else Local.load(settings))


class JudgeReward:
    """What scores in place of worker processes."""

    name = "judge"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Batch:
        """A score of each completion by itself, against a column of the data, or against the others of its group.

        A completion without any comparison to win has no reward, for which the reward does not apply.
        """
        cases = _cases(columns)
        settings = self.judge.settings
        if settings.kind == "scores":
            scores = {row: _score(found) for row, found in enumerate(self.judge.rate(cases))}
        elif settings.against is not None:
            scores = self._against(cases, settings.against)
        else:
            scores = self._among(cases, columns["prompt_ids"])
        return Batch(columns, state, deque(), scores)

    def close(self) -> None:
        """Closes the judge."""
        self.judge.close()

    def _against(self, cases: Sequence[Case], column: str) -> dict[int, Score]:
        scores: dict[int, Score] = {}
        able = []
        for row, case in enumerate(cases):
            if isinstance(case.row.get(column), str):
                able.append(row)
            else:
                scores[row] = Trouble("raised", f"against: the row has no text in the column {column!r}")
        pairs = [Case(cases[row].prompt, (*cases[row].answers, cases[row].row[column]), cases[row].row) for row in able]
        return scores | {row: _score(c) for row, c in zip(able, self.judge.compare(pairs), strict=True)}

    def _among(self, cases: Sequence[Case], prompt_ids: Sequence[Sequence[int]]) -> dict[int, Score]:
        """Every pair of a group is compared, both ways round."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(prompt_ids):
            groups.setdefault(tuple(ids), []).append(row)
        pairs = [pair for rows in groups.values() for pair in combinations(rows, 2)]
        asked = [Case(cases[i].prompt, (*cases[i].answers, *cases[j].answers), cases[i].row) for i, j in pairs]
        won: dict[int, list[float]] = {row: [] for row in range(len(cases))}
        failed: dict[int, Comparison] = {}
        for (i, j), found in zip(pairs, self.judge.compare(asked), strict=True):
            if found.value is None:
                failed |= {i: found, j: found}
            else:
                won[i].append(found.value)
                won[j].append(1 - found.value)
        return {
            row: fmean(values) if values else _score(failed[row]) if row in failed else None
            for row, values in won.items()
        }


def _cases(columns: Mapping[str, Sequence[Any]]) -> list[Case]:
    names = [name for name in columns if name not in _NOT_COLUMNS]
    return [
        Case(prompt, (_text(completion),), {name: columns[name][row] for name in names})
        for row, (prompt, completion) in enumerate(zip(columns["prompts"], columns["completions"], strict=True))
    ]


def _text(completion: Any) -> str:
    """A conversation's completion is a list of messages."""
    return completion if isinstance(completion, str) else "\n".join(str(turn["content"]) for turn in completion)


def _score(found: Comparison | Rating) -> Score:
    """The value, or why there is none: never a 0."""
    if found.value is not None:
        return found.value
    said = "\n\n".join(reply.text for reply in found.replies if reply.text is not None)
    return Trouble("value" if said else "raised", f"the judge gave no verdict: {found.problem}", output=said)
