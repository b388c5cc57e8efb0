"""A guarded application of pages, JSON calls and the packaged static files."""

from __future__ import annotations

import html
import json
import mimetypes
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from gro.errors import GroError
from gro.web.guard import Guard

STATIC = Path(__file__).parent / "static"
_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="gro-csrf" content="{csrf}">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
{styles}
{script}
</head>
<body>
<main id="app">{text}</main>
</body>
</html>
"""


def create_app(routes: Sequence[BaseRoute], *, token: str, port: int, **limits: Any) -> Starlette:
    """An application that answers `routes` and /static/ to who has the token.

    Paths under /api/ answer in JSON, errors too: `{"error": "one sentence"}`.  A handler raises `HTTPException` with
    that sentence, or a `GroError`, which is a 400.  `limits` go to the `Guard`.
    """
    mimetypes.add_type("text/javascript", ".js")  # some systems say text/plain, which browsers then refuse to run
    csrf = secrets.token_urlsafe(24)
    app = Starlette(
        routes=[*routes, Mount("/static", StaticFiles(directory=STATIC))],
        middleware=[Middleware(Guard, token=token, csrf=csrf, port=port, **limits)],
        exception_handlers={HTTPException: _refused, GroError: _refused},
    )
    app.state.csrf = csrf
    return app


def page(request: Request, title: str, module: str, styles: Sequence[str] = ()) -> Response:
    """A page whose content is made by a JavaScript module of /static/, such as `label.js`."""
    return HTMLResponse(_shell(request, title, ["base.css", *styles], module))


def _shell(request: Request, title: str, styles: Sequence[str], module: str = "", text: str = "") -> str:
    return _SHELL.format(
        csrf=html.escape(request.app.state.csrf),
        title=html.escape(title),
        styles="\n".join(f'<link rel="stylesheet" href="/static/{html.escape(name)}">' for name in styles),
        script=f'<script type="module" src="/static/{html.escape(module)}"></script>' if module else "",
        text=text,
    )


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent; a 400 for anything else.  Its size has been bounded before."""
    try:
        found = json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not JSON") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "the request is not a JSON object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


async def _refused(request: Request, error: Exception) -> Response:
    status, why = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    headers = getattr(error, "headers", None)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": why}, status, headers)
    text = f"<h1>{status}</h1><p>{html.escape(why)}</p>"
    return HTMLResponse(_shell(request, f"{status}", ["base.css"], text=text), status, headers)
