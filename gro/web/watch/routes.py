"""The addresses of `gro watch`: a page, the stream of its news, and what it asks for.  Nothing is ever written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gro.runs import RunReader
from gro.runs.axes import AXES, STEP, has_axis, places, without_axis
from gro.runs.curves import picture
from gro.runs.overlay import grouped
from gro.runs.pages import file_name
from gro.runs.panels import DEFAULT_SMOOTHING, Panel, Series, differences, panels
from gro.web.app import page
from gro.web.watch.board import Board
from gro.web.watch.samples import prompts, samples
from gro.web.watch.stream import Stream
from gro.web.watch.watched import Known, Watched

PATH = "/watch"
POINTS, MOST_POINTS = 240, 800
"""Of a line in a small panel, and in the one that is enlarged."""
_KINDS = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
"""Of pictures."""
_MOST_ALARMS = 200
_KEPT = 8
"""Answers that are kept for pages that ask the same."""


class Watching:
    """The routes for run directories and folders of them.

    >>> watching = Watching(["runs"])
    >>> serve(watching.routes, path=watching.path, ending=watching.end)
    """

    def __init__(self, paths: Sequence[str | Path], every: float = 1.0, heartbeat: float = 15.0) -> None:
        """`every`: seconds from look to look.  Raises GroError where a path is no folder."""
        self.board = Board(paths)
        self.stream = Stream(self.board, every, heartbeat)
        self.path = PATH
        self._answers: dict[Any, bytes] = {}
        self._guard, self._drawing = threading.Lock(), threading.Lock()

    @property
    def routes(self) -> list[Route]:
        """A page, its stream and seven questions; what is asked for stands behind the ?."""
        return [
            Route("/", lambda _: RedirectResponse(PATH)),
            Route(PATH, self._page),
            Route("/api/watch/stream", self.stream.answer),
            Route("/api/watch/runs", self._runs),
            Route("/api/watch/panels", self._panels),
            Route("/api/watch/picture", self._picture),
            Route("/api/watch/alarms", self._alarms),
            Route("/api/watch/settings", self._settings),
            Route("/api/watch/prompts", self._prompts),
            Route("/api/watch/samples", self._samples),
        ]

    def end(self) -> None:
        """The server is going."""
        self.stream.end()

    async def _page(self, request: Request) -> Response:
        return page(request, "gro watch", "watch/main.js", ["watch/watch.css"])

    def _runs(self, request: Request) -> Response:
        self.board.refresh()
        return JSONResponse(
            {
                "runs": [known.facts() for known in self.board.known().values()],
                "paths": [path.name for path in self.board.paths],
                "smooth": DEFAULT_SMOOTHING,
            }
        )

    def _panels(self, request: Request) -> Response:
        """`sources` are the runs of each line's source; `colours` the place of each run among all that are watched, so
        that a line keeps its colour whatever else is chosen; `without` the runs that cannot be drawn over `x`."""
        chosen, how, big = self._chosen(request), _how(request), request.query_params.get("big", "")
        everyone = self.board.known().values()
        read = sum(one.status != "unread" for one in everyone)  # the others have no settings yet, so no group
        asked = (tuple((one.series.name, one.version) for one in chosen), read, big, *how.values())
        with self._guard:
            answer = self._answers.get(asked)
        if answer is None:
            series = [one.series for one in chosen]
            made = panels(series, **how) if series else []
            told = {
                "panels": [_plain(panel, MOST_POINTS if panel.key == big else POINTS) for panel in made],
                "sources": [[series[i].name for i in group.members] for group in grouped(series, how["by_seed"])],
                "colours": _colours([one.series for one in everyone], how["by_seed"]),
                "x": how["x"],
                "without": without_axis(series, how["x"]),
            }
            answer = json.dumps(told, allow_nan=False).encode()
            with self._guard:
                self._answers[asked] = answer
                while len(self._answers) > _KEPT:
                    del self._answers[next(iter(self._answers))]
        return Response(answer, media_type="application/json")

    def _picture(self, request: Request) -> Response:
        """A panel as `gro compare --pictures` draws it, in the colours of the page."""
        how, key, form = _how(request), request.query_params.get("panel", ""), request.query_params.get("form", "")
        if form not in _KINDS:
            raise HTTPException(400, f"form is one of {', '.join(_KINDS)}, found {form!r}")
        series = [one.series for one in self._chosen(request)]
        panel = next((one for one in (panels(series, **how) if series else ()) if one.key == key), None)
        if panel is None:
            raise HTTPException(404, f"these runs have no panel {key!r}")
        colours = _colours([known.series for known in self.board.known().values()], how["by_seed"])
        own = [colours[series[group.members[0]].name] for group in grouped(series, how["by_seed"])]
        lines = tuple(line if line.source < 0 else replace(line, source=own[line.source]) for line in panel.lines)
        with self._drawing:
            drawn = picture(replace(panel, lines=lines), form)
        headers = {"content-disposition": f'attachment; filename="{file_name(panel)}.{form}"'}
        return Response(drawn, media_type=_KINDS[form], headers=headers)

    def _alarms(self, request: Request) -> Response:
        """Of the chosen runs, newest first; `at` is where each lies on every axis."""
        found = [alarm for one in self._chosen(request) for alarm in _placed(one)]
        found.sort(key=lambda alarm: alarm["time"], reverse=True)
        return JSONResponse({"alarms": found[:_MOST_ALARMS], "more": max(0, len(found) - _MOST_ALARMS)})

    def _settings(self, request: Request) -> Response:
        """In what the chosen runs differ; of one run its configuration."""
        chosen = self._chosen(request)
        if len(chosen) == 1:
            return JSONResponse({"config": chosen[0].config})
        rows = differences([one.series for one in chosen])
        return JSONResponse(
            {
                "runs": [one.series.name for one in chosen],
                "rows": [{"key": row.key, "values": row.values} for row in rows],
            }
        )

    def _prompts(self, request: Request) -> Response:
        with self._opened(request) as run:
            return JSONResponse({"prompts": prompts(run)})

    def _samples(self, request: Request) -> Response:
        step = request.query_params.get("step", "")
        if not (step.isascii() and step.isdecimal() and len(step) < 20):
            raise HTTPException(400, "step is a whole number")
        with self._opened(request) as run:
            return JSONResponse(samples(run, request.query_params.get("prompt", ""), int(step)))

    def _chosen(self, request: Request) -> list[Known]:
        names = dict.fromkeys(request.query_params.getlist("run"))
        return [self._run(name).known for name in names]

    def _run(self, name: str) -> Watched:
        if name not in self.board.runs:  # a run may be younger than the last look, and the server, too
            self.board.refresh()
        watched = self.board.runs.get(name)
        if watched is None:
            raise HTTPException(404, f"no run that is watched is named {name!r}")
        return watched

    @contextmanager
    def _opened(self, request: Request) -> Iterator[RunReader]:
        with RunReader(self._run(request.query_params.get("run", "")).path) as reader:
            yield reader


def _placed(known: Known) -> Iterator[dict[str, Any]]:
    """The alarms of a run with their places."""
    steps = [alarm["step"] or 0 for alarm in known.alarms]
    found = {axis: places(steps, known.series, axis).tolist() for axis in AXES if has_axis(known.series, axis)}
    for i, alarm in enumerate(known.alarms):
        at = {} if alarm["step"] is None else {axis: one[i] for axis, one in found.items()}
        yield {"run": known.series.name, **alarm, "at": at}


def _plain(panel: Panel, most: int) -> dict[str, Any]:
    return replace(panel, lines=tuple(line.thinned(most) for line in panel.lines)).plain()


def _colours(runs: Sequence[Series], by_seed: bool) -> dict[str, int]:
    return {runs[i].name: number for number, group in enumerate(grouped(runs, by_seed)) for i in group.members}


def _how(request: Request) -> dict[str, Any]:
    """How panels are made."""
    smooth, x = _number(request, "smooth", DEFAULT_SMOOTHING), request.query_params.get("x", STEP)
    if x not in AXES:
        raise HTTPException(400, f"x is one of {', '.join(AXES)}, found {x!r}")
    if not 0 <= smooth < 1:
        raise HTTPException(400, f"smooth is at least 0 and below 1, found {smooth}")
    return {"smooth": smooth, "by_seed": _flag(request, "seeds", True), "every": _flag(request, "every", False), "x": x}


def _number(request: Request, name: str, default: float) -> float:
    told = request.query_params.get(name)
    try:
        return default if told is None else float(told)
    except ValueError:
        raise HTTPException(400, f"{name} is a number, found {told!r}") from None


def _flag(request: Request, name: str, default: bool) -> bool:
    told = request.query_params.get(name, "1" if default else "0")
    if told not in ("0", "1"):
        raise HTTPException(400, f"{name} is 0 or 1, found {told!r}")
    return told == "1"
