"""What the page of `gro watch` is told: numbers worked out by hand, refusals, and who is let in."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from serving import Served
from watched_runs import config, made, rewards, sample, watched

from gro.errors import GroError
from gro.runs import Comparison, Run, plot_panel
from gro.runs.curves import look
from gro.web.app import create_app
from gro.web.guard import HEADERS
from gro.web.watch.routes import Watching
from web.test_web_guard import OWN, PORT, TOKEN, ask

T1 = 12.7062
"""The 0.975 quantile of Student's t with one degree of freedom."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of GRPO, one run of RLOO without KL, and one that goes wrong."""
    folder = tmp_path_factory.mktemp("runs")
    made(folder / "a", [{"reward": r, "kl": k} for r, k in ((1, 0.1), (2, 0.2), (3, 0.4))], seed=1)
    made(folder / "b", [{"reward": r, "kl": k} for r, k in ((3, 0.3), (4, 0.2), (5, 0.2))], seed=2)
    rewards(folder / "c", 0.5, math.nan, 1.5, algorithm="rloo", finished=False)
    with Run.open(folder / "d", config("ppo", training={"steps": "many"})) as run:
        for step in (1, 2):
            run.record_rollouts(step, [sample(0, 0, "1+1=", f"{step}", step - 1.0), sample(0, 1, "1+1=", "?", None)])
            run.record_rollouts(step, [sample(1, 2, f"prompt {step}", "x", 0.0)])
            run.record(step, {"loss": 1.0 / step})
        run.event("info", "nothing")
        run.event("warning", "first", step=1)
        run.event("error", "second", step=2)
    with sqlite3.connect(folder / "a" / "run.db") as database:
        database.execute("UPDATE steps SET time = 1000 + 2.5 * step * step")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with watched(folder) as (running, _):
        yield running


def told(server: Served, question: str) -> Any:
    status, found = server.get(f"/api/watch/{question}")
    assert status == 200, found
    return found


def test_the_list_of_runs(server: Served) -> None:
    runs = {run["name"]: run for run in told(server, "runs")["runs"]}
    assert list(runs) == ["a", "b", "c", "d"]
    a = runs["a"]
    assert (a["algorithm"], a["status"], a["step"], a["of"]) == ("grpo", "finished", 3, 3)
    assert (a["measure"], a["value"], a["alarms"], a["problem"]) == ("reward", 3.0, 0, "")
    assert a["seconds"] == pytest.approx(10.0)  # the median of 2.5·(4 − 1) and 2.5·(9 − 4)
    c, d = runs["c"], runs["d"]
    assert (c["status"], c["value"], c["alarms"]) == ("interrupted", 1.5, 1)  # that its reward was NaN once
    assert (d["measure"], d["value"], d["of"], d["alarms"]) == ("loss", 0.5, None, 2)


def test_panels_are_the_numbers_of_the_runs(server: Served) -> None:
    found = told(server, "panels?run=a&run=b&run=c&smooth=0")
    assert found["sources"] == [["a", "b"], ["c"]]
    assert found["colours"] == {"a": 0, "b": 0, "c": 1, "d": 2}
    reward, kl, frontier = found["panels"]
    assert [panel["key"] for panel in found["panels"]] == ["reward", "kl", "frontier"]
    mean, alone = reward["lines"]
    half = T1 * math.sqrt(2) / math.sqrt(2)  # of 1 and 3, 2 and 4, 3 and 5 the deviation is √2
    assert (mean["steps"], mean["values"], mean["source"]) == ([1, 2, 3], [2.0, 3.0, 4.0], 0)
    assert mean["low"] == pytest.approx([2 - half, 3 - half, 4 - half])
    assert mean["high"] == pytest.approx([2 + half, 3 + half, 4 + half])
    assert (alone["label"], alone["values"], alone["source"], alone["low"]) == ("c", [0.5, None, 1.5], 1, None)
    assert [line["source"] for line in kl["lines"]] == [0]
    assert kl["lines"][0]["values"] == pytest.approx([0.2, 0.2, 0.3])
    assert frontier["lines"][0]["steps"] == pytest.approx([0.2, 0.2, 0.3])
    assert frontier["lines"][0]["values"] == pytest.approx([2.0, 3.0, 4.0])


