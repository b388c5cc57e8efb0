"""`gro reward-model`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from gro.algorithms.describe import formula
from gro.assemble import (
    MODEL,
    Data,
    Start,
    build_algorithm,
    cut,
    decoder,
    in_step,
    load_data,
    load_policy,
    longest_offline,
)
from gro.config import Config
from gro.errors import GroError
from gro.evaluation import bag_of_words, judged_picture
from gro.evaluation.estimates import Estimate
from gro.evaluation.judged import JudgedPair, calibration, judge, measure, wins
from gro.jobs.budgeting import with_budget
from gro.jobs.interrupts import Interrupts
from gro.jobs.launch import followed, job_of, nowhere, quiet_console
from gro.jobs.running import (
    check_identity,
    continue_or_begin,
    is_finished,
    keeper_of,
    note_data,
    open_run,
    run_of,
    shown,
    start_together,
    tell_results,
)
from gro.jobs.show import interval
from gro.objective import Algorithm
from gro.policy.averaging import average
from gro.policy.reward_model import RewardModel, judged
from gro.preflight import preflight, say
from gro.rewards.ranges import ScoreRange
from gro.runs import files
from gro.runs.progress import progress
from gro.runs.store import Run
from gro.runs.terminal import console as patient_console
from gro.runs.terminal import number
from gro.training.checkpoint import Carried, export
from gro.training.learner import PolicyLearner
from gro.training.loop import Resumed, train
from gro.training.processes import Processes
from gro.training.recording import Recorder
from gro.training.shaping import Shaped
from gro.training.sources import Mixture, Offline
from gro.types import Group

FOUND, PICTURE = "reward-model.json", "reward-model.svg"
"""What the evaluation found, in numbers and drawn."""
_RANGE_ROWS = 256
"""Of each data set at most so many rows tell between which scores they lie."""
PROBE, MEMBERS = "probe", "members"
"""Runs inside the run: the head alone, and the models that are averaged."""


def run_reward_model(config: Config, *, console: Console | None = None) -> Path:
    """Trains a reward model by a recipe; returns the run directory, in which it is exported."""
    with job_of(config) as job:
        console = console or (patient_console() if job.processes.first else quiet_console())
        if not is_finished(config, console, job.processes):
            with run_of(config, console, job) as (run, interrupts):
                _train(followed(config, job), run, console, interrupts, in_step(config, job.processes))
        path = Path(config.run).expanduser().absolute()
        if job.processes.first:
            tell_results(path, console)
    return path


def load_reward_model(config: Config, start: Start) -> RewardModel:
    """The recipe's starting model: a reward model goes on from its scores, a language model begins with 0 for all."""
    assert start.path is not None
    classes = start.architecture.architectures or ()
    if any(name.endswith("ForSequenceClassification") for name in classes):
        settings = config.model
        model = RewardModel.read(
            start.path,
            dtype=settings.dtype,
            device=settings.device,
            allow_pickle=settings.allow_pickle,
            autocast=settings.autocast,
            lora=settings.lora,
            seed=config.training.seed,
        )
        if settings.activation_checkpointing:
            model.checkpoint_activations()
        return model
    return RewardModel.beside(load_policy(config, start.path))


