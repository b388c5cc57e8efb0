"""`training.tokens_per_micro: auto` at the start of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from gro.assemble import Data
from gro.assemble.learning import critic_of
from gro.config import Config
from gro.objective import Algorithm
from gro.policy.policy import Policy
from gro.preflight import say
from gro.runs.store import Run
from gro.training.budget import find_budget
from gro.training.processes import ALONE, Processes

_KEPT = "tokens_per_micro"


def with_budget(
    config: Config,
    run: Run,
    console: Console,
    policy: Policy,
    algorithm: Algorithm,
    data: Data,
    processes: Processes = ALONE,
) -> Config:
    """The recipe with a number in the place of auto.

    It is found once, when all models that stay are loaded and none is dealt out to several processes yet, and kept in
    the run: later attempts take the same, so that they go on bit by bit.
    """
    if config.training.tokens_per_micro != "auto":
        return config
    (known, *_) = processes.join([run.kept(_KEPT) if processes.first else None])
    tokens = None if known is None else int(known)
    if tokens is None:
        found = find_budget(policy, longest_row(config, data), algorithm, critic=critic_of(config, policy, algorithm))
        tokens = min(processes.join([found.tokens]))
        say(console, found.why)
        run.event("info", found.why, None, tokens_per_micro=tokens)
        run.keep(_KEPT, tokens)
    return config.model_copy(update={"training": replace(config.training, tokens_per_micro=tokens)})


def longest_row(config: Config, data: Data) -> int:
    """Tokens of the longest row that training can see: a prompt and a completion."""
    return max(_rows(config, data))


def _rows(config: Config, data: Data) -> Iterator[int]:
    prompts: list[int] = []
    completions: list[int] = []
    for dataset in (*(d for d, _ in data.offline), *([data.online] if data.online is not None else [])):
        for prompt, answers in dataset.lengths():
            prompts.append(prompt)
            completions += answers
            yield prompt + max(answers, default=0)
    if data.online is not None:
        yield max((prompt for prompt, _ in data.online.lengths()), default=0) + config.sampling.max_new_tokens
    # One prompt's completion is scored on another prompt where the algorithm asks for it; a score has a place behind.
    yield max(prompts, default=0) + max(completions, default=0) + 1
