"""One self-contained page about several runs: their curves over each other, their settings, their answers.

Made from the run directories alone, also while the runs go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gro.errors import GroError
from gro.runs import files, pages
from gro.runs.axes import AXES, STEP, without_axis
from gro.runs.differences import differences
from gro.runs.lines import FRONTIER, Line
from gro.runs.overlay import grouped
from gro.runs.pages import figure, fill, text
from gro.runs.panels import DEFAULT_SMOOTHING, Panel, Series, panels
from gro.runs.plain import encodable
from gro.runs.reader import RunReader
from gro.runs.series import short_names
from gro.runs.store import DATABASE
from gro.runs.terminal import number

_PROMPTS = 3  # of those that runs share
_MOST_ALARMS = 5  # of a run
_SUMMED_UP = ("reward", "reward:held_out", "gold:held_out", "held_out_accuracy", "accuracy", "loss:held_out", "kl")
_HELD_OUT = ("eval_reward", "eval_gold", "eval_accuracy", "eval_loss")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs, with what they have recorded until now.

    >>> compared = Comparison.read(["runs/grpo", "runs/seeds"])
    >>> page = render(compared, compared.panels())
    """

    paths: Sequence[Path]
    runs: Sequence[Series]
    by_seed: bool = True
    """Whether runs that differ only in their seed are one line with a band."""
    left_out: Sequence[str] = ()
    """Why others that lie in the folders are not among them."""

    @classmethod
    def read(cls, paths: Sequence[str | Path], *, by_seed: bool = True) -> Comparison:
        """These runs, and those that lie in these folders.

        Raises GroError where there are not two runs, or none of their metrics was recorded by two of them.
        """
        found: dict[Path, Series] = {}
        left_out = []
        for path, named in find_runs(paths).items():
            try:
                with RunReader(path) as reader:  # one at a time: there may be more runs than files that can be open
                    found[path] = Series.read(reader, path.name)
            except GroError as error:
                if named:
                    raise
                left_out.append(str(error))
        names = short_names(list(found))
        runs = [replace(run, name=encodable(name)) for run, name in zip(found.values(), names, strict=True)]
        _check(runs, left_out)
        return cls(list(found), runs, by_seed, left_out)

    def panels(self, smooth: float = DEFAULT_SMOOTHING, *, every: bool = False, x: str = STEP) -> list[Panel]:
        """What is drawn of them, over one of step, tokens, hours."""
        return panels(self.runs, smooth=smooth, by_seed=self.by_seed, every=every, x=x)

    @property
    def sources(self) -> list[tuple[str, tuple[int, ...]]]:
        """What has a colour: its label, and the indices of its runs."""
        return [(group.label, group.members) for group in grouped(self.runs, self.by_seed)]


def _check(runs: Sequence[Series], left_out: Sequence[str]) -> None:
    if len(runs) < 2:
        found = f"found {runs[0].name} only; gro report draws one run" if runs else "found none"
        raise GroError(f"two or more runs are compared, {found}" + "".join(f"\n{why}" for why in left_out))
    recorded = [name for run in runs for name in run.metrics]
    if len(set(recorded)) == len(recorded):
        raise GroError("there is nothing to compare: no metric was recorded by two of these runs")


def find_runs(paths: Sequence[str | Path]) -> dict[Path, bool]:
    """The run directories among these paths and directly in these folders, each once, and whether it was named itself.

    Raises GroError where a path is neither a run nor a folder with runs.
    """
    found: dict[Path, tuple[Path, bool]] = {}
    for path in (Path(path).expanduser().absolute() for path in paths):
        if (path / DATABASE).is_file():
            same = path.resolve()
            found[same] = (found[same][0] if same in found else path, True)
            continue
        if not path.is_dir():
            raise GroError(f"{path} does not exist" if not path.exists() else f"{path} is not a run directory")
        inside = sorted(child.parent for child in path.glob(f"*/{DATABASE}") if child.is_file())
        if not inside:
            raise GroError(f"{path} is neither a run directory nor a folder with some in it: there is no {DATABASE}")
        for child in inside:
            found.setdefault(child.resolve(), (child, False))
    return dict(found.values())


def write_comparison(compared: Comparison, path: str | Path, drawn: Sequence[Panel]) -> Path:
    """Write the page with these panels as its curves; its path.  Raises DiskError where it cannot be written."""
    target = Path(path)
    files.write_text(target, render(compared, drawn))
    return target


