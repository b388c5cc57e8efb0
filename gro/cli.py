"""The command line.  Commands import what they need when they run, so that help and errors come at once."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from gro.errors import GroError

if TYPE_CHECKING:
    from gro.jobs.evaluate import Evaluation

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
Model = Annotated[str, typer.Argument(help="A folder in Hugging Face format, a hub name, or a run directory.")]
WRONG, INTERRUPTED = 2, 130
"""Exit codes: something that the user can put right; Ctrl-C."""


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


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, its data and rewards, without weights."""
    from gro.config import load_config

    config = load_config(recipe, overrides or ())
    from gro.preflight import check as go
    from gro.runs.terminal import console

    go(config, console())


@app.command(name="eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Evaluate this model: a folder, hub name or run.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What preferences are measured against; else the recipe's starting model.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write metrics and all answers to this JSON file.")] = None,
) -> None:
    """Evaluate a model on a recipe's held-out data.

    Of a recipe its starting model, of a run directory its trained model.
    """
    from gro.config import load_config

    config = load_config(recipe, overrides or (), needs=["eval"])
    if output is not None and not output.absolute().parent.is_dir():
        raise GroError(f"--output: the folder {output.absolute().parent} does not exist")
    from gro.jobs.evaluate import run_evaluation
    from gro.runs import files

    found = run_evaluation(config, run=recipe if recipe.is_dir() else None, model=model, reference=reference)
    _show_evaluation(found)
    if output is not None:
        files.write_json(output, found.plain())
        print(output)


def _show_evaluation(found: Evaluation) -> None:
    from rich.table import Table
    from rich.text import Text

    from gro.runs.terminal import console, number, samples_table

    out = console()
    out.print(Text(f"model: {found.model}"), soft_wrap=True)
    if found.reference is not None:
        out.print(Text(f"reference: {found.reference}"), soft_wrap=True)
    table = Table("metric", "value", "95 % interval")
    for name, estimate in found.metrics.items():
        interval = "" if estimate.low is None or estimate.high is None else f"{estimate.low:.4g} to {estimate.high:.4g}"
        table.add_row(name, number(estimate.value), f"{interval} ({estimate.method})" if interval else "")
    out.print(table)
    out.print(Text(f"{found.rows} rows" + ("; ties count one half" if "logp_accuracy" in found.metrics else "")))
    if found.answers:
        rows = [{"prompt": p, "answer": a, "reward": "failed" if r is None else r} for p, a, r in found.answers[:5]]
        out.print(samples_table(rows))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Option(help="May be given several times.")],
    n: Annotated[int, typer.Option("-n", help="Answers per prompt.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.", min=0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: no limit.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered by the chat template.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Sample answers from a model."""
    from rich.text import Text

    from gro.jobs.generate import generate_texts
    from gro.runs.terminal import console, printable

    answers = generate_texts(
        model,
        prompt,
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        chat=chat,
        seed=seed,
    )
    out = console()
    for answer in answers:
        end = "stopped by itself" if answer.finish == "stop" else f"cut off after {max_new_tokens} tokens"
        out.print(Text(f"[{end}, {answer.mean_logp:.2f} nats per token]", style="dim"), soft_wrap=True)
        out.print(Text(printable(answer.text)), soft_wrap=True)


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
    out.print(Text("\n".join(page.formula)), "", sep="\n", soft_wrap=True)
    slots = Table("slot", "member", "meaning", title="slots", title_justify="left")
    for row in page.slots:
        slots.add_row(*(Text(cell) for cell in row))
    out.print(slots)
    if page.parameters:
        parameters = Table("parameter", "default", "meaning", title="parameters", title_justify="left")
        for p in page.parameters:
            parameters.add_row(Text(p.name), Text(str(p.default)), Text(p.meaning))
        out.print(parameters)
    out.print(Text(f"reads: {page.reads}"), Text(f"paper: {page.equation}, {page.paper}"), sep="\n", soft_wrap=True)


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


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write a run's report.html again."""
    from gro.runs.report import write_report

    print(write_report(run))


def main() -> None:
    """Entry point: errors meant for the user end with their message, not with a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.showwarning = _warn
    from gro.runs.terminal import patient_stdout

    try:
        with patient_stdout():
            app()
    except GroError as error:
        _complain(f"error: {error}")
        sys.exit(WRONG)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # so typer turns KeyboardInterrupt
            _complain("interrupted")
        elif leaving.code == WRONG and any(a.startswith("--") and "=" in a and "." in a for a in sys.argv[1:]):
            _complain("a recipe's keys are given without dashes: training.steps=10")
        raise
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(INTERRUPTED)


def _complain(text: str) -> None:
    from gro.runs.terminal import printable

    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[31m{printable(text)}\x1b[0m" if red else printable(text), file=sys.stderr)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    """A warning as a line, without the place in the code that raised it."""
    print(f"warning: {message}", file=file or sys.stderr)


if __name__ == "__main__":
    main()
