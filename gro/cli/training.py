"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import Overrides, Recipe, app


@app.command()
def quickstart(
    run: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a tiny model and a task, then train it until it can add."""
    from gro.quickstart import quickstart as go

    go(run, seed)


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train by a recipe."""
    from gro.config import load_config

    config = load_config(recipe, overrides or ())
    from gro.jobs.train import run_training

    run_training(config)


@app.command("reward-model")
def reward_model(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train a reward model by a recipe: from pairs, rankings or ratings."""
    from gro.config import load_config

    config = load_config(recipe, overrides or ())
    from gro.jobs.reward_model import run_reward_model

    run_reward_model(config)


@app.command()
def overopt(recipe: Recipe, overrides: Overrides = None) -> None:
    """Study over-optimisation: train proxies of the recipe's rewards, optimise them, and see where gold turns down."""
    from gro.config import load_config

    config = load_config(recipe, overrides or ())
    from gro.jobs.overopt import run_overopt

    run_overopt(config)