def test_curves_over_tokens_and_the_places_of_alarms(tmp_path: Path) -> None:
    for seed, tokens in ((1, 100.0), (2, 300.0)):
        steps = [{"reward": float(step), "num_tokens": tokens * step, "step_time": 900.0} for step in (1, 2, 3)]
        made(tmp_path / f"s{seed}", steps, seed=seed, finished=seed == 1)
    with Run.open(tmp_path / "s2", config(seed=2)) as run:
        run.event("warning", "second", step=2)
        run.event("error", "no step")
    rewards(tmp_path / "without", 1.0, 2.0, algorithm="rloo")
    with watched(tmp_path) as (server, _):
        told(server, "runs")
        every = "run=s1&run=s2&run=without&smooth=0"
        found = {x: told(server, f"panels?{every}&x={x}") for x in ("step", "tokens", "hours")}
        lines = {x: found[x]["panels"][0]["lines"] for x in found}
        assert [[line["steps"] for line in lines[x]] for x in lines] == [
            [[1, 2, 3], [1, 2]], [[200, 400, 600]], [[0.25, 0.5, 0.75]],
        ]  # fmt: skip
        assert [found[x]["without"] for x in found] == [[], ["without"], ["without"]]
        assert [found[x]["panels"][0]["x"] for x in found] == [found[x]["x"] for x in found] == list(found)
        alarms = {a["message"]: a["at"] for a in told(server, f"alarms?{every}")["alarms"]}
        assert alarms["second"] == {"step": 2, "tokens": 600, "hours": 0.5}
        assert alarms["no step"] == {}


def test_a_picture_is_what_is_drawn_into_files(folder: Path, tmp_path: Path) -> None:
    """Byte for byte, where everything is chosen; else in the colours of the page."""
    watching = Watching([folder])
    watching.board.refresh()
    application = create_app(watching.routes, token=TOKEN, port=PORT)

    def asked(query: str) -> tuple[bytes, dict[str, str]]:
        status, headers, body = ask(application, "GET", "/api/watch/picture", query=query)
        assert status == 200
        return body, headers

    drawn = Comparison.read([folder]).panels(0.2)
    for panel in drawn:
        for form in ("svg", "png"):
            body, headers = asked(f"run=a&run=b&run=c&run=d&smooth=0.2&panel={quote(panel.key)}&form={form}")
            assert body == plot_panel(tmp_path / f"x.{form}", panel).read_bytes()
            assert headers["content-disposition"] == f'attachment; filename="{panel.key}.{form}"'
    alone = asked("run=c&run=d&smooth=0.2&panel=reward&form=svg")[0].decode()
    assert look(1)[0] in alone  # c is the second group of all
    assert look(0)[0] not in alone
    assert asked("run=a&panel=reward&form=pdf")[0].startswith(b"%PDF")


