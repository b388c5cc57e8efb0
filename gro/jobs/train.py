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
    asking_in,
    build_algorithm,
    cut,
    evaluation_rewards,
    learning_of,
    load_policy,
    longest_offline,
    needs_start,
    rewards_of,
    source_of,
)
from gro.config import Config
from gro.engines.base import Engine
from gro.engines.local import LocalEngine
from gro.evaluation.heldout import HeldOut
from gro.jobs.budgeting import with_budget
from gro.jobs.evaluate import Sample, held_out_of, samples_of
from gro.jobs.launch import nowhere
from gro.jobs.reward_model import run_reward_model
from gro.jobs.running import keeper_of
from gro.jobs.work import Begun, Work, begin, carry_out
from gro.policy.policy import Policy
from gro.preflight import preflight
from gro.rewards import Rewards
from gro.runs.progress import progress
from gro.training.checkpoint import Carried, export
from gro.training.loop import Resumed, train
from gro.training.prepare import Reference
from gro.training.recording import Recorder
from gro.training.shared import SharedEngine, shared


def run_training(config: Config, *, console: Console | None = None) -> Path:
    """Trains by a recipe, a policy or a reward model; returns the run directory, in which the model is exported."""
    if build_algorithm(config).scores:
        return run_reward_model(config, console=console)
    return carry_out(config, _train, console)


def _train(work: Work) -> None:
    begun = begin(work)
    with ExitStack() as stack:
        recorder, held_out, policy = _learn(work, begun, stack)
    export(policy, work.run.path / MODEL, work.processes)
    if not work.processes.first:
        return
    work.run.finish(
        algorithm=begun.algorithm.name,
        formula="\n".join(formula(begun.algorithm)),
        alarms=recorder.count_alarms() or "none",
        before=recorder.evaluations.get(0, {}),
        after=recorder.evaluations[max(recorder.evaluations)] if recorder.evaluations else {},
        samples=_compared(work.run.kept("before") or [], samples_of(held_out)),
    )


def _learn(work: Work, begun: Begun, stack: ExitStack) -> tuple[Recorder, HeldOut | None, Policy]:
    """Everything between the checks and the result; what is opened is closed with the stack."""
    run, processes, algorithm, data = work.run, work.processes, begun.algorithm, begun.data
    people = asking_in(work.config, run.path)

    def open_rewards(specs: Sequence[Any]) -> Rewards:
        return stack.enter_context(rewards_of(work.config, specs, begun.start.tokenizer, run, people))

    found = preflight(work.config, begun.start, data, work.console, open_rewards=open_rewards)
    sampling, rewards = found.sampling, found.rewards.get("rewards")
    judges = found.rewards.get("eval.rewards", rewards if evaluation_rewards(work.config) else None)
    stream = None if processes.first else nowhere()
    show = stack.enter_context(progress(work.config.training.steps, algorithm.name, stream))
    people.says, people.asked = show.waiting, lambda: work.interrupts.asked
    if processes.size == 1:
        people.at_once = work.interrupts.at_once
    config, policy, start = _models(work, begun)
    learning = learning_of(config, policy, algorithm, processes)
    # What is learnt against may follow the policy; what is measured stays relative to the start.
    follows = config.training.refresh_reference > 0
    reference = Reference(start.policy, processes) if start is not None and follows else start
    engine: Engine = LocalEngine.of(policy, slots=config.slots)
    engine = engine if processes.size == 1 else SharedEngine(engine, processes)
    held_out = None
    if data.held_out is not None and config.eval is not None:
        held_out = held_out_of(
            config,
            data.held_out.kind,
            found.held_out,
            policy,
            start,
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
        start,
        restricted=sampling.top_p < 1 or sampling.top_k > 0,
        ranges=rewards.ranges if rewards is not None else None,
    )
    source = source_of(config, data, engine, rewards, sampling, algorithm, show.generating, processes, people)
    carried = Carried(
        policy,
        source,
        recorder,
        learning.descents,
        learning.critic,
        {name: known for name, known in {"start": start, "reference": reference}.items() if known is not None},
        processes,
        config.distributed.elastic,
    )
    keep = keeper_of(config, run, carried, work.interrupts, lambda: people.waited)
    resumed = Resumed() if begun.state is None else carried.load(begun.state)
    if begun.state is None:
        recorder.evaluated(0, held_out.metrics if held_out else None)
        run.keep("before", samples_of(held_out))
    with work.interrupts.patient():
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
            waited=lambda: people.waited,
            processes=processes,
        )
        keep.finish()
    return recorder, held_out, policy


def _models(work: Work, begun: Begun) -> tuple[Config, Policy, Reference | None]:
    """(the recipe with the number of tokens that fit, the policy, a frozen copy of it where one is needed)."""
    assert begun.start.path is not None
    policy = load_policy(work.config, begun.start.path)
    start = None
    if needs_start(work.config, begun.algorithm, begun.data):
        start = Reference(policy.snapshot(), work.processes)
    config = with_budget(work.config, work.run, work.console, policy, begun.algorithm, begun.data, work.processes)
    if cut(config, policy) and start is not None:
        start.policy = policy.snapshot()  # cut likewise
    return config, policy, start


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
