"""Who is let in: every combination of what a request says about where it comes from."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gro.errors import GroError
from gro.runs import Run
from gro.web.app import STATIC, create_app, json_body, page
from gro.web.guard import HEADERS
from gro.web.inspect.routes import Inspecting
from gro.web.label.pages import routes as label_routes
from gro.web.watch.routes import Watching
from web.labelling import stored

PORT, TOKEN = 8123, "the-token"
OWN = f"127.0.0.1:{PORT}"


async def _effect(request: Request) -> Response:
    return JSONResponse(await json_body(request) if request.method == "POST" else {"seen": True})


async def _wrong(request: Request) -> Response:
    raise GroError("row 3: <b>bad</b>")


async def _bug(request: Request) -> Response:
    raise KeyError("x")


async def _page(request: Request) -> Response:
    return page(request, "A </title><script>x</script>", "label.js")


ROUTES = [
    Route("/api/effect", _effect, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    Route("/api/wrong", _wrong),
    Route("/wrong", _wrong),
    Route("/api/bug", _bug),
    Route("/", _page),
]


def app(**limits: Any) -> Any:
    return create_app(ROUTES, token=TOKEN, port=PORT, **limits)


def ask(
    application: Any,
    method: str = "GET",
    path: str = "/api/effect",
    headers: dict[str, str | None] | None = None,
    body: list[bytes] | None = None,
    query: str = "",
    twice: tuple[str, str] | None = None,
    kind: str = "http",
    pause: float = 0,
) -> tuple[int, dict[str, str], bytes]:
    """One request, as a server passes it on: the status, the headers and the body of the answer."""
    sent = {"host": OWN, "cookie": f"gro_{PORT}={TOKEN}"} | (headers or {})
    raw = [(k.encode(), v.encode("latin-1")) for k, v in sent.items() if v is not None]
    raw += [(twice[0].encode(), twice[1].encode())] if twice else []
    chunks = body if body is not None else [b"{}"] if method == "POST" else [b""]
    answers: list[Any] = []

    async def receive() -> Any:
        if pause:
            await asyncio.sleep(pause)
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "headers": raw, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", PORT), "client": None,
        "root_path": "", "asgi": {"version": "3.0"}, "extensions": {},
    }  # fmt: skip
    asyncio.run(application(scope, receive, send))
    if kind != "http":
        return answers[0]["code"], {}, b""
    found = {k.decode(): v.decode() for k, v in answers[0]["headers"]}
    return answers[0]["status"], found, b"".join(m.get("body", b"") for m in answers[1:])


def write(application: Any, **changed: str | None) -> dict[str, str | None]:
    """The headers of a page's own write, some of them changed."""
    good = {"origin": f"http://{OWN}", "content-type": "application/json", "x-gro-csrf": application.state.csrf}
    return good | {"sec-fetch-site": "same-origin"} | {k.replace("_", "-"): v for k, v in changed.items()}


HOSTS = (OWN, f"localhost:{PORT}", f"[::1]:{PORT}", "evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "127.0.0.1",
         f"0.0.0.0:{PORT}", f"127.0.0.1.evil.example:{PORT}", None)  # fmt: skip
ORIGINS = ("own", None, "null", "http://evil.example", f"https://{OWN}", f"http://{OWN}.evil.example",
           "http://127.0.0.1:1", "http://127.0.0.1")  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get")
KINDS = ("application/json", "application/json; charset=UTF-8", "text/plain", "application/x-www-form-urlencoded",
         "multipart/form-data; boundary=x", "application/json, text/plain", "application/jsonp", None)  # fmt: skip
SITES = ("same-origin", None, "none", "same-site", "cross-site", "nonsense")
COOKIES = (f"gro_{PORT}={TOKEN}", None, f"gro_{PORT}=wrong", f"gro_1={TOKEN}", f"gro_{PORT}=", TOKEN,
           f"a=b; gro_{PORT}={TOKEN}")  # fmt: skip


