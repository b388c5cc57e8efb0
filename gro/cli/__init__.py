"""The command line.  Commands import what they need when they run, so that help and errors come at once."""

# Commands are listed in the order in which they are imported here.
from gro.cli import training, checking, measuring, explaining, reporting, watching, inspecting, labelling  # noqa: F401, I001
from gro.cli.app import app
from gro.cli.entry import main

__all__ = ["app", "main"]
