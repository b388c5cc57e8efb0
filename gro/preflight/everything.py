"""All checks in a row: those of `gro check`, and the same before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gro.algorithms.describe import formula
from gro.assemble import (
    Data,
    Start,
    asking_in,
    build_algorithm,
    check_names,
    folders_of,
    load_data,
    rewards_of,
    sampling_of,
    start_of,
)
from gro.config import Config
from gro.engines.base import Sampling
from gro.objective import Algorithm
from gro.preflight.batch import first_batch
from gro.preflight.data import check_data, held_out_rows
from gro.preflight.disk import check_content, check_directory
from gro.preflight.endings import check_endings
from gro.preflight.estimate import Needs, check_disk, check_memory, needs, show_memory
from gro.preflight.masks import show_batch
from gro.preflight.rewards import reward_lists, try_rewards
from gro.preflight.saying import say
from gro.rewards import Rewards
from gro.runs.plain import size_text
from gro.runs.terminal import printable
from gro.types import Group

OpenRewards = Callable[[Sequence[Any]], Rewards]
"""Makes rewards of a recipe's list; the caller closes them."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the checks found out, for the run that follows."""

    sampling: Sampling
    held_out: list[Group]
    """Rows to evaluate on, without those that are also trained on."""
    needs: Needs
    rewards: Mapping[str, Rewards] = field(default_factory=dict)
    """Open and tried, by their key in the recipe: `rewards`, `eval.rewards`."""


def preflight(
    config: Config,
    start: Start,
    data: Data,
    console: Console,
    *,
    open_rewards: OpenRewards | None = None,
    shards: int = 1,
    full: bool = False,
) -> Found:
    """Everything that can be checked without the policy's weights; raises GroError for what cannot work.

    Data against algorithm and model, ends of completions, rows held out, memory, disk, and the rewards on some rows,
    which come last since they take longest.  `open_rewards`: None where the job uses none.  `full`: for people who
    look, with the first batch token by token.
    """
    algorithm = build_algorithm(config)
    sampling = sampling_of(config, start.tokenizer, data.ends)
    check_data(console, config, algorithm, data, start)
    samples = config.online is not None or bool(reward_lists(config))
    check_endings(console, data, start, sampling if samples else None, full=full)
    held_out = held_out_rows(console, config, data)
    if full:
        show_batch(console, start.tokenizer, first_batch(config, data, algorithm))
    found = needs(config, start, data, shards=shards)
    if full:
        show_memory(console, found)
    check_memory(console, found)
    check_disk(console, found)
    rewards: dict[str, Rewards] = {}
    for key, specs in reward_lists(config).items():
        if open_rewards is None:
            break
        rewards[key] = open_rewards(specs)
        if key == "rewards":
            check_names(config, rewards[key])
        try_rewards(console, rewards[key], key, data, start.tokenizer if full else None)
    return Found(sampling, held_out, found, rewards)


def check(config: Config, console: Console) -> None:
    """`gro check`: a run of this recipe as far as it comes without weights.  Nothing is written."""
    algorithm = build_algorithm(config)
    say(console, ": ".join(filter(None, (algorithm.name, algorithm.equation))), *formula(algorithm))
    told = check_directory(config)
    start = start_of(config)
    folders_of(config, start)
    data = load_data(config, start)
    other = check_content(config, data, start)
    with ExitStack() as stack:

        def open_rewards(specs: Sequence[Any]) -> Rewards:
            people = asking_in(config, Path(config.run).expanduser().absolute())
            return stack.enter_context(rewards_of(config, specs, start.tokenizer, people=people))

        found = preflight(config, start, data, console, open_rewards=open_rewards, full=True)
        console.print(_summary(config, algorithm, data, found))
    for note in filter(None, (told, other)):
        say(console, f"note: {note}")
    console.print(Text("the recipe is sound", style="green"))


def _summary(config: Config, algorithm: Algorithm, data: Data, found: Found) -> Table:
    """What was found, in a line each."""
    need, table = found.needs, Table("check", "found", show_header=False)
    rows = {"algorithm": algorithm.name}
    for name, dataset in data.named.items():
        rows[name] = f"{dataset.report.used} of {dataset.report.rows} rows, {dataset.kind}"
    share = f"{need.trained:,} learnt" if need.trained != need.policy.whole.parameters else "all of them learnt"
    rows["model"] = f"{need.policy.whole.parameters:,} parameters, {share}"
    rows["rewards"] = ", ".join(name for rewards in found.rewards.values() for name in rewards.names) or "none"
    here = need.machine
    rows["memory"] = f"about {size_text(need.memory.peak)} on {here.device}"
    rows["memory"] += f", of {size_text(here.free)} free" if here.free is not None else ""
    rows["disk"] = f"{size_text(need.disk.needed)}, of {size_text(need.disk.free)} free"
    for name, value in rows.items():
        table.add_row(Text(name), Text(printable(value)))
    return table
