"""How one reward model is fitted: in a run of the job, or in a run of its own inside it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gro.assemble import MODEL, longest_offline
from gro.config import Config
from gro.evaluation.judged import JudgedPair, judge, measure
from gro.jobs.launch import nowhere
from gro.jobs.running import check_identity, continue_or_begin, keeper_of, open_run
from gro.jobs.work import Begun, Work
from gro.policy.reward_model import RewardModel, judged
from gro.rewards.ranges import ScoreRange
from gro.runs.progress import progress
from gro.runs.store import Run
from gro.training.checkpoint import Carried, export
from gro.training.learner import PolicyLearner
from gro.training.loop import Resumed, train
from gro.training.recording import Recorder
from gro.training.shaping import Shaped
from gro.training.sources import Mixture, Offline
from gro.types import Group

_RANGE_ROWS = 256
"""Of each data set at most so many rows tell between which scores they lie."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a reward model is trained with, by itself or as one of several."""

    work: Work
    begun: Begun
    rows: Sequence[Group]
    """Held out."""

    @property
    def config(self) -> Config:
        """The recipe."""
        return self.work.config

    def fit_apart(self, model: RewardModel, path: Path, **how: Any) -> None:
        """As `fit`, in a run of its own inside the run, unless an earlier attempt has finished it."""
        processes, begun = self.work.processes, self.begun
        with open_run(self.config, path, processes) as part:
            if processes.join([(path / MODEL).is_dir()])[0]:
                check_identity(part, self.config, begun.data, begun.start, processes)
            else:
                state = continue_or_begin(part, self.work.console, processes)
                check_identity(part, self.config, begun.data, begun.start, processes)
                self.fit(model, part, state, **how)
                export(model, path / MODEL, processes)
                processes.any(False)  # the others read what the first one has written
        model.reload(path / MODEL)

    def fit(
        self,
        model: RewardModel,
        run: Run,
        state: Path | None,
        *,
        steps: int | None = None,
        head_only: bool = False,
        member: int = 0,
    ) -> Mapping[int, dict[str, float]]:
        """Trains the model in place and records it; returns the evaluations by step.

        state: from which an earlier attempt is continued.  head_only: nothing but the head learns.  member: which order
        of the rows.
        """
        config, algorithm, processes = self.config, self.begun.algorithm, self.work.processes
        noise = config.reward_model.label_noise
        seed = config.training.seed + member
        portions = replace(config.training, steps=steps or config.training.steps, seed=seed)
        offline = [(Offline(rows, config.prompts_per_step, seed), weight) for rows, weight in self.begun.data.offline]
        shapes = [*([partial(turned_round, noise)] if noise else []), as_read]
        trained = {id(p) for p in ([model.head.weight] if head_only else model.trained().values())}
        for parameter in model.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        with progress(portions.steps, algorithm.name, None if processes.first else nowhere()) as show:
            recorder = Recorder(run, show, model, algorithm, portions)
            learner = PolicyLearner(
                model,
                algorithm,
                config.optimizer,
                total_updates=portions.steps * portions.updates_per_step,
                tokens_per_micro=portions.micro_tokens,
                entropy=False,
                processes=processes,
            )

            def metrics() -> dict[str, float]:
                return {name: estimate.value for name, estimate in measure(self.judge(model)).items()}

            source = Shaped(Mixture(offline, config.prompts_per_step), shapes)
            carried = Carried(model, source, recorder, {"policy": learner.descent}, processes=processes)
            carried = replace(carried, elastic=config.distributed.elastic)
            keep = keeper_of(config, run, carried, self.work.interrupts)
            resumed = Resumed() if state is None else carried.load(state)
            if state is None:
                recorder.evaluated(0, metrics if self.rows else None)
            with self.work.interrupts.patient():
                train(
                    model,
                    source,
                    algorithm,
                    [learner],
                    portions,
                    recorder,
                    length_limit=longest_offline(self.begun.data) + 1,
                    evaluate=metrics if self.rows else None,
                    resumed=resumed,
                    keep=keep,
                    processes=processes,
                )
                keep.finish()
        for parameter in model.trained().values():
            parameter.requires_grad_(True)
        return recorder.evaluations

    def range_of(self, model: RewardModel) -> ScoreRange:
        """Between which scores the model's own rows lie: some of those that it learnt from, and those held out."""
        offline = [rows for rows, _ in self.begun.data.offline]
        learnt = [rows[i] for rows in offline for i in range(0, len(rows), 1 + len(rows) // _RANGE_ROWS)]
        scores = model.scores([*learnt, *self.rows], self.config.training.micro_tokens)
        return ScoreRange.of(scores.tolist())

    def judge(self, model: RewardModel) -> list[JudgedPair]:
        """The held-out pairs, scored."""
        column = self.config.eval.slice if self.config.eval is not None else None
        return judge(model, self.rows, self.config.training.micro_tokens, column)


def as_read(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """The shape in which a reward model reads groups."""
    return [judged(group) for group in groups], {}


def turned_round(share: float, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """This share of the rows with the order of their rewards reversed: the same rows at every pass."""
    return [_reversed(g) if random.Random(f"label noise/{g.prompt.key}").random() < share else g for g in groups], {}


def _reversed(group: Group) -> Group:
    completions = (replace(c, reward=None if c.reward is None else -c.reward) for c in group.completions)
    return replace(group, completions=tuple(completions))
