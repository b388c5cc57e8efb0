"""Rewards tried on a few texts of the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from gro.assemble import Data
from gro.config import Config
from gro.errors import GroError
from gro.preflight.saying import say
from gro.raters.spec import HUMAN, HumanSettings
from gro.rewards import Rewards
from gro.runs.terminal import number
from gro.types import Completion, Group

_TRIED = 4
"""Rows that rewards are tried on."""
_SHOWN = 60
"""Characters of each that are shown."""


def reward_lists(config: Config) -> dict[str, Sequence[Any]]:
    """The lists of rewards that are in use, by their key."""
    lists: dict[str, Sequence[Any]] = {"rewards": config.rewards} if config.rewards else {}
    if config.eval is not None and config.eval.rewards:
        lists["eval.rewards"] = config.eval.rewards
    return lists


def try_rewards(
    console: Console, rewards: Rewards, key: str, data: Data, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Scores some texts of the data themselves, to see that the rewards run and find their columns.

    tokenizer: given where each text is to be shown with what it got.

    Raises GroError where they fail on more than the share of them that stops a run.
    """
    judged = data.online or next((d for d, _ in data.offline if d.pending), data.held_out)
    dataset = data.held_out if key == "eval.rewards" else judged
    if dataset is None:
        return
    begun = time.perf_counter()
    # Any text will do; the end of the prompt is in the right language and never empty.
    texts = [g.completions[0].ids if g.completions else g.prompt.ids[-16:] for g in dataset[:_TRIED]]
    groups = [Group(g.prompt, (Completion(ids=t),)) for g, t in zip(dataset[:_TRIED], texts, strict=True)]
    try:
        scored = rewards.score(groups)
    except GroError as error:
        raise GroError(
            f"{key}: tried on {len(groups)} texts of the data before anything is loaded.\n{error}"
        ) from error
    seconds = time.perf_counter() - begun
    for text, group in zip(texts, scored if tokenizer is not None else (), strict=tokenizer is not None):
        assert tokenizer is not None
        got = group.completions[0]
        values = ", ".join(f"{name} {_value(got.rewards.get(name))}" for name in rewards.names)
        say(console, f"  {_short(str(tokenizer.decode(list(text))))!r}: {values}; together {_value(got.reward)}")
    for name, spec in zip(rewards.names, rewards.specs, strict=True):
        if spec.name_or_path == HUMAN and HumanSettings.parse(spec.params).simulated is None:
            say(console, f"{key}: {name}: people are asked when the run waits for them")
            continue
        found = [group.completions[0].rewards.get(name) for group in scored]
        values = ", ".join(_value(value) for value in found)
        say(console, f"{key}: {name} of {len(groups)} texts of the data, to try it: {values} ({seconds:.2f} s)")
        if all(value is None for value in found) and not rewards.failures:
            say(console, f"note: {name} applies to none of them (it returned None)")
    for failure in rewards.failures:
        say(console, f"note: reward {failure.reward} failed on one of them: {failure.message}")
    for notice in rewards.notices:
        say(console, f"note: {notice}")


def _value(reward: float | None) -> str:
    return "none" if reward is None else number(reward)


def _short(text: str) -> str:
    """The end of it, where an answer stands."""
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
