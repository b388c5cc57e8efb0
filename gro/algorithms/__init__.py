"""Algorithms by family, and the registry that names them."""

from gro.algorithms import (
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
from gro.algorithms.registry import algorithm, build, declaration, names, parameters

__all__ = [
    "actor_critic",
    "algorithm",
    "build",
    "declaration",
    "generalized",
    "group_relative",
    "likelihood",
    "names",
    "parameters",
    "policy_gradient",
    "preference",
    "presets",
    "reward_model",
    "self_play",
    "unpaired",
]