def _train(config: Config, run: Run, console: Console, interrupts: Interrupts, processes: Processes) -> None:
    algorithm = build_algorithm(config)
    if not algorithm.scores:
        raise GroError(
            f"algorithm: {algorithm.name} trains a policy, which is `gro train`; reward models are trained by "
            "bradley_terry (pairs), plackett_luce or all_pairs (rankings and ratings)"
        )
    say(console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    state = continue_or_begin(run, console, processes)
    start = start_together(config, run, processes)
    data = load_data(config, start, run)
    check_identity(run, config, data, start, processes)
    note_data(run, data)
    rows = preflight(config, start, data, console).held_out
    fitting = Fitting(config, algorithm, data, start, rows, console, interrupts, processes)
    model = load_reward_model(config, start)
    fitting = replace(fitting, config=with_budget(config, run, console, model, algorithm, data, processes))
    cut(config, model)
    settings = config.reward_model
    if settings.probe_steps:
        fitting.fit_apart(model, run.path / PROBE, steps=settings.probe_steps, head_only=True)
    recorded: Mapping[int, dict[str, float]] = {}
    compared: dict[str, Any] = {}
    if settings.members == 1:
        recorded = fitting.fit(model, run, state)
        scores = fitting.range_of(model)
        export(model, run.path / MODEL, processes, also=scores.write)
    else:
        compared = _average(fitting, model, run)
        model = RewardModel.read(run.path / MODEL, dtype=config.model.dtype, device=config.model.device)
    pairs = fitting.judge(model) if rows else []
    if rows and processes.first:
        _tell(run, console, pairs, _baseline(data, settings.label_noise, rows, start), compared)
    last = config.training.steps
    run.finish(
        algorithm=algorithm.name,
        formula="\n".join(formula(algorithm)),
        before=recorded.get(0, {}),
        after=recorded.get(last, {}),
    )


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a reward model is trained with, by itself or as one of several."""

    config: Config
    algorithm: Algorithm
    data: Data
    start: Start
    rows: Sequence[Group]
    """Held out."""
    console: Console
    interrupts: Interrupts
    processes: Processes

    def fit_apart(self, model: RewardModel, path: Path, **how: Any) -> None:
        """As `fit`, in a run of its own inside the run, unless an earlier attempt has finished it."""
        processes = self.processes
        with open_run(self.config, path, processes) as part:
            if processes.join([(path / MODEL).is_dir()])[0]:
                check_identity(part, self.config, self.data, self.start, processes)
            else:
                state = continue_or_begin(part, self.console, processes)
                check_identity(part, self.config, self.data, self.start, processes)
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
        config, noise = self.config, self.config.reward_model.label_noise
        seed = config.training.seed + member
        portions = replace(config.training, steps=steps or config.training.steps, seed=seed)
        offline = [(Offline(rows, config.prompts_per_step, seed), weight) for rows, weight in self.data.offline]
        shapes = [*([partial(turned_round, noise)] if noise else []), as_read]
        trained = {id(p) for p in ([model.head.weight] if head_only else model.trained().values())}
        for parameter in model.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        with progress(portions.steps, self.algorithm.name, None if self.processes.first else nowhere()) as show:
            recorder = Recorder(run, show, model, self.algorithm, portions)
            learner = PolicyLearner(
                model,
                self.algorithm,
                config.optimizer,
                total_updates=portions.steps * portions.updates_per_step,
                tokens_per_micro=portions.micro_tokens,
                entropy=False,
                processes=self.processes,
            )

            def metrics() -> dict[str, float]:
                return {name: estimate.value for name, estimate in measure(self.judge(model)).items()}

            source = Shaped(Mixture(offline, config.prompts_per_step), shapes)
            carried = Carried(model, source, recorder, {"policy": learner.descent}, processes=self.processes)
            carried = replace(carried, elastic=config.distributed.elastic)
            keep = keeper_of(config, run, carried, self.interrupts)
            resumed = Resumed() if state is None else carried.load(state)
            if state is None:
                recorder.evaluated(0, metrics if self.rows else None)
            with self.interrupts.patient():
                train(
                    model,
                    source,
                    self.algorithm,
                    [learner],
                    portions,
                    recorder,
                    length_limit=longest_offline(self.data) + 1,
                    evaluate=metrics if self.rows else None,
                    resumed=resumed,
                    keep=keep,
                    processes=self.processes,
                )
                keep.finish()
        for parameter in model.trained().values():
            parameter.requires_grad_(True)
        return recorder.evaluations

    def range_of(self, model: RewardModel) -> ScoreRange:
        """Between which scores the model's own rows lie: some of those that it learnt from, and those held out."""
        learnt = [rows[i] for rows, _ in self.data.offline for i in range(0, len(rows), 1 + len(rows) // _RANGE_ROWS)]
        scores = model.scores([*learnt, *self.rows], self.config.training.micro_tokens)
        return ScoreRange.of(scores.tolist())

    def judge(self, model: RewardModel) -> list[JudgedPair]:
        """The held-out pairs, scored."""
        column = self.config.eval.slice if self.config.eval is not None else None
        return judge(model, self.rows, self.config.training.micro_tokens, column)


def _average(fitting: Fitting, start: RewardModel, run: Run) -> dict[str, Any]:
    """Trains the members and writes their average as the run's model; what is to be compared with it."""
    judged_by: list[list[JudgedPair]] = []
    folders = []
    for member in range(fitting.config.reward_model.members):
        path = run.path / MEMBERS / str(member)
        model = start.copy()
        fitting.fit_apart(model, path, member=member)
        folders.append(path / MODEL)
        judged_by.append(fitting.judge(model))
    if fitting.processes.first:
        with files.new_directory(run.path / MODEL) as folder:
            average(folders, folder)
            mean = RewardModel.read(folder, dtype=fitting.config.model.dtype, device=fitting.config.model.device)
            fitting.range_of(mean).write(folder)
    fitting.processes.any(False)  # the others read what the first one has written
    if not fitting.rows:
        return {}
    together = [_mean_of_scores(same) for same in zip(*judged_by, strict=True)]
    return {
        "members": [asdict(wins([p.gap for p in pairs])) for pairs in judged_by],
        "mean_of_scores": asdict(wins([p.gap for p in together])),
    }


def _mean_of_scores(same: Sequence[JudgedPair]) -> JudgedPair:
    """One pair as the ensemble judges it."""
    return replace(same[0], chosen=fmean(p.chosen for p in same), rejected=fmean(p.rejected for p in same))


def as_read(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """The shape in which a reward model reads groups."""
    return [judged(group) for group in groups], {}


def turned_round(share: float, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """This share of the rows with the order of their rewards reversed: the same rows at every pass."""
    return [_reversed(g) if random.Random(f"label noise/{g.prompt.key}").random() < share else g for g in groups], {}


def _reversed(group: Group) -> Group:
    completions = (replace(c, reward=None if c.reward is None else -c.reward) for c in group.completions)
    return replace(group, completions=tuple(completions))


def _baseline(data: Data, noise: float, rows: Sequence[Group], start: Start) -> dict[str, Estimate]:
    """Accuracy of words alone, learnt from the same labels; empty without scikit-learn or with too few pairs."""
    if not bag_of_words.available():
        return {}
    decode = decoder(start.tokenizer)

    def texts(groups: Sequence[Group]) -> list[bag_of_words.Pair]:
        found = []
        for group in groups:
            known = [(c.reward, decode(c.ids)) for c in group.completions if c.reward is not None]
            found += [(good, bad) for r, good in known for q, bad in known if r > q]
        return found

    learnt = [group for dataset, _ in data.offline for group in dataset]
    train_pairs = texts(turned_round(noise, learnt)[0] if noise else learnt)
    if len(train_pairs) < bag_of_words.FEWEST:
        return {}
    gaps = bag_of_words.bag_of_words_gaps(train_pairs, texts(rows))
    return {"accuracy_bag_of_words": wins(gaps)}


def _tell(
    run: Run,
    console: Console,
    pairs: Sequence[JudgedPair],
    baseline: dict[str, Estimate],
    compared: dict[str, Any],
) -> None:
    """Writes what the held-out pairs show to the run, and shows it."""
    if not pairs:
        raise GroError("eval.data: of no two completions of a prompt is known which one is better")
    found = measure(pairs) | baseline
    bins = calibration(pairs)
    numbers: dict[str, Any] = {
        "pairs": len(pairs),
        "metrics": {name: asdict(estimate) for name, estimate in found.items()},
        "calibration": [asdict(b) for b in bins],
        "warm": compared,
        "scores": {"chosen": [p.chosen for p in pairs], "rejected": [p.rejected for p in pairs]},
    }
    files.write_json(run.path / FOUND, numbers)
    files.write_text(run.path / PICTURE, judged_picture.draw(pairs))
    table = Table("metric", "value", "95 % interval")
    for name, estimate in found.items():
        table.add_row(name, number(estimate.value), interval(estimate))
    for i, member in enumerate(compared.get("members", ())):
        table.add_row(f"accuracy of member {i} alone", number(member["value"]), interval(Estimate(**member)))
    if "mean_of_scores" in compared:
        mean = Estimate(**compared["mean_of_scores"])
        table.add_row("accuracy of the mean of their scores", number(mean.value), interval(mean))
    console.print(table)
    if not baseline:
        say(console, f"the baseline of words needs scikit-learn and at least {bag_of_words.FEWEST} training pairs")
    say(console, f"{len(pairs)} held-out pairs, of which ties count one half", f"drawn: {shown(run.path / PICTURE)}")