def render(compared: Comparison, drawn: Sequence[Panel]) -> str:
    """The page as text."""
    sources = compared.sources
    looks = {i: pages.swatch(source) for source, (_, members) in enumerate(sources) for i in members}
    order = [i for _, members in sources for i in members]
    rows = differences([compared.runs[i] for i in order])
    shown, alarms = [], []
    asked: dict[str, dict[int, int]] = {}
    for i in order:
        with RunReader(compared.paths[i]) as reader:
            shown.append(_run(reader, compared.runs[i], looks[i]))
            alarms += _alarms(reader, compared.runs[i], looks[i])
            for (_, prompt), steps in reader.prompts().items():
                known = asked.setdefault(prompt, {})
                known[i] = max(known.get(i, 0), steps[-1])
    axis = next((panel.x for panel in drawn if panel.x in AXES), STEP)
    return fill(
        "compare.html.jinja",
        runs=shown,
        legend=[{"swatch": pages.swatch(i), "label": text(label)} for i, (label, _) in enumerate(sources)],
        panels=[figure(panel, legend=False) for panel in drawn],
        axis=axis,
        without_axis=[text(name) for name in without_axis(compared.runs, axis)],
        banded=any(line.low is not None for panel in drawn for line in panel.lines),
        seeds=_seeds(drawn, sources),
        frontier=any(panel.key == FRONTIER for panel in drawn),
        differences=[{"key": text(row.key), "cells": [text(value) for value in row.values]} for row in rows],
        shared=list(_shared_prompts(compared, asked, looks)),
        alarms=alarms,
        left_out=[text(why) for why in compared.left_out],
    )


def _run(reader: RunReader, run: Series, look: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table of runs."""
    reward, last_step = _finite(run, "reward"), reader.last_step
    tokens = _finite(run, "num_tokens")
    held_out = next(
        (name for name in (*_HELD_OUT, *run.metrics) if name.startswith("eval") and _finite(run, name)), None
    )
    values = _finite(run, held_out) if held_out is not None else []
    return {
        "name": text(run.name),
        "swatch": look,
        "algorithm": text(run.algorithm),
        "status": reader.status,
        "numbers": [
            "" if last_step is None else str(last_step),
            f"{max(tokens):,.0f}" if tokens else "",
            number(reward[-1]) if reward else "",
            number(max(reward)) if reward else "",
        ],
        "held_out": "" if held_out is None else text(held_out.removeprefix("eval_")),
        "before": number(values[0]) if len(values) > 1 else "",
        "after": number(values[-1]) if values else "",
    }


def _seeds(drawn: Sequence[Panel], sources: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    """Means over seeds with their intervals, as drawn, at the last step that all runs of a group have."""
    shown = [panel for panel in drawn if panel.key in _SUMMED_UP and any(line.low is not None for line in panel.lines)]
    rows = []
    for source, (label, members) in enumerate(sources):
        lines = [next((line for line in panel.lines if line.source == source), None) for panel in shown]
        if len(members) > 1:
            cells = [_interval(line) for line in lines]
            rows.append({"swatch": pages.swatch(source), "label": text(label), "cells": cells})
    return {"titles": [panel.title for panel in shown], "rows": rows if shown else []}


def _interval(line: Line | None) -> str:
    if line is None or line.low is None or line.high is None or not np.isfinite(line.low).any():
        return ""
    at = np.flatnonzero(np.isfinite(line.low))[-1]
    mean, low, high = (number(float(values[at])) for values in (line.values, line.low, line.high))
    return f"{mean} ({low} to {high})"


def _finite(run: Series, metric: str) -> list[float]:
    if metric not in run.metrics:
        return []
    values = run.metrics[metric][1]
    return values[np.isfinite(values)].tolist()


def _shared_prompts(
    compared: Comparison, asked: Mapping[str, Mapping[int, int]], looks: Mapping[int, Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """Prompts that most of the runs have sampled, each with an answer of every run at the last step that has one.

    `asked`: of each prompt the runs and their last steps.
    """
    several = [(prompt, last) for prompt, last in asked.items() if len(last) > 1]
    several.sort(key=lambda found: (-len(found[1]), -min(found[1].values())))
    for prompt, last in several[:_PROMPTS]:
        rows = []
        for i, step in last.items():
            with RunReader(compared.paths[i]) as reader:
                record = pages.sampled(reader, step, prompt)
            if record is not None:
                rows.append(pages.sample(step, record, name=text(compared.runs[i].name), swatch=looks[i]))
        if len(rows) > 1:
            yield {"prompt": text(prompt), "rows": rows}


def _alarms(reader: RunReader, run: Series, look: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What the page says of the run's alarms, where it has any."""
    found = [event for event in reader.events() if event.level != "info"]
    if found:
        yield {
            "name": text(run.name),
            "swatch": look,
            "count": len(found),
            "rows": [pages.event(event) for event in found[-_MOST_ALARMS:]],
            "more": max(0, len(found) - _MOST_ALARMS),
        }
