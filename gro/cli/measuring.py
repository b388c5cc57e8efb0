"""Commands that evaluate a model, sample from it, or compare what algorithms do with a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import Model, Overrides, Recipe, app
from gro.errors import GroError


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
