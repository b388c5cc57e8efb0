"""Algorithms by family, and the registry that names them."""

from gro.algorithms import generalized, likelihood, policy_gradient, preference, reward_model
from gro.algorithms.registry import algorithm, build, declaration, names, parameters

__all__ = [
    "algorithm",
    "build",
    "declaration",
    "generalized",
    "likelihood",
    "names",
    "parameters",
    "policy_gradient",
    "preference",
    "reward_model",
]
