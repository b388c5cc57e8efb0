"""One self-contained page about a run: what was done, what came of it, the curves, what the model wrote.

Made from the run directory alone, while the run goes on or after.  Text that a model wrote is hostile: the template
escapes all of it, and the page forbids itself scripts and fetches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from gro.runs import files
from gro.runs.curves import Curve, inline_svg
from gro.runs.reader import RunReader
from gro.runs.records import Event, RolloutRecord
from gro.runs.store import CONFIG, REPORT
from gro.runs.terminal import duration, number, printable, sparkline

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward", ("reward", "rewards/*/mean", "eval*reward*")),
    ("Held-out accuracy", ("eval*accuracy*", "eval*accuracies*")),
    ("Accuracy", ("accuracy", "rewards/accuracies", "mean_token_accuracy")),
    ("Reward margin", ("rewards/margins", "margin", "rewards/chosen", "rewards/rejected")),
    ("Loss", ("loss", "eval*loss")),
    ("KL to the reference", ("kl",)),
    ("Completion length, tokens", ("completions/mean_length", "completions/min_length", "completions/max_length")),
    ("Cut off, share", ("completions/clipped_ratio",)),
    ("Groups without variance, share", ("frac_reward_zero_std",)),
    ("Entropy, nats per token", ("entropy",)),
    ("Clipped tokens, share", ("clip_ratio/*mean", "cispo_clip_ratio")),
    ("Gradient norm", ("grad_norm",)),
    ("Sampler–trainer gap, nats", ("sampling/sampling_logp_difference/*",)),
    ("Sampler–trainer ratio", ("sampling/importance_sampling_ratio/*",)),
    ("Critic", ("value_loss", "explained_variance")),
    ("Tokens per second", ("tokens/s",)),
)
"""Title and the metrics (TRL's names) drawn together under it, in this order; the others are in the table of all."""

_MOST_TEXT = 6000  # characters shown of a prompt or completion
_MOST_EVENTS = 500
_MOST_ALARMS = 20
_SAMPLES = 3  # completions shown of each kind


def write_report(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Write the page for a run, by default as report.html in its directory; the path of the page.

    Uses of the summary given to `Run.finish`: `algorithm` (name), `formula` (text), `before` and `after` (name →
    number), `samples` (rows of name → text, number or bool); anything else is shown as a fact.
    Raises GroError where there is no run to read, DiskError where the page cannot be written.
    """
    with RunReader(run_dir) as run:
        page = render(run)
        target = run.path / REPORT if path is None else Path(path)
    files.write_text(target, page)
    return target


def render(run: RunReader) -> str:
    """The page as text."""
    import jinja2  # lazily: a training run that never reports does not pay for it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text("utf-8"))
    summary, config, metrics = run.summary, run.config, run.metrics()
    events = run.events()
    alarms = [event for event in events if event.level != "info"]
    return template.render(
        title=_title(summary, config),
        name=_text(run.path.name),
        status=run.status,
        formula=_text(summary.get("formula", "")),
        facts=list(_facts(run, summary, metrics)),
        outcome=list(_outcome(summary)),
        table=_table(summary.get("samples")),
        panels=list(_panels(metrics)),
        samples=list(_samples(run)),
        alarms=[_event(event) for event in alarms[-_MOST_ALARMS:]],
        more_alarms=max(0, len(alarms) - _MOST_ALARMS),
        metrics=[_metric(name, values) for name, (_, values) in metrics.items()],
        config=_text((run.path / CONFIG).read_text("utf-8")),
        events=[_event(event) for event in events[-_MOST_EVENTS:]],
        more_events=max(0, len(events) - _MOST_EVENTS),
        versions={_text(key): _text(value) for key, value in run.versions.items()},
    )


def _text(value: Any) -> str:
    """Text for the page; the template escapes it, this makes control characters and bidi marks visible."""
    text = str(value)
    return printable(text[:_MOST_TEXT]) + (f" … ({len(text)} characters)" if len(text) > _MOST_TEXT else "")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(key)} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return "" if value is None else _text(value)


def _title(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    algorithm = summary.get("algorithm") or config.get("algorithm") or "run"
    if isinstance(algorithm, Mapping):
        algorithm = algorithm.get("name", "run")
    return _text(algorithm)


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
            yield _text(key).replace("_", " "), _value(value)


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
        yield {"name": _text(name), "before": _value(one), "after": _value(two), "change": change}


def _table(rows: Any) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return {"columns": [], "rows": []}
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key) for key in columns] for row in rows]
    shown = [[cell if isinstance(cell, bool) else _value(cell) for cell in row] for row in cells]
    return {"columns": [_text(column) for column in columns], "rows": shown}


def _panels(metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[dict[str, Any]]:
    from markupsafe import Markup

    taken: set[str] = set()
    for title, patterns in _PANELS:
        matching = [n for pattern in patterns for n in metrics if fnmatchcase(n, pattern) and n not in taken]
        names = [name for name in dict.fromkeys(matching) if np.isfinite(metrics[name][1]).any()]
        taken.update(names)
        if names:
            labels = _without_common_start([_text(name) for name in names])
            curves = [Curve(label, *metrics[name]) for label, name in zip(labels, names, strict=True)]
            last = _finite(metrics[names[0]][1])[-1]
            yield {"title": title, "last": number(last), "svg": Markup(inline_svg(curves, label=title))}


def _without_common_start(names: Sequence[str]) -> list[str]:
    """`a/b/mean, a/b/max` as `mean, max`: the panel's title says the rest."""
    parts = [name.split("/") for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


def _finite(values: np.ndarray) -> list[float]:
    return values[np.isfinite(values)].tolist()


def _metric(name: str, values: np.ndarray) -> dict[str, Any]:
    finite = _finite(values) or [math.nan]
    numbers = [number(value) for value in (finite[0], finite[-1], min(finite), max(finite))]
    return {"name": _text(name), "spark": sparkline(values.tolist(), 24), "numbers": numbers}


def _samples(run: RunReader) -> Iterator[dict[str, Any]]:
    steps = run.rollout_steps()
    if not steps:
        return
    yield {"title": "First completions", "rows": [_sample(steps[0], r) for r in _one_per_group(run.rollouts(steps[0]))]}
    if len(steps) > 1:
        rows = [_sample(steps[-1], record) for record in _one_per_group(run.rollouts(steps[-1]))]
        yield {"title": "Last completions", "rows": rows}
    best, worst = (run.extremes(best=best, limit=_SAMPLES) for best in (True, False))
    if best and worst and best[0][1].reward != worst[0][1].reward:
        yield {"title": "Highest reward", "rows": [_sample(step, record) for step, record in best]}
        yield {"title": "Lowest reward", "rows": [_sample(step, record) for step, record in worst]}


def _one_per_group(records: Sequence[RolloutRecord]) -> list[RolloutRecord]:
    firsts: dict[int, RolloutRecord] = {}
    for record in records:
        firsts.setdefault(record.group, record)
    return list(firsts.values())[:_SAMPLES]


def _sample(step: int, record: RolloutRecord) -> dict[str, Any]:
    parts = [(_text(name), "none" if value is None else number(value)) for name, value in record.rewards.items()]
    return {
        "step": step,
        "reward": "" if record.reward is None else number(record.reward),
        "parts": parts if len(parts) > 1 else [],
        "length": len(record.completion_ids),
        "finish": record.finish,
        "role": record.role,
        "prompt": _text(record.prompt),
        "completion": _text(record.completion),
    }


def _event(event: Event) -> dict[str, str]:
    where = "" if event.step is None else f"step {event.step}"
    moment = time.strftime("%H:%M:%S", time.gmtime(event.time))
    return {"level": event.level, "where": where, "time": moment, "message": _text(event.message)}
