"""What the pages about runs have in common: text made safe to show, samples, events, pictures, the template's parts.

Text that a model wrote is hostile: the templates escape all of it, and a page forbids itself scripts and fetches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gro.errors import GroError
from gro.runs import files
from gro.runs.curves import SOLID, inline_svg, look, plot_panel
from gro.runs.lines import Panel
from gro.runs.reader import RunReader
from gro.runs.records import Event, RolloutRecord
from gro.runs.terminal import number, printable

FORMATS = ("png", "svg", "pdf")
_INK = 3  # the width of a swatch's line, in the units of its length
_MOST_TEXT = 6000  # characters shown of a prompt or completion


def fill(template: str, **values: Any) -> str:
    """The page as text; everything inserted is escaped."""
    import jinja2  # lazily: a training run that never reports does not pay for it

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    return environment.get_template(template).render(values)


def text(value: Any) -> str:
    """Text for a page; the template escapes it, this makes control characters and bidi marks visible."""
    whole = str(value)
    return printable(whole[:_MOST_TEXT]) + (f" … ({len(whole)} characters)" if len(whole) > _MOST_TEXT else "")


def plain_value(value: Any) -> str:
    """Any value of a summary as text for a page."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{text(key)} {plain_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(plain_value(item) for item in value)
    return "" if value is None else text(value)


def figure(panel: Panel, *, legend: bool = True) -> dict[str, Any]:
    """A panel for the templates: title, what is said beside it, picture."""
    from markupsafe import Markup

    beside = panel.last or (panel.metric if panel.metric != panel.title else "")
    return {
        "title": panel.title,
        "beside": text(beside),
        "svg": Markup(inline_svg(panel, legend=legend)),
    }


def swatch(source: int) -> dict[str, str]:
    """Colour and dashes of a run or group of runs, as its lines are drawn."""
    colour, dashes = look(source)
    scaled = dashes if dashes == SOLID else " ".join(f"{_INK * float(length):g}" for length in dashes.split())
    return {"colour": colour, "dashes": scaled}


def sample(step: int, record: RolloutRecord, **more: Any) -> dict[str, Any]:
    """A completion for the templates.  more: whose it is (`name`, `swatch`)."""
    parts = [(text(name), "none" if value is None else number(value)) for name, value in record.rewards.items()]
    return {
        "name": "",
        "swatch": None,
        "step": step,
        "reward": "" if record.reward is None else number(record.reward),
        "parts": parts if len(parts) > 1 else [],
        "length": len(record.completion_ids),
        "finish": record.finish,
        "role": record.role,
        "prompt": text(record.prompt),
        "completion": text(record.completion),
    } | more


def sampled(run: RunReader, step: int, prompt: str) -> RolloutRecord | None:
    """The first completion of this prompt at a step that the policy drew; None: there is none."""
    drawn = (r for r in run.rollouts(step) if r.prompt == prompt and r.role == "sample" and r.finish != "given")
    return next(drawn, None)


def event(found: Event) -> dict[str, str]:
    """An event for the templates."""
    where = "" if found.step is None else f"step {found.step}"
    moment = time.strftime("%H:%M:%S", time.gmtime(found.time))
    return {"level": found.level, "where": where, "time": moment, "message": text(found.message)}


def check_pictures(folder: Path | None, form: str) -> None:
    """Raises GroError where pictures cannot be written there or in that format."""
    if form not in FORMATS:
        raise GroError(f"--format: expected one of {', '.join(FORMATS)}, found {form!r}")
    if folder is not None and not folder.absolute().parent.is_dir():
        raise GroError(f"--pictures: the folder {folder.absolute().parent} does not exist")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise GroError(f"--pictures: {folder} is a file, expected a folder")


def file_name(panel: Panel) -> str:
    """What a picture of it may be called, without its ending."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", panel.key.removeprefix("metric:"))[:100]


def write_pictures(panels: Sequence[Panel], folder: Path, form: str) -> list[Path]:
    """A file for each panel, named by its key; their paths."""
    files.make_directory(folder.absolute())
    written: dict[Path, None] = {}
    for panel in panels:
        name = file_name(panel)
        path = next(
            path
            for n in range(1, len(panels) + 1)
            if (path := folder / f"{name}{f'-{n}' if n > 1 else ''}.{form}") not in written
        )
        written[plot_panel(path, panel)] = None
    return list(written)
