"""The application that commands register with, and the arguments that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Post-training of language models: an algorithm is a value you declare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Recipe = Annotated[Path, typer.Argument(help="A recipe (YAML), or the directory of a run, whose config.yaml is one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value or key.sub=value, over the recipe.", metavar="KEY=VALUE")
]
Port = Annotated[int, typer.Option(help="Of the page, on 127.0.0.1; 0 takes a free one.", min=0, max=65535)]
Browser = Annotated[
    bool,
    typer.Option("--browser", help="Open the page in a browser; its address is then in the list of processes, too."),
]
Model = Annotated[str, typer.Argument(help="A folder in Hugging Face format, a hub name, or a run directory.")]
