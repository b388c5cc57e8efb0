"""At which values a run's alarms are raised.  Light to import: recipes are checked with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict

from gro.schema import CHECKED, NotNegative

Limit = Annotated[NotNegative | None, BeforeValidator(lambda given: None if given is False else given)]
"""A number, or None: the alarm is off, which YAML also writes `off`."""


@dataclass(frozen=True)
class AlarmLimits:
    """At which value each alarm is raised; `off` switches one off."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    ratio: Limit = 1e-4
    """How far a ratio to the old policy is from 1 before the first update of a step, where it must be 1 (0.5 where
    the model runs in half precision)."""
    kl_negative: Limit = 4.0
    """By how many of its standard errors the mean log-ratio to the reference, an estimate of a KL, is below 0."""
    kl_explosion: Limit = 5.0
    """KL to the reference, in nats per token."""
    flat_groups: Limit = 1.0
    """Share of groups whose rewards are all the same; `training.flat_steps` such steps end the run."""
    truncated: Limit = 0.9
    """Share of the completions that were cut off is above this."""
    entropy_collapse: Limit = 0.05
    """Entropy as a part of its average over the first 5 steps is below this."""
    length_drift: Limit = 2.0
    """How many times longer or shorter the completions are than in the first 5 steps."""
    reward_range: Limit = 0.2
    """Share of completions with a reward model's score outside what it gave the rows that it was trained on."""
    reward_failed: Limit = 0.0
    """Completions that a reward failed on."""
    duplicates: Limit = 0.1
    """Share of pairs of answers to one prompt that are identical, beyond what their own probabilities explain."""
    sampler_gap: Limit = 0.05
    """Share of tokens whose probabilities differ by more than 10 % between sampler and trainer."""
    sampler_tail: Limit = 1.0
    """Difference of log-probs between sampler and trainer that one token in 1000 exceeds."""
    sampler_max: Limit = 10.0
    """Largest difference of a token's log-prob between sampler and trainer."""
    sampler_apart: Limit = 0.2
    """As `sampler_gap`; 3 such steps in a row end the run."""
    held_out_down: Limit = 0.5
    """Part of the held-out reward's gain that is lost again while the reward in training still rises."""
