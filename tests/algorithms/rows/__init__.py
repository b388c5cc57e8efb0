"""The table's rows by family; importing them fills it."""

from algorithms.rows import (
    actor_critic,
    generalized,
    group_relative,
    likelihood,
    policy_gradient,
    preference,
    presets,
    reward_model,
    self_play,
    unpaired,
)

__all__ = [
    "actor_critic",
    "generalized",
    "group_relative",
    "likelihood",
    "policy_gradient",
    "preference",
    "presets",
    "reward_model",
    "self_play",
    "unpaired",
]
