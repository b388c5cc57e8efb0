"""`gro check`."""

from __future__ import annotations

from gro.cli.app import Overrides, Recipe, app


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, its data and rewards, without weights."""
    from gro.config import load_config

    config = load_config(recipe, overrides or ())
    from gro.preflight import check as go
    from gro.runs.terminal import console

    go(config, console())
