"""The addresses of `gro inspect`: a page, and what it asks for.  Everything is read; nothing is ever written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gro.runs import RunReader
from gro.runs.records import TERMS, RolloutRecord
from gro.web.app import page
from gro.web.inspect.asking import Asking
from gro.web.inspect.stored import numbers, quantities, quantities_of, scored, summary_of
from gro.web.inspect.words import words_of

PATH = "/inspect"
_CURVES = ("reward", "accuracy", "loss")
"""What the small curve shows: the first of these that the run has."""


class Inspecting:
    """The routes for one run.  Call `close` at the end: it ends the process that loads models.

    >>> inspecting = Inspecting("runs/first")
    >>> serve(inspecting.routes, path=inspecting.path)
    """

    def __init__(self, run: str | Path, device: str = "cpu") -> None:
        """Raises GroError where there is no run."""
        with RunReader(run) as reader:
            self.run = reader.path
        self.asking = Asking(self.run, device)
        self.path = PATH

    @property
    def routes(self) -> list[Route]:
        """A page and four questions."""
        step, row = "/api/inspect/steps/{step:int}", "/rows/{row:int}"
        return [
            Route("/", lambda _: RedirectResponse(PATH)),
            Route(PATH, self._page),
            Route("/api/inspect/run", self._overview),
            Route(step, self._step),
            Route(step + row, self._completion),
            Route(f"{step}{row}/actions/{{at:int}}", self._actions),
        ]

    def close(self) -> None:
        """Ends what was started."""
        self.asking.close()

    async def _page(self, request: Request) -> Response:
        return page(request, f"{self.run.name} · gro inspect", "inspect/main.js", ["inspect/inspect.css"])

    def _overview(self, request: Request) -> Response:
        with RunReader(self.run) as reader:
            algorithm = reader.config.get("algorithm") or {}
            known = ((name, *reader.metric(name)) for name in _CURVES)
            curves = ({"name": n, "steps": s.tolist(), "values": numbers(v)} for n, s, v in known if len(s))
            training = reader.config.get("training") or {}
            terms = reader.kept(TERMS) or ()
            return JSONResponse(
                {
                    "name": self.run.name,
                    "status": reader.status,
                    "algorithm": algorithm.get("name") if isinstance(algorithm, dict) else str(algorithm),
                    "last_step": reader.last_step,
                    "updates": training.get("epochs", 1) * training.get("minibatches", 1),
                    "steps": reader.rollout_steps(),
                    "curve": next(curves, None),
                    "quantities": [asdict(q) for q in quantities_of(terms)],
                    "actions": not scored(terms),
                }
            )

    def _step(self, request: Request) -> Response:
        with self._records(request) as (reader, records):
            words = words_of(reader)
            groups: dict[int, dict[str, Any]] = {}
            for record in records:
                group = groups.setdefault(
                    record.group,
                    {
                        "group": record.group,
                        "key": record.key,
                        "prompt": record.prompt,
                        "tokens": words(record.prompt_ids),
                        "rows": [],
                    },
                )
                group["rows"].append(summary_of(record))
            return JSONResponse({"step": request.path_params["step"], "groups": list(groups.values())})

    def _completion(self, request: Request) -> Response:
        with self._records(request) as (reader, records):
            record = _the(records, request)
            return JSONResponse(
                summary_of(record)
                | {
                    "step": request.path_params["step"],
                    "group": record.group,
                    "ids": list(record.completion_ids),
                    "tokens": words_of(reader)(record.completion_ids),
                    "quantities": {name: numbers(values) for name, values in quantities(record).items()},
                }
            )

    def _actions(self, request: Request) -> Response:
        with self._records(request) as (reader, records):
            record, at = _the(records, request), request.path_params["at"]
            if at >= len(record.completion_ids):
                raise HTTPException(404, f"completion {record.row} has {len(record.completion_ids)} tokens")
            found = self.asking.ask("actions", step=request.path_params["step"], row=record.row, at=at)
            recorded = {
                name: math.exp(value) if math.isfinite(value := float(record.tokens[name][at])) else None
                for name in ("logp", "ref", "sampler")
                if name in record.tokens
            }
            taken = record.completion_ids[at]
            return JSONResponse(found | {"words": words_of(reader)(found["ids"]), "taken": taken, "recorded": recorded})

    @contextmanager
    def _records(self, request: Request) -> Iterator[tuple[RunReader, list[RolloutRecord]]]:
        step = request.path_params["step"]
        with RunReader(self.run) as reader:
            records = reader.rollouts(step) if step < 2**62 else []
            if not records:
                raise HTTPException(404, f"this run has no rollouts of step {step}")
            yield reader, records


def _the(records: list[RolloutRecord], request: Request) -> RolloutRecord:
    row = request.path_params["row"]
    found = next((record for record in records if record.row == row), None)
    if found is None:
        raise HTTPException(404, f"step {request.path_params['step']} has no recorded completion {row}")
    return found
