"""`gro eval`, and the held-out evaluation of training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gro.assemble import (
    START,
    Data,
    decoder,
    evaluation_rewards,
    load_policy,
    model_folder,
    rewards_of,
    sampling_of,
    start_at,
)
from gro.config import Config
from gro.engines.base import Engine, Progress, Sampling
from gro.engines.local import LocalEngine
from gro.errors import GroError
from gro.evaluation.estimates import Estimate
from gro.evaluation.heldout import HeldOut, check_kind
from gro.jobs.versus import Versus, check_versus, compare, held_out_data, rival_of
from gro.judges.spec import JudgeSettings
from gro.policy.policy import Policy
from gro.preflight import try_rewards
from gro.runs import files
from gro.runs.progress import progress
from gro.runs.terminal import console as patient_console
from gro.training.prepare import Reference
from gro.training.processes import ALONE, Processes
from gro.training.rollouts import Scorer
from gro.types import Group

EVALUATIONS = "evaluations"
"""Folder of a run: what `gro eval` found, one file for each time."""

Sample = tuple[str, str, float | None]
"""Prompt, answer, reward (None: the reward failed)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `gro eval` found."""

    model: str
    reference: str | None
    rows: int
    data: tuple[tuple[str, str], ...]
    """Path and SHA-256 of each file."""
    metrics: dict[str, Estimate]
    answers: list[Sample]
    versus: Versus | None = None
    """The same prompts answered by another model."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "model": self.model,
            "reference": self.reference,
            "rows": self.rows,
            "data": [{"path": path, "sha256": digest} for path, digest in self.data],
            "metrics": {
                name: {"value": e.value, "low": e.low, "high": e.high, "interval": e.method and f"95 %, {e.method}"}
                for name, e in self.metrics.items()
            },
            "answers": [{"prompt": p, "answer": a, "reward": r} for p, a, r in self.answers],
            "versus": self.versus and self.versus.plain(),
        }


def run_evaluation(
    config: Config,
    *,
    run: Path | None = None,
    model: str | None = None,
    reference: str | None = None,
    against: str | None = None,
    judge: JudgeSettings | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Measures a model on the recipe's held-out data.

    run: the recipe is that of this run, whose exported model is meant.  model: another model.  reference: what the
    implicit rewards of preference pairs and the KL of samples are relative to; None: the recipe's starting model,
    unless that is evaluated.  against: a model that answers the same prompts; how often the first one's answers are
    better, by the rewards or by the judge.
    """
    if config.eval is None:
        raise GroError("the recipe has no eval section; give it one: eval: {data: {path: ...}}")
    console = console or patient_console()
    beginning = _beginning(config, run)
    chosen = model_folder(model) if model else model_folder(str(run)) if run else beginning
    if chosen is None:
        raise GroError("the recipe makes its own model; evaluate a trained one with --model, or the run directory")
    compared = model_folder(reference) if reference else beginning
    start = start_at(chosen, allow_pickle=config.model.allow_pickle)
    data = Data(held_out=held_out_data(config, start))
    assert data.held_out is not None
    judged = evaluation_rewards(config)
    check_kind(data.held_out.kind, bool(judged) or judge is not None)
    check_versus(against, judge, bool(judged))
    pairs, samples = data.held_out.kind == "preference", config.eval.samples is not None
    compares = (pairs or samples) and compared is not None
    compares = compares and Path(str(compared)).absolute() != Path(chosen).absolute()
    with ExitStack() as stack:
        rewards = None
        if judged and (samples or against is not None or not pairs):
            rewards = stack.enter_context(rewards_of(config, judged, start.tokenizer))
            try_rewards(console, rewards, "rewards", data)
        show = stack.enter_context(progress(1, "eval"))
        policy = load_policy(config, chosen, trains=False)
        base = Reference(load_policy(config, str(compared), trains=False)) if compares else None
        engine = LocalEngine(policy.model, slots=config.slots)
        sampling = sampling_of(config, start.tokenizer, data.ends)
        groups = data.held_out[: config.eval.limit]
        held_out = held_out_of(
            config, data.held_out.kind, groups, policy, base, engine, rewards, sampling, show.generating
        )
        metrics = held_out.measure()
        versus = None
        if against is not None:
            other = rival_of(config, model_folder(against))
            versus = compare(config, held_out, other, None if judge is not None else judged, judge, show.generating)
            metrics |= versus.metrics
    return Evaluation(
        model=chosen,
        reference=str(compared) if compares else None,
        rows=len(groups),
        data=data.held_out.report.files,
        metrics=metrics,
        answers=samples_of(held_out, None),
        versus=versus,
    )


def keep_in_run(run: Path, found: Evaluation) -> Path:
    """Writes what was found into the run, beside what was found before; returns the file."""
    folder = run / EVALUATIONS
    folder.mkdir(exist_ok=True)
    numbers = [int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit()]
    path = folder / f"{max(numbers, default=0) + 1}.json"
    files.write_json(path, found.plain())
    return path


def _beginning(config: Config, run: Path | None) -> str | None:
    """The recipe's starting model, if it is anywhere."""
    if config.model.path is not None:
        return model_folder(config.model.path)
    made = (run or Path(config.run)) / START
    return str(made) if made.is_dir() else None


def held_out_of(
    config: Config,
    kind: str,
    groups: Sequence[Group],
    policy: Policy,
    reference: Reference | None,
    engine: Engine,
    judges: Scorer | None,
    sampling: Sampling,
    on_progress: Progress | None,
    processes: Processes = ALONE,
) -> HeldOut:
    """What is measured on these held-out rows.  on_progress: told of answers as they are sampled."""
    assert config.eval is not None
    longest = config.eval.max_new_tokens or sampling.max_new_tokens
    return HeldOut(
        groups,
        kind,
        policy,
        config.training.micro_tokens,
        reference,
        engine,
        judges,
        replace(sampling, max_new_tokens=longest),
        samples=config.eval.samples,
        k=config.eval.k,
        correct_from=config.eval.correct_from,
        on_progress=on_progress,
        processes=processes,
    )


def samples_of(held_out: HeldOut | None, most: int | None = 8) -> list[Sample]:
    """Prompts, greedy answers and rewards of the latest evaluation."""
    if held_out is None or held_out.answers is None:
        return []
    decode = decoder(held_out.policy.tokenizer)
    groups = held_out.answers.groups[:most]
    return [(decode(g.prompt.ids), decode(c.ids), c.reward) for g in groups for c in g.completions]
