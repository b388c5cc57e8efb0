"""The rewards of a run: specs from the recipe, scores onto completions, failures as data.

A reward that raises, hangs, dies or returns something unfit leaves `reward=None`, which masks the completion out of its
group.  It never becomes a 0.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gro.errors import GroError
from gro.rewards.batch import Batch, Trouble
from gro.rewards.combine import weighted_sum
from gro.rewards.failures import Failure, Tally, refuse_failures
from gro.rewards.functions import TrainerState
from gro.rewards.pool import MEMORY_LIMIT, Pool
from gro.rewards.ranges import ScoreRange
from gro.rewards.selfcheck import Canaries, check_order
from gro.rewards.spec import RewardSpec

if TYPE_CHECKING:  # only types: the rewards themselves never need torch
    from gro.types import Completion, Group

_NOT_COLUMNS = frozenset(
    ("prompt", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
)
"""Columns of the data that a reward receives under another name, or whose name is taken."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A completion that waits for its reward."""

    group: int
    at: int
    text: str
    prompt: Any
    """Text, or messages where the data row was conversational."""


class Scoring(Protocol):
    """What scores a batch for one reward: worker processes, or something inside the trainer's own."""

    @property
    def name(self) -> str: ...

    def score(self, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> Batch: ...

    def close(self) -> None: ...


@runtime_checkable
class Patient(Protocol):
    """What may wait for days, for people: told where the job ends meanwhile."""

    def stop_waiting(self) -> None: ...


Inside = Callable[[Mapping[str, Any]], Scoring]
"""Makes, from a reward's parameters, what scores inside the trainer's process.  It also sees the columns of INSIDE."""
INSIDE = ("prompt_ids", "group_index")
"""The prompt's token ids; which completions belong to one group."""


def scoring_of(
    spec: RewardSpec,
    inside: Mapping[str, Inside],
    time_limit: float | None = None,
    *,
    workers: int = 2,
    memory_limit: int = MEMORY_LIMIT,
) -> Scoring:
    """What scores by one item of a recipe's rewards: see `Rewards`."""
    place = spec.name_or_path
    if isinstance(place, str) and place in inside:
        return inside[place](spec.params)
    limit = spec.time_limit or time_limit
    return Pool(place, spec.params, time_limit=limit, workers=workers, memory_limit=memory_limit)


class Rewards:
    """Scores completions with one or several reward functions, each in processes of its own.

    >>> with Rewards([RewardSpec("maths")], decode=tokenizer_decode) as rewards:
    ...     groups = rewards.score(groups, step=3)
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec | str | Mapping[str, Any]],
        decode: Callable[[Sequence[int]], str],
        *,
        time_limit: float | None = None,
        failure_stop_share: float = 0.5,
        on_failure: Callable[[Failure], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        inside: Mapping[str, Inside] | None = None,
        workers: int = 2,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Starts the processes; raises GroError for a reward that is not found or cannot be loaded.

        decode: token ids to text, special tokens skipped.  time_limit: seconds for one call; None: what each function
        says.  failure_stop_share: `score` raises when a reward fails on more than this share of a step's completions.
        on_failure: called with every failure.  on_notice: called with what is found odd about a reward.
        inside: rewards that need no process of their own, by name.  workers: processes per samplewise reward.
        memory_limit: bytes of private memory per process.
        """
        self.specs = tuple(RewardSpec.parse(spec) for spec in specs)
        if not self.specs:
            raise GroError("rewards is empty: name at least one")
        if not 0 <= failure_stop_share <= 1:
            raise GroError(f"failure_stop_share is a share between 0 and 1, not {failure_stop_share!r}")
        self._decode = decode
        self._stop_share = failure_stop_share
        self._on_failure, self._on_notice = on_failure, on_notice
        self._canaries: dict[str, Canaries | None] = {}
        """Of the rewards that have been checked."""
        self._pools: dict[str, Scoring] = {}
        makers = inside or {}
        self.failures: list[Failure] = []
        """Of the latest call of `score`."""
        self.failure_counts: Counter[str] = Counter()
        """Since the beginning, by reward."""
        self.notices: list[str] = []
        """What was found odd about a reward: worth a line in the log."""
        self.logged_metrics: dict[str, float] = {}
        """What the rewards logged in the latest call of `score` (`log_metric`), averaged over calls."""
        self.logged_extra: dict[str, dict[tuple[int, int], Any]] = {}
        """What they logged per completion (`log_extra`): column → (group, completion) → value."""
        try:
            for spec in self.specs:
                pool = scoring_of(spec, makers, time_limit, workers=workers, memory_limit=memory_limit)
                self._pools[_fresh(pool.name, self._pools)] = pool
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, in the order of the specs: the keys of `Completion.rewards`."""
        return tuple(self._pools)

    @property
    def ranges(self) -> dict[str, ScoreRange]:
        """Of the rewards that are trained models: between which scores the rows lie that each was trained on."""
        known = {name: getattr(pool, "range", None) for name, pool in self._pools.items()}
        return {name: scores for name, scores in known.items() if scores is not None}

    def score(
        self, groups: Sequence[Group], *, step: int = 0, tell: Callable[[Tally], object] = refuse_failures
    ) -> list[Group]:
        """The same groups with `reward` and `rewards` set on every completion of role sample that has no reward yet.

        The reward is the weighted sum of the parts that apply; None if one of them failed or none applies.
        Raises GroError if a reward fails on more than `failure_stop_share` of them; where they are only a part of the
        step's completions, `tell` is given what is known of this part, to judge the whole.
        """
        samples = list(self._pending(groups))
        self.failures, self.logged_metrics, self.logged_extra = [], {}, {}
        if not samples:
            return list(groups)
        columns = _columns(groups, samples)
        state = TrainerState(global_step=step)
        prompts = [list(groups[sample.group].prompt.ids) for sample in samples]
        inside = columns | dict(zip(INSIDE, (prompts, [sample.group for sample in samples]), strict=True))
        with ThreadPoolExecutor(len(self._pools)) as threads:  # each waits for its own processes
            running = {
                name: threads.submit(pool.score, columns if isinstance(pool, Pool) else inside, state)
                for name, pool in self._pools.items()
            }
            try:
                for future in wait(running.values(), return_when=FIRST_EXCEPTION).done:
                    future.result()
                batches = {name: future.result() for name, future in running.items()}
            except BaseException:  # whoever waits for people would wait for nothing
                for pool in self._pools.values():
                    if isinstance(pool, Patient):
                        pool.stop_waiting()
                raise
        for name, batch in batches.items():
            self._note_failures(name, batch, groups, samples, step)
            self._note_logged(batch, samples)
        tally = Tally(len(samples), tuple(self.failures), self._stop_share)
        tell(tally)
        for name, batch in batches.items():
            if name not in tally.too_many:
                self._check(name, batch, columns, state)
        return _with_rewards(groups, samples, batches, self.specs)

    def close(self) -> None:
        """Kill the processes."""
        for pool in self._pools.values():
            pool.close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pending(self, groups: Sequence[Group]) -> Iterator[_Sample]:
        for g, group in enumerate(groups):
            waiting = [i for i, c in enumerate(group.completions) if c.role == "sample" and c.reward is None]
            if not waiting:
                continue
            row = group.prompt.row
            prompt = row["prompt"] if row.get("prompt") is not None else self._decode(group.prompt.ids)
            for i in waiting:
                yield _Sample(g, i, self._decode(group.completions[i].ids), prompt)

    def _note_failures(
        self, name: str, batch: Batch, groups: Sequence[Group], samples: Sequence[_Sample], step: int
    ) -> None:
        for row, score in sorted(batch.scores.items()):
            if not isinstance(score, Trouble) or score.kind == "skipped":
                continue
            sample = samples[row]
            failure = Failure(
                reward=name,
                kind=score.kind,
                message=score.message,
                step=step,
                prompt_key=groups[sample.group].prompt.key,
                sample=sample.at,
                prompt=_as_text(sample.prompt),
                completion=sample.text,
                traceback=score.traceback,
                output=score.output,
            )
            self.failures.append(failure)
            self.failure_counts[name] += 1
            if self._on_failure is not None:
                self._on_failure(failure)

    def _note_logged(self, batch: Batch, samples: Sequence[_Sample]) -> None:
        self.logged_metrics |= {name: statistics.fmean(values) for name, values in batch.metrics.items()}
        for column, by_row in batch.extra.items():
            self.logged_extra[column] = {(samples[r].group, samples[r].at): value for r, value in by_row.items()}

    def _check(self, name: str, batch: Batch, columns: Mapping[str, Sequence[Any]], state: TrainerState) -> None:
        pool = self._pools[name]
        if not isinstance(pool, Pool):
            return
        if name not in self._canaries:
            notice = check_order(pool, name, batch, columns, state)
            self._canaries[name] = Canaries.of(pool, batch, columns, state)
        else:
            canaries = self._canaries[name]
            notice = None if canaries is None else canaries.drifted(pool, name)
        if notice is not None:
            self.notices.append(notice)
            if self._on_notice is not None:
                self._on_notice(notice)


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """`reward`, and `rewards/<name>/mean` and `/std` (of a sample), over the completions that have them."""
    completions = list(chain.from_iterable(group.completions for group in groups))
    by_name: dict[str, list[float]] = {}
    for completion in completions:
        for name, value in completion.rewards.items():
            if value is not None:
                by_name.setdefault(name, []).append(value)
    metrics: dict[str, float] = {}
    if totals := [c.reward for c in completions if c.role == "sample" and c.reward is not None]:
        metrics["reward"] = statistics.fmean(totals)
    for name, values in by_name.items():
        metrics[f"rewards/{name}/mean"] = statistics.fmean(values)
        metrics[f"rewards/{name}/std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return metrics


def _columns(groups: Sequence[Group], samples: Sequence[_Sample]) -> dict[str, list[Any]]:
    """What a reward function receives.  A column that only some rows have is None in the others."""
    rows = [groups[sample.group].prompt.row for sample in samples]
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_COLUMNS)
    return {
        "prompts": [sample.prompt for sample in samples],
        "completions": [_like_prompt(sample) for sample in samples],
        "completion_ids": [list(_completion(groups, sample).ids) for sample in samples],
    } | {name: [row.get(name) for row in rows] for name in names}


def _like_prompt(sample: _Sample) -> Any:
    """A conversation's completion is a list of messages, as its prompt is."""
    if isinstance(sample.prompt, str):
        return sample.text
    return [{"role": "assistant", "content": sample.text}]


def _completion(groups: Sequence[Group], sample: _Sample) -> Completion:
    return groups[sample.group].completions[sample.at]


def _with_rewards(
    groups: Sequence[Group],
    samples: Sequence[_Sample],
    batches: Mapping[str, Batch],
    specs: Sequence[RewardSpec],
) -> list[Group]:
    completions = [list(group.completions) for group in groups]
    for row, sample in enumerate(samples):
        scores = {name: batch.scores[row] for name, batch in batches.items()}
        troubles = {name: score.kind for name, score in scores.items() if isinstance(score, Trouble)}
        parts = {
            name: None if isinstance(score, Trouble) else score
            for name, score in scores.items()
            if troubles.get(name) != "skipped"  # which is no failure, and a part that is None may be one
        }
        completions[sample.group][sample.at] = replace(
            completions[sample.group][sample.at],
            reward=None if troubles else weighted_sum(parts, specs),
            rewards=parts,
        )
    return [replace(group, completions=tuple(mine)) for group, mine in zip(groups, completions, strict=True)]


def _fresh(name: str, taken: Mapping[str, Any]) -> str:
    """Two rewards of one name are told apart by a number."""
    number = 2
    candidate = name
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _as_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