def test_what_is_chosen_changes_the_panels_and_not_the_colours(server: Served) -> None:
    each = told(server, "panels?run=c&run=b&run=a&smooth=0&seeds=0")
    assert each["sources"] == [["c"], ["b"], ["a"]]
    assert each["colours"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert [line["values"] for line in each["panels"][0]["lines"]] == [[0.5, None, 1.5], [3, 4, 5], [1, 2, 3]]
    one = told(server, "panels?run=a&run=a&smooth=0.9")  # said twice is said once
    line = one["panels"][0]["lines"][0]
    assert (line["source"], line["raw"], one["panels"][0]["last"]) == (-1, [1, 2, 3], "3")
    # span 2.7 of 3 values: weights r^|i−j| with r = 1 − 2/3.7
    r = 1 - 2 / 3.7
    assert line["values"][0] == pytest.approx((1 + 2 * r + 3 * r * r) / (1 + r + r * r))
    assert told(server, "panels")["panels"] == []


def test_small_panels_have_fewer_points_than_the_enlarged_one(tmp_path: Path) -> None:
    rewards(tmp_path / "long", *(math.sin(step / 50) + (step == 777) for step in range(2000)))
    with watched(tmp_path) as (server, _):
        told(server, "runs")
        small, big = (told(server, f"panels?run=long&smooth=0&big={key}")["panels"][0] for key in ("", "reward"))
    sizes = [len(panel["lines"][0]["values"]) for panel in (small, big)]
    assert 100 < sizes[0] <= 240 < sizes[1] <= 800
    for panel in (small, big):
        assert max(panel["lines"][0]["values"]) == math.sin(777 / 50) + 1  # no peak is lost


def test_alarms_come_newest_first(server: Served) -> None:
    found = told(server, "alarms?run=c&run=d")
    assert [(a["run"], a["level"], a["step"], a["message"]) for a in found["alarms"]] == [
        ("d", "error", 2, "second"), ("d", "warning", 1, "first"), ("c", "warning", 2, "reward is nan at step 2"),
    ]  # fmt: skip
    assert found["more"] == 0
    assert told(server, "alarms?run=a")["alarms"] == []


def test_settings_of_one_run_and_differences_of_several(server: Served, folder: Path) -> None:
    assert told(server, "settings?run=a") == {"config": (folder / "a" / "config.yaml").read_text()}
    found = told(server, "settings?run=a&run=b&run=c")
    assert found["runs"] == ["a", "b", "c"]
    rows = {row["key"]: row["values"] for row in found["rows"]}
    assert rows == {"algorithm.name": ["grpo", "grpo", "rloo"], "seed": ["1", "2", "0"]}
    assert told(server, "settings") == {"runs": [], "rows": []}


def test_settings_that_are_no_text(tmp_path: Path) -> None:
    """YAML can hold half of a character; one such run must not hide the others."""
    for name in ("a", "b"):
        path = rewards(tmp_path / name, 1.0) / "config.yaml"
        path.write_text(path.read_text().replace("name: grpo", f'name: "{name}\\ud800"\n  "\\udc00": 1'))
    with watched(tmp_path) as (server, _):
        assert [run["algorithm"] for run in told(server, "runs")["runs"]] == ["a\\ud800", "b\\ud800"]
        assert told(server, "settings?run=a&run=b")["rows"] == [
            {"key": "algorithm.name", "values": ["a\\ud800", "b\\ud800"]}
        ]


def test_samples_over_time(server: Served) -> None:
    prompts = told(server, "prompts?run=d")["prompts"]
    assert [(p["text"], p["steps"]) for p in prompts] == [
        ("1+1=", [1, 2]), ("", [1, 2]), ("prompt 2", [2]), ("prompt 1", [1]),
    ]  # fmt: skip
    found = told(server, f"samples?run=d&prompt={prompts[0]['id']}&step=2")
    assert (len(found["groups"]), found["more"]) == (1, 0)
    group = found["groups"][0]
    assert (group["prompt"], group["more"]) == ("1+1=", 0)
    assert [(c["row"], c["text"], c["reward"], c["tokens"]) for c in group["completions"]] == [
        (0, "2", 1.0, 2), (1, "?", None, 2),
    ]  # fmt: skip
    assert prompts[1]["id"] == "any"
    both = told(server, "samples?run=d&prompt=any&step=1")["groups"]
    assert [(g["prompt"], [c["text"] for c in g["completions"]]) for g in both] == [
        ("1+1=", ["1", "?"]), ("prompt 1", ["x"]),
    ]  # fmt: skip
    assert server.get(f"/api/watch/samples?run=d&prompt={prompts[2]['id']}&step=1")[0] == 404
    assert told(server, "prompts?run=a")["prompts"] == []


def test_of_many_samples_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config()) as run:
        run.record_rollouts(1, [sample(g, 20 * g + i, f"p{g}", f"{i}", 0.0) for g in range(6) for i in range(20)])
        run.record(1, {})
    with watched(tmp_path) as (server, _):
        told(server, "runs")
        prompts = told(server, "prompts?run=run")["prompts"]
        assert [p["id"] for p in prompts].index("any") == 0  # none comes twice
        one = told(server, f"samples?run=run&prompt={prompts[1]['id']}&step=1")["groups"]
        assert [(len(g["completions"]), g["more"]) for g in one] == [(16, 4)]
        every = told(server, "samples?run=run&prompt=any&step=1")
        assert [(g["prompt"], len(g["completions"]), g["more"]) for g in every["groups"]] == [
            (f"p{g}", 4, 16) for g in range(4)
        ]
        assert every["more"] == 2


REFUSED = [
    ("panels?run=nobody", 404, "no run that is watched is named 'nobody'"),
    ("panels?run=a&smooth=1", 400, "smooth is at least 0 and below 1, found 1.0"),
    ("panels?run=a&smooth=nan", 400, "smooth is at least 0 and below 1, found nan"),
    ("panels?run=a&smooth=-0.1", 400, "smooth is at least 0"),
    ("panels?run=a&smooth=x", 400, "smooth is a number, found 'x'"),
    ("panels?run=a&seeds=2", 400, "seeds is 0 or 1, found '2'"),
    ("panels?run=a&every=", 400, "every is 0 or 1, found ''"),
    ("panels?run=a&x=miles", 400, "x is one of step, tokens, hours, found 'miles'"),
    ("picture?run=a&panel=reward&form=gif", 400, "form is one of svg, png, pdf, found 'gif'"),
    ("picture?run=a&panel=nothing&form=svg", 404, "these runs have no panel 'nothing'"),
    ("picture?panel=reward&form=svg", 404, "these runs have no panel 'reward'"),
    ("picture?run=a&panel=reward&form=svg&smooth=2", 400, "smooth is at least 0"),
    ("prompts", 404, "no run that is watched is named ''"),
    ("samples?run=d&prompt=x&step=1", 404, "no completions of that prompt at step 1"),
    ("samples?run=d&prompt=x&step=-1", 400, "step is a whole number"),
    ("samples?run=d&prompt=x&step=1.5", 400, "step is a whole number"),
    ("samples?run=d&prompt=x&step=9223372036854775808", 404, "no completions of that prompt"),
    ("samples?run=d&prompt=x&step=" + "9" * 30, 400, "step is a whole number"),
    ("samples?run=d&prompt=x&step=²", 400, "step is a whole number"),
    ("nothing", 404, "Not Found"),
]


