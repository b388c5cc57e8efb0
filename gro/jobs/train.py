"""`gro train`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from gro.algorithms.describe import formula
from gro.assemble import (
    MODEL,
    build_algorithm,
    cut,
    in_step,
    learning_of,
    load_data,
    load_policy,
    longest_offline,
    needs_start,
    rewards_of,
    source_of,
)
from gro.config import Config
from gro.engines.base import Engine
from gro.engines.local import LocalEngine
from gro.jobs.budgeting import with_budget
from gro.jobs.evaluate import Sample, held_out_of, samples_of
from gro.jobs.interrupts import Interrupts
from gro.jobs.launch import followed, job_of, nowhere, quiet_console
from gro.jobs.reward_model import run_reward_model
from gro.jobs.running import (
    check_identity,
    continue_or_begin,
    is_finished,
    keeper_of,
    note_data,
    run_of,
    start_together,
    tell_results,
)
from gro.preflight import preflight, say
from gro.rewards import Rewards
from gro.runs.progress import progress
from gro.runs.store import Run
from gro.runs.terminal import console as patient_console
from gro.training.checkpoint import Carried, export
from gro.training.loop import Resumed, train
from gro.training.prepare import Reference
from gro.training.processes import Processes
from gro.training.recording import Recorder
from gro.training.shared import SharedEngine, shared


def run_training(config: Config, *, console: Console | None = None) -> Path:
    """Trains by a recipe, a policy or a reward model; returns the run directory, in which the model is exported."""
    if build_algorithm(config).scores:
        return run_reward_model(config, console=console)
    with job_of(config) as job:
        console = console or (patient_console() if job.processes.first else quiet_console())
        if not is_finished(config, console, job.processes):
            with run_of(config, console, job) as (run, interrupts):
                _train(followed(config, job), run, console, interrupts, in_step(config, job.processes))
        path = Path(config.run).expanduser().absolute()
        if job.processes.first:
            tell_results(path, console)
    return path


def _train(config: Config, run: Run, console: Console, interrupts: Interrupts, processes: Processes) -> None:
    algorithm = build_algorithm(config)
    say(console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    state = continue_or_begin(run, console, processes)
    start = start_together(config, run, processes)
    assert start.path is not None
    data = load_data(config, start, run)
    check_identity(run, config, data, start, processes)
    note_data(run, data)
    with ExitStack() as stack:

        def open_rewards(specs: Sequence[Any]) -> Rewards:
            return stack.enter_context(rewards_of(config, specs, start.tokenizer, run))

        found = preflight(config, start, data, console, open_rewards=open_rewards)
        sampling, rewards = found.sampling, found.rewards.get("rewards")
        judges = found.rewards.get("eval.rewards", rewards)
        stream = None if processes.first else nowhere()
        show = stack.enter_context(progress(config.training.steps, algorithm.name, stream))
        policy = load_policy(config, start.path)
        snapshot = Reference(policy.snapshot(), processes) if needs_start(config, algorithm, data) else None
        config = with_budget(config, run, console, policy, algorithm, data, processes)
        if cut(config, policy) and snapshot is not None:
            snapshot.policy = policy.snapshot()  # cut likewise
        learning = learning_of(config, policy, algorithm, processes)
        # What is learnt against may follow the policy; what is measured stays relative to the start.
        follows = config.training.refresh_reference > 0
        reference = Reference(snapshot.policy, processes) if snapshot is not None and follows else snapshot
        engine: Engine = LocalEngine.of(policy, slots=config.slots)
        engine = engine if processes.size == 1 else SharedEngine(engine, processes)
        held_out = None
        if data.held_out is not None and config.eval is not None:
            held_out = held_out_of(
                config,
                data.held_out.kind,
                found.held_out,
                policy,
                snapshot,
                engine,
                None if judges is None else shared(judges, processes),
                sampling,
                show.generating,
                processes,
            )
        recorder = Recorder(
            run,
            show,
            policy,
            algorithm,
            config.training,
            snapshot,
            restricted=sampling.top_p < 1 or sampling.top_k > 0,
            ranges=rewards.ranges if rewards is not None else None,
        )
        source = source_of(config, data, engine, rewards, sampling, algorithm, show.generating, processes)
        references = {"start": snapshot, "reference": reference}
        carried = Carried(
            policy,
            source,
            recorder,
            learning.descents,
            learning.critic,
            {name: found for name, found in references.items() if found is not None},
            processes,
            config.distributed.elastic,
        )
        keep = keeper_of(config, run, carried, interrupts)
        resumed = Resumed() if state is None else carried.load(state)
        if state is None:
            recorder.evaluated(0, held_out.metrics if held_out else None)
            run.keep("before", samples_of(held_out))
        stack.enter_context(interrupts.patient())
        train(
            policy,
            source,
            algorithm,
            learning.learners,
            config.training,
            recorder,
            reference=reference,
            critic=learning.critic,
            warmup=learning.warmup,
            length_limit=sampling.max_new_tokens if config.online else longest_offline(data),
            evaluate=held_out.metrics if held_out else None,
            stops=recorder.stops,
            resumed=resumed,
            keep=keep,
            processes=processes,
        )
        keep.finish()
    export(policy, run.path / MODEL, processes)
    if not processes.first:
        return
    run.finish(
        algorithm=algorithm.name,
        formula="\n".join(formula(algorithm)),
        alarms=recorder.count_alarms() or "none",
        before=recorder.evaluations.get(0, {}),
        after=recorder.evaluations[max(recorder.evaluations)] if recorder.evaluations else {},
        samples=_compared(run.kept("before") or [], samples_of(held_out)),
    )


def _compared(before: Sequence[Sample], after: Sequence[Sample]) -> list[dict[str, Any]]:
    """The same prompts answered before and after, as rows of a table; rewards of 0 and 1 become ✗ and ✓.

    Where what is held out was changed on the way, those that are still in their places.
    """

    def mark(reward: float | None) -> Any:
        return bool(reward) if reward in (0.0, 1.0) else "failed" if reward is None else reward

    return [
        {"prompt": prompt, "before": was, "reward before": mark(earned), "after": now, "reward after": mark(earns)}
        for (prompt, was, earned), (asked, now, earns) in zip(before, after, strict=False)
        if prompt == asked
    ]
