"""`gro reward-model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gro.algorithms.describe import formula
from gro.assemble import MODEL, Data, Start, build_algorithm, decoder, load_data, load_policy, longest_offline, start_of
from gro.config import Config
from gro.errors import GroError
from gro.evaluation import bag_of_words, judged_picture
from gro.evaluation.estimates import Estimate
from gro.evaluation.judged import JudgedPair, calibration, judge, measure, wins
from gro.jobs.running import LOGGING, begin, check_room, note_data, shown, tell_results
from gro.jobs.show import interval
from gro.policy.reward_model import RewardModel, judged
from gro.preflight import check_data, held_out_rows, say
from gro.runs import files
from gro.runs.progress import progress
from gro.runs.store import Run
from gro.runs.terminal import console as patient_console
from gro.runs.terminal import number
from gro.training.learner import PolicyLearner
from gro.training.loop import train
from gro.training.recording import Recorder
from gro.training.shaping import Shaped
from gro.training.sources import Mixture, Offline
from gro.types import Group

FOUND, PICTURE = "reward-model.json", "reward-model.svg"
"""What the evaluation found, in numbers and drawn."""


def run_reward_model(config: Config, *, console: Console | None = None) -> Path:
    """Trains a reward model by a recipe; returns the run directory, in which it is exported."""
    console = console or patient_console()
    with Run.open(config.run, config.resolved(), may_differ=LOGGING) as run:
        try:
            _train(config, run, console)
        except KeyboardInterrupt:
            say(console, f"interrupted: {shown(run.path)} is not finished; the same command begins it anew")
            raise
    tell_results(run, console)
    return run.path


def load_reward_model(config: Config, start: Start) -> RewardModel:
    """The recipe's starting model: a reward model goes on from its scores, a language model begins with 0 for all."""
    assert start.path is not None
    classes = start.architecture.architectures or ()
    if any(name.endswith("ForSequenceClassification") for name in classes):
        settings = config.model
        return RewardModel.read(
            start.path, dtype=settings.dtype, device=settings.device, allow_pickle=settings.allow_pickle
        )
    return RewardModel.beside(load_policy(config, start.path))


def _train(config: Config, run: Run, console: Console) -> None:
    algorithm = build_algorithm(config)
    if not algorithm.scores:
        raise GroError(
            f"algorithm: {algorithm.name} trains a policy, which is `gro train`; reward models are trained by "
            "bradley_terry (pairs), plackett_luce or all_pairs (rankings and ratings)"
        )
    say(console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    begin(run, console)
    start = start_of(config, run.path)
    data = load_data(config, start, run)
    note_data(run, data)
    check_data(console, config, algorithm, data, start)
    rows = held_out_rows(console, config, data)
    portions = config.training
    with progress(portions.steps, algorithm.name) as show:
        model = load_reward_model(config, start)
        check_room(config, run.path, model)
        recorder = Recorder(run, show, model, algorithm, portions)
        parts = [(Offline(dataset, config.prompts_per_step, portions.seed), weight) for dataset, weight in data.offline]
        learner = PolicyLearner(
            model,
            algorithm,
            config.optimizer,
            total_updates=portions.steps * portions.updates_per_step,
            tokens_per_micro=portions.tokens_per_micro,
            entropy=False,
        )

        def pairs() -> list[JudgedPair]:
            column = config.eval.slice if config.eval is not None else None
            return judge(model, rows, portions.tokens_per_micro, column)

        def metrics() -> dict[str, float]:
            return {name: estimate.value for name, estimate in measure(pairs()).items()}

        recorder.evaluated(0, metrics if rows else None)
        train(
            model,
            Shaped(Mixture(parts, config.prompts_per_step), [_as_read]),
            algorithm,
            [learner],
            portions,
            recorder,
            length_limit=longest_offline(data) + 1,
            evaluate=metrics if rows else None,
        )
    with files.new_directory(run.path / MODEL) as folder:
        model.save(folder)
    if rows:
        _tell(run, console, pairs(), _baseline(data, rows, start))
    run.finish(
        algorithm=algorithm.name,
        formula="\n".join(formula(algorithm)),
        before=recorder.evaluations.get(0, {}),
        after=recorder.evaluations.get(portions.steps, {}),
    )


def _as_read(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    return [judged(group) for group in groups], {}


def _baseline(data: Data, rows: Sequence[Group], start: Start) -> dict[str, Estimate]:
    """Accuracy of words alone on the same pairs; empty without scikit-learn, or where there are not pairs enough."""
    if not bag_of_words.available():
        return {}
    decode = decoder(start.tokenizer)

    def texts(groups: Sequence[Group]) -> list[bag_of_words.Pair]:
        found = []
        for group in groups:
            known = [(c.reward, decode(c.ids)) for c in group.completions if c.reward is not None]
            found += [(good, bad) for r, good in known for q, bad in known if r > q]
        return found

    train_pairs = texts([group for dataset, _ in data.offline for group in dataset])
    if len(train_pairs) < bag_of_words.FEWEST:
        return {}
    gaps = bag_of_words.bag_of_words_gaps(train_pairs, texts(rows))
    return {"accuracy_bag_of_words": wins(gaps)}


def _tell(run: Run, console: Console, pairs: Sequence[JudgedPair], baseline: dict[str, Estimate]) -> None:
    """Writes what the held-out pairs show to the run, and shows it."""
    if not pairs:
        raise GroError("eval.data: of no two completions of a prompt is known which one is better")
    found = measure(pairs) | baseline
    bins = calibration(pairs)
    numbers: dict[str, Any] = {
        "pairs": len(pairs),
        "metrics": {name: asdict(estimate) for name, estimate in found.items()},
        "calibration": [asdict(b) for b in bins],
        "scores": {"chosen": [p.chosen for p in pairs], "rejected": [p.rejected for p in pairs]},
    }
    files.write_json(run.path / FOUND, numbers)
    files.write_text(run.path / PICTURE, judged_picture.draw(pairs))
    table = Table("metric", "value", "95 % interval")
    for name, estimate in found.items():
        table.add_row(name, number(estimate.value), interval(estimate))
    console.print(table)
    if not baseline:
        say(console, f"the baseline of words needs scikit-learn and at least {bag_of_words.FEWEST} training pairs")
    say(console, f"{len(pairs)} held-out pairs, of which ties count one half", f"drawn: {shown(run.path / PICTURE)}")
