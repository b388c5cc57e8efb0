"""The page of `gro label`, and what it asks the server."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gro.labels.agreement import agreement
from gro.labels.answers import MOST_RATIONALE
from gro.labels.export import ratings
from gro.labels.store import Conflict, NotSaved, Sent, Store
from gro.web.app import json_body, page
from gro.web.label.waiting import WaitingRun

MOST_NAME = 60


def routes(store: Store, name: str = "", run: WaitingRun | None = None) -> list[Route]:
    """The pages over a store; `name` is who labels where nobody says another, `run` what waits for the labels."""

    def kept_up() -> Store:
        if run is not None:
            run.keep_up(store)
        return store

    def shown(who: str) -> dict[str, Any]:
        kept_up()
        return _shown(store, who) | {"run": run.status if run is not None else None}

    async def home(request: Request) -> Response:
        return page(request, "gro label", "label.js", ["label.css"])

    async def setting(request: Request) -> Response:
        asked = {"kind": store.kind.name, "top": store.kind.top, "per_item": store.per_item}
        return JSONResponse(asked | {"name": name, "run": str(run.path) if run is not None else None})

    async def following(request: Request) -> Response:
        who = _annotator(await json_body(request))
        return await _done(lambda: shown(who))

    async def label(request: Request) -> Response:
        body = await json_body(request)
        sent = _sent(body)
        return await _done(lambda: kept_up().label(sent))

    async def undo(request: Request) -> Response:
        body = await json_body(request)
        who, number = _annotator(body), body.get("label")
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) > 1 << 62:
            raise HTTPException(400, "label is the number of a label")
        return await _done(lambda: (kept_up().undo(who, number), shown(who))[1])

    async def agreed(request: Request) -> Response:
        return await _done(lambda: asdict(agreement(ratings(store))) | {"people": people(store)})

    return [
        Route("/", home),
        Route("/api/label/setting", setting),
        Route("/api/label/next", following, methods=["POST"]),
        Route("/api/label/save", label, methods=["POST"]),
        Route("/api/label/undo", undo, methods=["POST"]),
        Route("/api/label/agreement", agreed),
    ]


async def _done(work: Callable[[], Mapping[str, Any]]) -> Response:
    """What the store says, from another thread: a write waits for the disk."""
    try:
        return JSONResponse(await run_in_threadpool(work))
    except Conflict as e:
        raise HTTPException(409, str(e)) from e
    except NotSaved as e:
        raise HTTPException(507, str(e)) from e


def _shown(store: Store, who: str) -> dict[str, Any]:
    """The next item, how far everything is, and what an undo would take back."""
    offered = store.offer(who)
    return {
        "item": asdict(offered) if offered is not None else None,
        "last": store.last(who),
        "progress": progress(store, who),
    }


def progress(store: Store, who: str) -> dict[str, int]:
    """Labels wanted and there, and this person's; what a run has used is done, be it that somebody skipped it."""
    items, done = store.read(
        "SELECT count(*), coalesce(sum(iif(used.item IS NULL, min(done, :n), :n)), 0)"
        " FROM items LEFT JOIN used ON used.item = items.id",
        {"n": store.per_item},
    )[0]
    mine, skipped = store.read(
        "SELECT count(*) - coalesce(sum(skipped), 0), coalesce(sum(skipped), 0) FROM labels"
        " WHERE annotator = ? AND withdrawn IS NULL",
        (who,),
    )[0]
    return {"wanted": items * store.per_item, "done": done, "mine": mine, "skipped": skipped}


def people(store: Store) -> list[dict[str, Any]]:
    """Everybody who has labelled, with how much and the median of their seconds."""
    rows = store.read("SELECT annotator, skipped, seconds FROM labels WHERE withdrawn IS NULL ORDER BY annotator")
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for who, skipped, seconds in rows:
        one = found.setdefault(who, {"name": who, "labels": 0, "skipped": 0})
        one["skipped" if skipped else "labels"] += 1
        if seconds is not None and not skipped:
            times.setdefault(who, []).append(seconds)
    for who, one in found.items():
        one["seconds"] = median(times[who]) if who in times else None
    return list(found.values())


def _sent(body: Mapping[str, Any]) -> Sent:
    item, lease, key = (_text(body, name, 100) for name in ("item", "lease", "key"))
    if len(key) < 8:
        raise HTTPException(400, "key has at least 8 characters")
    rationale, seconds = body.get("rationale", ""), body.get("seconds")
    if not isinstance(rationale, str) or len(rationale) > MOST_RATIONALE:
        raise HTTPException(400, f"rationale is text of at most {MOST_RATIONALE} characters")
    if seconds is not None and (not isinstance(seconds, int | float) or not 0 <= seconds <= 1e7):
        raise HTTPException(400, "seconds is a number from 0")
    answer = body.get("answer")
    if len(json.dumps(answer)) > 1000:
        raise HTTPException(400, "the answer is too long")
    return Sent(
        _annotator(body), item, lease, key, answer, _storable(rationale), None if seconds is None else float(seconds)
    )


def _annotator(body: Mapping[str, Any]) -> str:
    """The name, without what cannot be seen: two names that look alike are one."""
    name = unicodedata.normalize("NFC", _text(body, "annotator", MOST_NAME))
    name = " ".join("".join(c for c in name if unicodedata.category(c)[0] != "C" or c.isspace()).split())
    if not name:
        raise HTTPException(400, "annotator is a name")
    return name


def _text(body: Mapping[str, Any], name: str, most: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or len(value) > most:
        raise HTTPException(400, f"{name} is text of at most {most} characters")
    return _storable(value)


def _storable(text: str) -> str:
    """SQLite takes no lone surrogates."""
    return text.encode("utf-8", "replace").decode()