@pytest.mark.parametrize(("question", "status", "why"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_refused_says_why(server: Served, question: str, status: int, why: str) -> None:
    code, found = server.get(f"/api/watch/{quote(question, safe='?&=')}")
    assert code == status
    assert why in found["error"]


@pytest.mark.fault("W8")
@pytest.mark.parametrize(
    "question", ["panels", "picture?panel=reward&form=png", "alarms", "settings", "prompts", "samples?step=1"]
)
def test_names_are_looked_up_and_never_opened(server: Served, folder: Path, question: str) -> None:
    """Even what is there, and even in other spellings of a run that is watched."""
    names = ["../a", "./a", "a/", "/etc/passwd", "..%2fa", "a\0", str(folder / "a"), "a/../a", "%61", "A", "a\\..\\a"]
    for name in names:
        status, found = server.get(f"/api/watch/{question}{'&' if '?' in question else '?'}run={quote(name, safe='')}")
        assert (status, "no run that is watched" in found["error"]) == (404, True), name


ROUTES = ["/watch", "/api/watch/stream", "/api/watch/runs", "/api/watch/panels", "/api/watch/alarms",
          "/api/watch/picture?run=a&panel=reward&form=svg", "/api/watch/settings", "/api/watch/prompts?run=d",
          "/api/watch/samples?run=d"]  # fmt: skip
WRONG: list[dict[str, str | None]] = [
    {"cookie": None}, {"cookie": f"gro_{PORT}=wrong"}, {"cookie": f"gro_1={TOKEN}"},
    {"host": "evil.example"}, {"host": f"evil.example:{PORT}"}, {"host": "127.0.0.1"}, {"host": None},
    {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": f"https://{OWN}"},
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "nonsense"},
]  # fmt: skip


@pytest.mark.fault("W5", "W6")
@pytest.mark.parametrize("route", ROUTES)
def test_every_address_is_guarded(folder: Path, route: str) -> None:
    watching = Watching([folder])
    watching.board.refresh()
    application = create_app(watching.routes, token=TOKEN, port=PORT)
    path, _, query = route.partition("?")
    for method, wrong in itertools.product(("GET", "HEAD"), WRONG):
        assert ask(application, method, path, headers=wrong, query=query)[0] == 403, (method, wrong)
    good = {"origin": f"http://{OWN}", "content-type": "application/json", "x-gro-csrf": application.state.csrf}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):  # nothing here changes anything
        assert ask(application, method, path, headers={**good}, query=query)[0] == 405, method
    status, headers, _ = ask(application, "GET", path, headers={"sec-fetch-site": "same-origin"}, query=query)
    assert status == (400 if "samples" in route else 200)  # where no step is said
    assert all(headers[name] == value for name, value in HEADERS.items())
    if path.endswith("/stream"):
        assert headers["content-type"].startswith("text/event-stream")


def test_no_address_is_missing_in_that_list(folder: Path) -> None:
    assert {"/", *(route.partition("?")[0] for route in ROUTES)} == {r.path for r in Watching([folder]).routes}


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(GroError, match="nowhere is not a folder"):
        Watching([tmp_path / "nowhere"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(GroError, match="file is not a folder"):
        Watching([tmp_path / "file"])


def test_the_page_needs_neither_torch_nor_matplotlib(folder: Path) -> None:
    """What trains is never in this process, nor is what takes seconds to import."""
    code = """
import asyncio, json, sys
from starlette.requests import Request
import gro.cli.watching
from gro.web.watch.routes import Watching
watching = Watching([sys.argv[1]])
watching.board.refresh()
for route in watching.routes[3:]:
    if route.path.endswith("picture"):
        continue  # who asks for one waits for matplotlib
    query = b"run=a&run=b&every=1" if route.path.endswith(("panels", "settings", "alarms")) else b"run=d&step=1"
    try:
        route.endpoint(Request({"type": "http", "method": "GET", "query_string": query, "headers": []}))
    except Exception as refused:
        assert "prompt" in str(refused), refused
print(json.dumps(sorted({"torch", "matplotlib", "transformers"} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
