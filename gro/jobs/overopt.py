"""`gro overopt`: a gold reward, proxies that were trained on its labels, and what optimising them does to it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from gro.algorithms.describe import formula
from gro.assemble import build_algorithm, decoder, load_data, load_policy, rewards_of, sampling_of, start_of
from gro.config import Config
from gro.engines.base import Engine
from gro.engines.local import LocalEngine
from gro.errors import GroError
from gro.evaluation import overopt_picture
from gro.evaluation.heldout import answer
from gro.evaluation.overopt_settings import OveroptSettings
from gro.jobs.overopt_show import show_study
from gro.jobs.pressure import LEARNING, Judged, Setting, learn, pick_best, plain
from gro.jobs.proxies import Unit, fit_proxy, labelled
from gro.jobs.running import begin_anew, note_data, run_of, shown
from gro.preflight import check_data, held_out_rows, say, try_rewards
from gro.runs import files
from gro.runs.progress import Progress, progress
from gro.runs.store import Run
from gro.runs.terminal import console as patient_console
from gro.training.rollouts import Online
from gro.types import Group

FOUND, PAIRS = "overopt.json", "pairs.jsonl"
"""Everything that was found, and the pairs with their labels."""
PROXIES = "proxies"
"""A folder of the run, with a run for each member of a proxy."""


def run_overopt(config: Config, *, console: Console | None = None) -> Path:
    """The whole study by a recipe; returns the run directory."""
    settings = _checked(config)
    console = console or patient_console()
    with run_of(config, console) as (run, _):
        _study(config, settings, run, console)
    return run.path


def _checked(config: Config) -> OveroptSettings:
    """The settings; GroError where the recipe is not one of a study."""
    problems = []
    if config.overopt is None:
        problems.append("overopt: missing; a study needs the sizes and pairs of its proxies")
    if config.online is None or config.eval is None:
        problems.append("online, eval: both needed: prompts to train on, and held-out prompts to measure on")
    if not config.rewards:
        problems.append("rewards: none given; the recipe's rewards are the gold reward")
    if not config.training.eval_every:
        problems.append("training.eval_every: 0; gold and proxy are measured every so many steps")
    if config.training.stop is not None:
        problems.append("training.stop: a study trains to the end, and says where each rule would have stopped")
    if not problems and build_algorithm(config).scores:
        problems.append("algorithm: give that by which the policy is optimised; proxies are trained by bradley_terry")
    if problems or config.overopt is None:
        raise GroError("gro overopt: " + "\n  ".join(problems))
    return config.overopt


def _study(config: Config, settings: OveroptSettings, run: Run, console: Console) -> None:
    algorithm = build_algorithm(config)
    say(console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    begin_anew(run, console)
    for folder in (run.path / PROXIES, run.path / LEARNING):
        if folder.is_dir():
            files.remove_directory(folder)
    start = start_of(config, run.path)
    data = load_data(config, start, run)
    note_data(run, data)
    sampling = sampling_of(config, start.tokenizer, data.ends)
    check_data(console, config, algorithm, data, start)
    assert config.eval is not None
    assert start.path is not None
    prompts = [g.prompt for g in held_out_rows(console, config, data)[: config.eval.limit]]
    cells = [(size, pairs) for size in settings.sizes for pairs in settings.pairs]
    with ExitStack() as stack:
        gold = stack.enter_context(rewards_of(config, config.rewards, start.tokenizer, run))
        try_rewards(console, gold, "rewards", data)
        show = stack.enter_context(progress(2 + 2 * len(cells), "overopt"))
        engine = LocalEngine(load_policy(config, start.path, trains=False).model, slots=config.slots)
        drawn = answer(engine, gold, prompts, sampling, n=settings.best_of, on_progress=show.generating).groups
        unit = Unit.of([c.reward for g in drawn for c in g.completions if c.reward is not None])
        setting = Setting(config, settings, run, start, data, prompts, sampling, gold, unit, drawn)
        _done(
            show, 1, f"{len(prompts)} × {settings.best_of} samples: gold {unit.mean:.4g} ± {unit.std:.4g} at the start"
        )
        pairs = _pairs(setting, engine, show)
        _done(show, 2, f"{len(pairs)} pairs labelled: {shown(run.path / PAIRS)}")
        found = []
        for i, (size, count) in enumerate(cells):
            proxy = fit_proxy(
                config, settings, start, size, pairs[:count], run.path / PROXIES / f"{size}-{count}".replace("×", "x")
            )
            judged = Judged.of(setting, proxy)
            best = pick_best(setting, judged)
            _done(show, 3 + 2 * i, f"proxy {proxy.name}: agrees with gold on {judged.agreement:.1%} of held-out pairs")
            learnt = learn(setting, judged, show)
            _done(show, 4 + 2 * i, f"{algorithm.name} against {proxy.name}: √KL {learnt.course.d_K[-1]:.3g}")
            found.append(plain(judged, best, learnt))
    study = {"gold": asdict(unit), "prompts": len(prompts), "algorithm": algorithm.name, "proxies": found}
    files.write_json(run.path / FOUND, study)
    pictures = overopt_picture.draw(study)
    for name, svg in pictures.items():
        files.write_text(run.path / f"{name}.svg", svg)
    show_study(console, study)
    say(console, f"numbers: {shown(run.path / FOUND)}", *(f"drawn: {shown(run.path / n)}.svg" for n in pictures))
    run.finish(algorithm=algorithm.name, formula="\n".join(formula(algorithm)))


def _done(show: Progress, step: int, what: str) -> None:
    show.note(what)
    show.step(step, {})


def _pairs(setting: Setting, engine: Engine, show: Progress) -> list[Group]:
    """Two samples of the start per prompt, labelled; written down as a preference data set too."""
    config, settings, data = setting.config, setting.settings, setting.data
    assert data.online is not None
    most = max(settings.pairs)
    source = Online(
        data.online,
        engine,
        setting.gold,
        setting.sampling,
        prompts_per_step=most,
        group_size=2,
        seed=config.training.seed,
        on_progress=show.generating,
    )
    pairs = labelled(source.take(0), setting.gold_unit, settings.label_temperature, config.training.seed)
    if len(pairs) < most:
        raise GroError(
            f"rewards: the gold reward failed on {most - len(pairs)} of {most} pairs; see failures/ in the run"
        )
    read, rows = decoder(setting.start.tokenizer), []
    for group in pairs:
        better, worse = sorted(group.completions, key=lambda c: -(c.reward or 0.0))
        row = {"prompt": read(group.prompt.ids), "chosen": read(better.ids), "rejected": read(worse.ids)}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.write_text(setting.run.path / PAIRS, "".join(rows))
    return pairs
