"""One self-contained page about a run: what was done, what came of it, the curves, what the model wrote.

Made from the run directory alone, while the run goes on or after.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gro.runs import files, pages
from gro.runs.axes import STEP
from gro.runs.pages import figure, fill, plain_value, text
from gro.runs.panels import DEFAULT_SMOOTHING, Panel, Series, panels
from gro.runs.reader import RunReader
from gro.runs.records import RolloutRecord
from gro.runs.store import CONFIG, REPORT
from gro.runs.terminal import duration, number, sparkline

_MOST_EVENTS = 500
_MOST_ALARMS = 20
_SAMPLES = 3  # completions shown of each kind


def write_report(
    run_dir: str | Path,
    path: str | Path | None = None,
    *,
    smooth: float = DEFAULT_SMOOTHING,
    every: bool = False,
    x: str = STEP,
) -> Path:
    """Write the page for a run, by default as report.html in its directory; the path of the page.

    `smooth`: the share of a curve over which values are averaged.  `every`: with a curve of every metric.
    `x`: over what they are, one of step, tokens, hours.
    Uses of the summary given to `Run.finish`: `algorithm` (name), `formula` (text), `before` and `after` (name →
    number), `samples` (rows of name → text, number or bool); anything else is shown as a fact.
    Raises GroError where there is no run to read, DiskError where the page cannot be written.
    """
    with RunReader(run_dir) as run:
        return write_page(run, panels([Series.read(run, run.path.name)], smooth=smooth, every=every, x=x), path)


def write_page(run: RunReader, drawn: Sequence[Panel], path: str | Path | None = None) -> Path:
    """Write the page for a run with these panels as its curves; its path."""
    target = run.path / REPORT if path is None else Path(path)
    files.write_text(target, render(run, drawn))
    return target


def render(run: RunReader, drawn: Sequence[Panel]) -> str:
    """The page as text, with these panels as its curves."""
    summary, config, metrics = run.summary, run.config, run.metrics()
    events = run.events()
    alarms = [event for event in events if event.level != "info"]
    over_time = list(_over_time(run))
    return fill(
        "report.html.jinja",
        title=_title(summary, config),
        name=text(run.path.name),
        status=run.status,
        formula=text(summary.get("formula", "")),
        facts=list(_facts(run, summary, metrics)),
        outcome=list(_outcome(summary)),
        table=_table(summary.get("samples")),
        panels=[figure(panel) for panel in drawn],
        over_time=over_time,
        samples=[*([] if over_time else _first_and_last(run)), *_best_and_worst(run)],
        alarms=[pages.event(event) for event in alarms[-_MOST_ALARMS:]],
        more_alarms=max(0, len(alarms) - _MOST_ALARMS),
        metrics=[_metric(name, values) for name, (_, values) in metrics.items()],
        config=text((run.path / CONFIG).read_text("utf-8")),
        events=[pages.event(event) for event in events[-_MOST_EVENTS:]],
        more_events=max(0, len(events) - _MOST_EVENTS),
        versions={text(key): text(value) for key, value in run.versions.items()},
    )


def _title(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    algorithm = summary.get("algorithm") or config.get("algorithm") or "run"
    if isinstance(algorithm, Mapping):
        algorithm = algorithm.get("name", "run")
    return text(algorithm)


def _facts(
    run: RunReader, summary: Mapping[str, Any], metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[str, str]]:
    steps = run.times()[0]
    if len(steps):
        yield "steps", str(steps[-1])
    if run.started is not None and run.ended is not None:
        yield "started", _moment(run.started)
        yield "ended" if run.status == "finished" else "last sign of life", _moment(run.ended)
        yield "duration", duration(run.ended - run.started)
    if "num_tokens" in metrics:
        yield "tokens", f"{np.nanmax(metrics['num_tokens'][1], initial=0):,.0f}"
    for key, value in summary.items():
        if key not in ("algorithm", "formula", "before", "after", "samples"):
            yield text(key).replace("_", " "), plain_value(value)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _outcome(summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return
    for name in [*before, *(name for name in after if name not in before)]:
        one, two = before.get(name), after.get(name)
        change = ""
        if isinstance(one, (int, float)) and isinstance(two, (int, float)):
            change = f"{'+' if two >= one else '−'}{number(abs(two - one))}"
        yield {"name": text(name), "before": plain_value(one), "after": plain_value(two), "change": change}


def _table(rows: Any) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return {"columns": [], "rows": []}
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key) for key in columns] for row in rows]
    shown = [[cell if isinstance(cell, bool) else plain_value(cell) for cell in row] for row in cells]
    return {"columns": [text(column) for column in columns], "rows": shown}


def _finite(values: np.ndarray) -> list[float]:
    return values[np.isfinite(values)].tolist()


def _metric(name: str, values: np.ndarray) -> dict[str, Any]:
    finite = _finite(values) or [math.nan]
    numbers = [number(value) for value in (finite[0], finite[-1], min(finite), max(finite))]
    return {"name": text(name), "spark": sparkline(values.tolist(), 24), "numbers": numbers}


def _over_time(run: RunReader) -> Iterator[dict[str, Any]]:
    """Prompts that were sampled at several steps, those over the longest time first, each with an answer at the first
    step, at the last, and at the one that is nearest to the middle."""
    prompts = [(steps, asked) for (_, asked), steps in run.prompts().items() if len(steps) > 1]
    prompts.sort(key=lambda prompt: prompt[0][0] - prompt[0][-1])
    for steps, asked in prompts[:_SAMPLES]:
        middle = min(steps, key=lambda step: abs(2 * step - steps[0] - steps[-1]))
        found = [(step, pages.sampled(run, step, asked)) for step in sorted({steps[0], middle, steps[-1]})]
        rows = [pages.sample(step, record) for step, record in found if record is not None]
        if len(rows) > 1:  # what comes from files is the same at every step, and is not sampled
            yield {"prompt": text(asked), "rows": rows}


def _first_and_last(run: RunReader) -> Iterator[dict[str, Any]]:
    steps = run.rollout_steps()
    ends = dict.fromkeys([*steps[:1], *steps[-1:]])
    for title, step in zip(("First completions", "Last completions"), ends, strict=False):
        rows = [pages.sample(step, record) for record in _one_per_group(run.rollouts(step))]
        yield {"title": title, "rows": rows}


def _best_and_worst(run: RunReader) -> Iterator[dict[str, Any]]:
    best, worst = (run.extremes(best=best, limit=_SAMPLES) for best in (True, False))
    if best and worst and best[0][1].reward != worst[0][1].reward:
        yield {"title": "Highest reward", "rows": [pages.sample(step, record) for step, record in best]}
        yield {"title": "Lowest reward", "rows": [pages.sample(step, record) for step, record in worst]}


def _one_per_group(records: Sequence[RolloutRecord]) -> list[RolloutRecord]:
    firsts: dict[int, RolloutRecord] = {}
    for record in records:
        firsts.setdefault(record.group, record)
    return list(firsts.values())[:_SAMPLES]
