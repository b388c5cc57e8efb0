"""The command line.  Commands import what they need when they run, so that help and errors come at once."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from gro.errors import GroError

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
    against: Annotated[str | None, typer.Option(help="How often its answers are better than this model's.")] = None,
    judge: Annotated[Path | None, typer.Option(help="Who says which is better: a file with model: ...")] = None,
    output: Annotated[Path | None, typer.Option(help="Write metrics and all answers to this JSON file.")] = None,
) -> None:
    """Evaluate a model on a recipe's held-out data.

    Of a recipe its starting model, of a run directory its trained model, whose results are also kept in the run.
    """
    from gro.config import load_config

    config = load_config(recipe, overrides or (), needs=["eval"])
    if output is not None and not output.absolute().parent.is_dir():
        raise GroError(f"--output: the folder {output.absolute().parent} does not exist")
    from gro.jobs.evaluate import keep_in_run, run_evaluation
    from gro.jobs.show import show_evaluation
    from gro.jobs.versus import read_judge
    from gro.runs import files
    from gro.runs.terminal import console

    run, asked = recipe if recipe.is_dir() else None, read_judge(judge) if judge is not None else None
    found = run_evaluation(config, run=run, model=model, reference=reference, against=against, judge=asked)
    show_evaluation(console(), found)
    if run is not None:
        print(keep_in_run(run, found))
    if output is not None:
        files.write_json(output, found.plain())
        print(output)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    data: Annotated[str | None, typer.Option(help="Or: the prompts of this file.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help="Makes prompts of the file's columns: {question}")] = None,
    limit: Annotated[int | None, typer.Option(help="Most rows of the file.", min=1)] = None,
    n: Annotated[int, typer.Option("-n", help="Answers per prompt.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.", min=0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: no limit.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered by the chat template.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    best_of: Annotated[int | None, typer.Option(help="Show the best of so many answers, by --reward.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="A name, file.py:function, or {reward: ..., and parameters}.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write selected answers to this file, as a data set.")] = None,
    write_as: Annotated[
        str, typer.Option("--as", help="sft (the best), preference (best against worst) or rewarded (all).")
    ] = "sft",
) -> None:
    """Sample answers from a model: all, or the best of several by a reward."""
    if bool(prompt) == bool(data):
        raise GroError("give prompts with --prompt, or a file of prompts with --data" + (", not both" * bool(data)))
    if (best_of is None) != (not reward):
        raise GroError("--best-of and --reward go together: the reward says which of the answers is best")
    if output is not None and best_of is None:
        raise GroError("--output writes selected answers: give --best-of and --reward")
    if output is not None and not output.absolute().parent.is_dir():
        raise GroError(f"--output: the folder {output.absolute().parent} does not exist")
    from gro.evaluation.selection import parse_form
    from gro.jobs.generate import Asked, generate_best, generate_texts, parse_reward
    from gro.jobs.show import show_answers, show_best, show_selection
    from gro.runs import files
    from gro.runs.terminal import console

    form = parse_form(write_as)
    asked = Asked(
        prompts=prompt or (),
        data=data,
        prompt_template=prompt_template,
        limit=limit,
        n=best_of or n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        chat=chat,
        seed=seed,
    )
    out = console()
    if best_of is None:
        show_answers(out, generate_texts(model, asked), max_new_tokens)
        return
    best = generate_best(model, asked, [parse_reward(r) for r in reward or ()], write_as=form if output else None)
    show_best(out, best, max_new_tokens)
    if output is not None and best.selection is not None:
        files.write_text(output, best.selection.json_lines())
        show_selection(out, best.selection, output)


@app.command("compare-objectives")
def compare_objectives(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="The batch: a file of pairs, or of completions with rewards.")
    ] = None,
    kind: Annotated[str, typer.Option(help="The dataset type of the file.")] = "auto",
    prompt_template: Annotated[str | None, typer.Option(help="Makes prompts of the file's columns: {question}")] = None,
    completion_template: Annotated[str | None, typer.Option(help="Makes completions in the same way.")] = None,
    run: Annotated[str | None, typer.Option(help="Or: the rollouts that this run has recorded.")] = None,
    step: Annotated[int | None, typer.Option(help="Of the run; else the last step that has any.")] = None,
    limit: Annotated[int, typer.Option(help="Most prompts.", min=1)] = 16,
    algorithms: Annotated[
        str | None, typer.Option(help="dpo,ipo,grpo:clip=0.3 or file.py:function; else all that can learn from it.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Else as the run recorded it, or the model itself.")] = None,
    drift: Annotated[float, typer.Option(help="Nats of noise between the old policy and the model.", min=0)] = 0.0,
    group: Annotated[int, typer.Option(help="Show the tokens of this prompt's completions.", min=0)] = 0,
    output: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it into this SVG file.")] = None,
) -> None:
    """Compare what algorithms would do with the same batch: each token's coefficient, and their gradients' cosines."""
    for flag, path in (("--output", output), ("--picture", picture)):
        if path is not None and not path.absolute().parent.is_dir():
            raise GroError(f"{flag}: the folder {path.absolute().parent} does not exist")
    from gro.jobs import compare, compare_show
    from gro.runs import files
    from gro.runs.terminal import console

    batch = compare.rows_of_file(data, kind, prompt_template, completion_template, limit) if data is not None else None
    asked = compare.Asked(
        model=model,
        data=batch,
        run=run,
        step=step,
        limit=limit,
        algorithms=algorithms,
        reference=reference,
        drift=drift,
    )
    found = compare.compare_objectives(asked)
    compare_show.show_comparison(console(), found, group)
    if output is not None:
        files.write_json(output, found.plain())
        print(output)
    if picture is not None:
        files.write_text(picture, compare_show.picture(found, group))
        print(picture)


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