def matrix() -> list[dict[str, Any]]:
    """All pairs of what matters together: about 250 requests."""
    base: dict[str, Any] = {"host": OWN, "origin": "own", "kind": KINDS[0], "site": "same-origin", "cookie": COOKIES[0]}
    cases = [base | {"method": m, "host": h, "site": s} for m, h, s in itertools.product(("GET", "POST"), HOSTS, SITES)]
    cases += [base | {"method": m, "origin": o} for m, o in itertools.product(METHODS, ORIGINS)]
    cases += [base | {"method": m, "kind": k} for m, k in itertools.product(("GET", "POST", "PUT"), KINDS)]
    cases += [base | {"method": m, "cookie": c} for m, c in itertools.product(METHODS, COOKIES)]
    return cases


def allowed(case: dict[str, Any]) -> bool:
    """Said once more in the plainest words, apart from the code under test."""
    origin = f"http://{case['host']}" if case["origin"] == "own" else case["origin"]
    ours = case["host"] in HOSTS[:3] and case["cookie"] in (COOKIES[0], COOKIES[-1])
    if case["method"] in ("GET", "HEAD"):
        return ours and origin in (f"http://{case['host']}", None) and case["site"] in ("same-origin", "none", None)
    if case["method"] != "POST" or case["kind"] not in KINDS[:2]:
        return False
    return ours and origin == f"http://{case['host']}" and case["site"] in ("same-origin", None)


def _inspected(folder: Path) -> Sequence[BaseRoute]:
    with Run.open(folder / "run", {"algorithm": {"name": "grpo"}}) as run:
        run.finish()
    return Inspecting(folder / "run").routes


WINDOWS: dict[str, Callable[[Path], Sequence[BaseRoute]]] = {
    "inspect": _inspected,
    "label": lambda folder: label_routes(stored(folder)),
    "watch": lambda folder: Watching([folder]).routes,
}
"""The routes of each window."""


def test_every_window_is_in_the_matrix():
    assert set(WINDOWS) == {found.parent.name for found in STATIC.parent.glob("*/__init__.py")}


@pytest.mark.fault("W5", "W6")
@pytest.mark.parametrize("window", WINDOWS)
def test_only_our_own_pages_are_let_in(tmp_path, window):
    """G15, at every address of a window: nothing is wrongly accepted, and what is refused does not reach its page."""
    reached: list[str] = []

    async def effect(request: Request) -> Response:
        reached.append(request.url.path)
        return Response()

    table: list[Route] = []
    for route in WINDOWS[window](tmp_path):
        assert isinstance(route, Route), f"{route}: what else is let in has no test"
        table.append(Route(route.path, effect, methods=list(route.methods or ())))
    table.append(Route("/any", effect, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))  # if one forgot
    application, cases = create_app(table, token=TOKEN, port=PORT), matrix()
    assert len(cases) >= 240
    asked = [(re.sub(r"{\w+:int}", "1", route.path), route.methods or set()) for route in table]
    assert not any("{" in path for path, _ in asked)
    for path, methods in [*asked, ("/static/base.js", {"GET", "HEAD"})]:
        passed = 0
        for case in cases:
            reached.clear()
            headers = {
                "host": case["host"], "origin": f"http://{case['host']}" if case["origin"] == "own" else case["origin"],
                "content-type": case["kind"], "sec-fetch-site": case["site"], "cookie": case["cookie"],
                "x-gro-csrf": application.state.csrf,
            }  # fmt: skip
            status, answered, _ = ask(application, case["method"], path, headers=headers)
            good = allowed(case) and case["method"] in methods
            assert (status == 200) == good, (path, case, status)
            assert good or (status in (403, 405, 415) and not reached), (path, case, status)
            assert reached == [path] or not good or path.startswith("/static/")
            assert not any(name.startswith("access-control") for name in answered)
            assert all(answered[name] == value for name, value in HEADERS.items())
            passed += good
        assert passed > 10, path  # the matrix has both


@pytest.mark.fault("W5")
def test_a_write_needs_the_secret_of_the_page():
    application = app()
    assert ask(application, "POST", headers=write(application))[0] == 200
    for secret in (None, "", "wrong", TOKEN):
        assert ask(application, "POST", headers=write(application, x_gro_csrf=secret))[0] == 403


@pytest.mark.fault("W5", "W6")
def test_headers_that_are_there_twice_match_nothing():
    application = app()
    for name, value in (("host", "evil.example"), ("origin", f"http://{OWN}"), ("content-type", "application/json"),
                        ("cookie", f"gro_{PORT}={TOKEN}"), ("sec-fetch-site", "same-origin")):  # fmt: skip
        status, _, _ = ask(application, "POST", headers=write(application), twice=(name, value))
        assert status in (403, 415), name


