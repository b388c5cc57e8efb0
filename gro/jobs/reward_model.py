"""`gro reward-model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
    load_policy,
)
from gro.config import Config
from gro.errors import GroError
from gro.evaluation import bag_of_words, judged_picture
from gro.evaluation.estimates import Estimate
from gro.evaluation.judged import JudgedPair, calibration, measure, wins
from gro.jobs.budgeting import with_budget
from gro.jobs.fitting import Fitting, turned_round
from gro.jobs.running import (
    shown,
)
from gro.jobs.show import interval
from gro.jobs.work import Work, begin, carry_out
from gro.policy.averaging import average
from gro.policy.reward_model import RewardModel
from gro.preflight import preflight, say
from gro.runs import files
from gro.runs.store import Run
from gro.runs.terminal import number
from gro.training.checkpoint import export
from gro.types import Group

FOUND, PICTURE = "reward-model.json", "reward-model.svg"
"""What the evaluation found, in numbers and drawn."""
PROBE, MEMBERS = "probe", "members"
"""Runs inside the run: the head alone, and the models that are averaged."""


def run_reward_model(config: Config, *, console: Console | None = None) -> Path:
    """Trains a reward model by a recipe; returns the run directory, in which it is exported."""
    algorithm = build_algorithm(config)
    if not algorithm.scores:
        raise GroError(
            f"algorithm: {algorithm.name} trains a policy, which is `gro train`; reward models are trained by "
            "bradley_terry (pairs), plackett_luce or all_pairs (rankings and ratings)"
        )
    return carry_out(config, _train, console)


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


def _train(work: Work) -> None:
    begun = begin(work)
    run, data, start = work.run, begun.data, begun.start
    rows = preflight(work.config, start, data, work.console).held_out
    model = load_reward_model(work.config, start)
    config = with_budget(work.config, run, work.console, model, begun.algorithm, data, work.processes)
    cut(config, model)
    fitting = Fitting(replace(work, config=config), begun, rows)
    settings = config.reward_model
    if settings.probe_steps:
        fitting.fit_apart(model, run.path / PROBE, steps=settings.probe_steps, head_only=True)
    recorded: Mapping[int, dict[str, float]] = {}
    compared: dict[str, Any] = {}
    if settings.members == 1:
        recorded = fitting.fit(model, run, begun.state)
        scores = fitting.range_of(model)
        export(model, run.path / MODEL, work.processes, also=scores.write)
    else:
        compared = _average(fitting, model, run)
        model = RewardModel.read(run.path / MODEL, dtype=config.model.dtype, device=config.model.device)
    pairs = fitting.judge(model) if rows else []
    if rows and work.processes.first:
        _tell(run, work.console, pairs, _baseline(data, settings.label_noise, rows, start), compared)
    last = config.training.steps
    run.finish(
        algorithm=begun.algorithm.name,
        formula="\n".join(formula(begun.algorithm)),
        before=recorded.get(0, {}),
        after=recorded.get(last, {}),
    )


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
    if fitting.work.processes.first:
        with files.new_directory(run.path / MODEL) as folder:
            average(folders, folder)
            mean = RewardModel.read(folder, dtype=fitting.config.model.dtype, device=fitting.config.model.device)
            fitting.range_of(mean).write(folder)
    fitting.work.processes.any(False)  # the others read what the first one has written
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
