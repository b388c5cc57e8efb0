"""`gro inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import Browser, Port, app
from gro.errors import GroError


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or being trained.")],
    port: Port = 0,
    device: Annotated[
        str, typer.Option(help="Where probabilities are computed: cpu leaves a GPU to the training; cuda, auto.")
    ] = "cpu",
    browser: Browser = False,
) -> None:
    """Look inside a run, token by token, in the browser."""
    from pydantic import TypeAdapter, ValidationError

    from gro.recipe import Device
    from gro.web import serve
    from gro.web.inspect.routes import Inspecting

    try:
        TypeAdapter(Device).validate_python(device)
    except ValidationError:
        raise GroError(f"--device: found {device!r}; expected auto, cpu, mps, cuda or cuda:0") from None
    inspecting = Inspecting(run, device)
    try:
        serve(inspecting.routes, port=port, path=inspecting.path, open_browser=browser)
    finally:
        inspecting.close()
