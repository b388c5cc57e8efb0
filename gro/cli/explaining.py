"""`gro algorithms`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gro.cli.app import app
from gro.errors import GroError


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One of the table, or path/to/file.py:function.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Argument(help="Parameters of the algorithm.", metavar="KEY=VALUE")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that it does what every algorithm must do; exit code 1 if not.")
    ] = False,
) -> None:
    """List all algorithms, explain one (formula, slots, parameters, paper), or verify one."""
    if name is None:
        if verify:
            raise GroError("--verify checks one algorithm: gro algorithms --verify mine.py:my_objective")
        _list_algorithms()
        return
    given = dict(_parameter(text) for text in parameters or ())
    if verify:
        _verify(name, given)
    else:
        _explain(name, given)


def _parameter(text: str) -> tuple[str, Any]:
    from gro.runs.plain import load_yaml

    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise GroError(f"{text!r}: a parameter is key=value, without spaces around =")
    try:
        return key, load_yaml(value)
    except Exception as error:
        raise GroError(f"{key}: the value {value!r} is not valid YAML") from error


def _list_algorithms() -> None:
    from rich.table import Table
    from rich.text import Text

    from gro.algorithms.describe import table
    from gro.runs.terminal import console

    listing = Table("name", "family", "what it does")
    for row in table():
        listing.add_row(*(Text(cell) for cell in row))
    console().print(listing)


def _explain(name: str, given: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from gro.algorithms.describe import describe
    from gro.conformance import subject
    from gro.runs.terminal import console

    out = console()
    page = describe(name, subject(name, given).algorithm)
    out.print(Text(page.name, style="bold"), Text(page.summary), "", sep="\n")
    if page.when:
        out.print(Text(page.when), "", sep="\n")
    out.print(Text("\n".join(page.formula)), "", sep="\n", soft_wrap=True)
    for what, said in page.words:
        out.print(Text(f"{what:>10}  {said}"), soft_wrap=True)
    out.print()
    slots = Table("slot", "member", "meaning", title="slots", title_justify="left")
    for row in page.slots:
        slots.add_row(*(Text(cell) for cell in row))
    out.print(slots)
    if page.parameters:
        parameters = Table("parameter", "default", "meaning", title="parameters", title_justify="left")
        for p in page.parameters:
            parameters.add_row(Text(p.name), Text(str(p.default)), Text(p.meaning))
        out.print(parameters)
    out.print(Text(f"reads: {page.reads}"), soft_wrap=True)
    if page.source:
        out.print(Text(f"paper: {page.source}"), soft_wrap=True)


def _verify(name: str, given: dict[str, Any]) -> None:
    from rich.text import Text

    from gro.conformance import CHECKS, run, subject
    from gro.conformance.report import line, verdict
    from gro.runs.terminal import console, printable

    out = console()
    algorithm = subject(name, given)
    out.print(Text(f"{name}: {_compared_with(name, algorithm.loss is not None)}"), soft_wrap=True)
    styles = {"holds": "", "FAILS": "bold red", "–": "dim"}
    verdicts = []
    for check in CHECKS:
        result = run(check, algorithm)
        verdicts.append(verdict(result))
        out.print(Text(printable(line(result)), style=styles[verdicts[-1]]), soft_wrap=True)
    failed = verdicts.count("FAILS")
    out.print(Text(f"{verdicts.count('holds')} checks hold, {failed} fail, {verdicts.count('–')} do not apply"))
    if failed:
        raise typer.Exit(1)


def _compared_with(name: str, has_loss: bool) -> str:
    file, _, function = name.rpartition(":")
    if has_loss:
        return f"gradient and value are compared with {function}_loss of the same file"
    if file:
        return f"{file} defines no {function}_loss(update, ...) to compare gradient and value with"
    return "its paper's loss is compared by the library's tests; see docs/proof.md"
