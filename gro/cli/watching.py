"""`gro watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import Browser, Port, app


@app.command()
def watch(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Run directories, or folders of them; runs/ where nothing is given."),
    ] = None,
    port: Port = 0,
    browser: Browser = False,
) -> None:
    """Watch runs while they are trained, and compare them, in the browser."""
    from gro.web import serve
    from gro.web.watch.routes import Watching

    watching = Watching(paths or [Path("runs")])
    serve(watching.routes, port=port, path=watching.path, open_browser=browser, ending=watching.end)
