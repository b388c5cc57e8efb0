"""The algorithm of a recipe."""

from __future__ import annotations

from gro.algorithms import build
from gro.config import Config
from gro.objective import Algorithm


def build_algorithm(config: Config) -> Algorithm:
    """The algorithm that the recipe names, with its parameters."""
    return build(str(config.algorithm["name"]), **config.parameters)