@pytest.mark.fault("W5")
def test_no_websocket_is_opened():
    assert ask(app(), kind="websocket")[0] == 1008


@pytest.mark.fault("W6")
def test_the_token_is_exchanged_for_a_cookie_that_only_we_read():
    status, headers, _ = ask(app(), path="/", query=f"step=3&token={TOKEN}", headers={"cookie": None})
    assert (status, headers["location"]) == (303, "/?step=3")
    assert headers["set-cookie"] == f"gro_{PORT}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    for query in ("token=wrong", "token=", f"Token={TOKEN}"):
        status, headers, _ = ask(app(), path="/", query=query, headers={"cookie": None})
        assert status == 403
        assert "set-cookie" not in headers
    # Neither does it lead elsewhere, nor is it taken from a page elsewhere.
    assert ask(app(), path="//evil.example/", query=f"token={TOKEN}")[1]["location"] == "/evil.example/"
    assert ask(app(), path="/\\evil.example", query=f"token={TOKEN}")[1]["location"] == "/evil.example"
    assert ask(app(), path="/a\r\nx: y", query=f"token={TOKEN}")[1]["location"] == "/a%0D%0Ax%3A%20y"
    assert ask(app(), path="/", query=f"token={TOKEN}", headers={"host": "evil.example"})[0] == 403


@pytest.mark.fault("W7")
@pytest.mark.parametrize("told", [True, False])
def test_large_bodies_are_refused_without_being_read(told):
    application, body = app(max_body=1000), [b"x" * 100] * 1000
    length = {"content-length": "100000"} if told else {}
    status, _, said = ask(application, "POST", headers=write(application) | length, body=body)
    assert (status, json.loads(said)) == (413, {"error": "a request may have 1000 bytes"})
    assert len(body) == (1000 if told else 989)
    for size in ("-1", "1e3", "9" * 30, "１００"):
        sent = write(application) | {"content-length": size.encode().decode("latin-1")}  # as bytes on the wire
        assert ask(application, "POST", headers=sent)[0] == (413 if size[0] == "9" else 400)


@pytest.mark.fault("W7")
def test_a_body_that_does_not_arrive_ends():
    application = app(seconds=0.05)
    assert ask(application, "POST", headers=write(application), pause=0.5)[0] == 408
    assert ask(application, "POST", headers=write(application), body=[])[0] == 400


@pytest.mark.fault("W7")
@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"a":' * 100_000, b"[1]", b"3", b"", b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}"]
)
def test_what_is_not_a_json_object_is_refused(body):
    application = app()
    assert ask(application, "POST", headers=write(application), body=[body])[0] == 400


@pytest.mark.fault("W8")
@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%2e%2e/app.py", "/static/"]
)
def test_static_files_are_those_of_the_package(path):
    assert ask(app(), path="/static/base.js")[0] == 200
    assert ask(app(), path=path)[0] == 404


def test_errors_say_what_is_wrong_as_text():
    application = app()
    assert ask(application, path="/api/wrong")[::2] == (400, b'{"error":"row 3: <b>bad</b>"}')
    status, _, text = ask(application, path="/wrong")
    assert status == 400
    assert b"row 3: &lt;b&gt;bad" in text
    assert ask(application, path="/api/nowhere")[0] == 404


def test_a_bug_is_a_500_with_the_same_headers(capsys):
    status, headers, said = ask(app(), path="/api/bug")
    assert status == 500
    assert headers["content-security-policy"] == HEADERS["content-security-policy"]
    assert b"KeyError" not in said
    assert "KeyError" in capsys.readouterr().err


@pytest.mark.fault("W4")
def test_a_page_has_no_script_but_the_module():
    _, headers, text = ask(app(), path="/")
    assert text.count(b"<script") == 1
    assert b'<script type="module" src="/static/label.js"></script>' in text
    assert b"A &lt;/title&gt;" in text
    assert "'unsafe" not in headers["content-security-policy"]
    assert ask(app(), path="/static/base.js")[1]["content-type"].startswith("text/javascript")
