"""Commands that collect what people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gro.cli.app import Browser, Port, app
from gro.errors import GroError

Labels = Annotated[Path, typer.Option(help="The file of labels; made, or gone on with.")]


@app.command()
def label(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Prompts with two or more completions, or a run that waits for people; none: go on with --labels."
        ),
    ] = None,
    labels: Labels = Path("labels.db"),
    kind: Annotated[
        str | None, typer.Option(help="pairs, best, ranking, score5 or score10; else pairs, or what the labels are.")
    ] = None,
    name: Annotated[str, typer.Option(help="Who labels; else the page asks.")] = "",
    per_item: Annotated[int, typer.Option(help="How many people label each item.", min=1)] = 1,
    model: Annotated[str | None, typer.Option(help="Label fresh samples of this model: DATA has the prompts.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Samples per prompt; else 2.", min=2, max=9)] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts to sample for.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the samples; else 1.", min=0.01)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of the samples; else 256.", min=1)] = None,
    reward_model: Annotated[
        Path | None, typer.Option(help="Ask first where this reward model is least certain.")
    ] = None,
    port: Port = 0,
    seed: Annotated[int, typer.Option(help="Of the samples, and of which side each is shown on.", min=0)] = 0,
    browser: Browser = False,
) -> None:
    """Collect preferences in a page of your browser, with keys, several people at once."""
    from gro.web.label.command import Asked, run_label

    asked = Asked(
        data=data,
        labels=labels,
        kind=kind,
        name=name,
        per_item=per_item,
        model=model,
        n=n,
        limit=limit,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        reward_model=reward_model,
        port=port,
        seed=seed,
        browser=browser,
    )
    run_label(asked)


@app.command("label-export")
def label_export(
    labels: Annotated[Path, typer.Argument(help="A file of labels, or a run that people have rated.")],
    write_as: Annotated[
        str, typer.Option("--as", help="preference, ranking, unpaired, rewarded, label-studio or csv.")
    ] = "preference",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file; else it is printed.")] = None,
    each: Annotated[bool, typer.Option(help="Each person's label, in place of what most say.")] = False,
) -> None:
    """Write labels as a data set: TRL's preference formats, Label Studio's JSON, or CSV."""
    from gro.labels.export import export
    from gro.labels.reading import Labels
    from gro.runs import files
    from gro.web.label.waiting import labels_in

    labels = labels_in(labels)
    with Labels(labels) as found:
        text = export(found, write_as, each=each)
    if not text.strip():
        raise GroError(f"{labels} has no labels that can be written as {write_as}")
    if output is None:
        print(text, end="")
    else:
        files.write_text(output, text)
        print(output)
