"""`gro watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import app


@app.command()
def watch(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Run directories, or folders of them; runs/ where nothing is given."),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page, on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Watch runs while they are trained, and compare them, in the browser."""
    from gro.web import serve
    from gro.web.watch.routes import Watching

    watching = Watching(paths or [Path("runs")])
    serve(watching.routes, port=port, path=watching.path, open_browser=browser, ending=watching.end)
