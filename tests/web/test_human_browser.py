"""A run that waits for people, in a real browser: rated with keys, step after step, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gro.labels.items import Item
from gro.labels.store import Store
from gro.runs import RunReader
from gro.web.label.pages import routes
from gro.web.label.waiting import WaitingRun
from jobs_on_sums import MODEL, recipe, write_data
from labels.people import labels, waiting
from web.browser import LONG, strict_page
from web.labelling import sent
from web.serving import served

PROMPTS = 2


class Training:
    """`gro train` in a process of its own, and `gro label` on its directory."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        write_data(folder)
        common = {
            "run": str(folder / "run"),
            "model": MODEL,
            "algorithm": "reinforce",
            "online": {"path": str(folder / "sums.jsonl")},
            "rewards": ["human"],
            "group_size": 1,
            "prompts_per_step": PROMPTS,
            "sampling": {"max_new_tokens": 3},
            "training": {"steps": 2, "resume_every": 1},
        }
        self.path, self.run = recipe(folder / "human.yaml", **(common | keys)), folder / "run"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begins or goes on."""
        with self.run.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "gro", "train", str(self.path)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def end(self) -> int:
        """Waits for its end; its exit code."""
        assert self.process is not None
        return self.process.wait(120)

    def stop(self, how: int = signal.SIGKILL) -> int:
        """Ends it, if it has not ended; its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.end()


@contextmanager
def opened(browser: Any, training: Training, **settings: Any) -> Iterator[Any]:
    """The page of `gro label RUN`; whatever the browser complains about fails the test."""
    run = WaitingRun(training.run)
    store = run.store()
    try:
        with served(routes(store, "anna", run)) as site, strict_page(browser, **settings) as page:
            page.goto(site.address("/"))
            yield page
    finally:
        store.close()


def picture(page: Any, name: str) -> None:
    """Kept where somebody wants to look."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/human-{name}.png", full_page=True)


def rate(page: Any, training: Training, score: str) -> None:
    """Gives the answer that is shown this score."""
    before = len(labels(training.run))
    page.wait_for_selector("#app[aria-busy=false] .completion")
    page.keyboard.press(score)
    page.keyboard.press("Enter")
    for _ in range(LONG * 50):
        if len(labels(training.run)) > before:
            break
        page.wait_for_timeout(20)
    assert len(labels(training.run)) == before + 1


def test_a_run_is_rated_from_its_first_step_to_its_end(browser, tmp_path):
    training = Training(tmp_path)
    training.start()
    try:
        while not (training.run / "config.yaml").is_file():
            assert training.process is not None
            assert training.process.poll() is None
        with opened(browser, training) as page:  # before there is anything to rate
            page.wait_for_selector(".completion")
            picture(page, "rating")
            rate(page, training, "5")
            page.wait_for_selector("#undo:not([disabled])")
            page.keyboard.press("u")  # the run still waits for the other one
            page.locator("#count").get_by_text("0 / 2").wait_for()
            rate(page, training, "2")
            rate(page, training, "4")
            page.locator("h1", has_text="gro label").wait_for()
            page.locator("#count").get_by_text("2 / 4").wait_for()  # the next step's answers have come by themselves
            page.wait_for_selector(".completion")
            page.keyboard.press("u")
            page.locator("#notice").get_by_text("what the run has learnt from stays").wait_for()
            page.set_viewport_size({"width": 400, "height": 800})
            picture(page, "rating-400")
            rate(page, training, "1")
            rate(page, training, "3")
            page.wait_for_selector("#finished[data-run=finished]")
            assert "The run has finished" in page.locator("#finished").inner_text()
            picture(page, "finished-400")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.set_viewport_size({"width": 1280, "height": 800})
            picture(page, "finished")
        assert training.end() == 0
    finally:
        training.stop()
    with RunReader(training.run) as reader:
        rewards = [record.reward or 0.0 for step in (1, 2) for record in reader.rollouts(step)]
    standing = [answer["scores"][0] for _, answer in labels(training.run)][1:]
    assert sorted(rewards[:2]) == sorted((s - 1) / 4 for s in standing[:2])
    assert sorted(rewards[2:]) == sorted((s - 1) / 4 for s in standing[2:])


def test_an_empty_answer_can_be_rated(browser, tmp_path):
    store = Store(tmp_path / "ratings.db", "score5")
    store.add([Item("p", [""])])
    context = browser.new_context()
    try:
        with served(routes(store, "anna")) as site:
            page = context.new_page()
            page.goto(site.address("/"))
            page.wait_for_selector("#app[aria-busy=false] .completion")
            assert page.locator(".completion em").inner_text() == "(empty)"
            page.keyboard.press("1")
            page.keyboard.press("Enter")
            page.wait_for_selector("#finished")
            assert store.read("SELECT answer FROM labels") == [('{"scores": [1]}',)]
    finally:
        context.close()
        store.close()


def test_what_others_have_is_not_called_waiting_for_the_run(browser, tmp_path):
    training = Training(tmp_path)
    training.run.mkdir()
    (training.run / "config.yaml").write_text("rewards: [human]\ntraining: {seed: 0}\n")
    store = WaitingRun(training.run).store()
    store.add([Item("p", ["a"])])
    offered = store.offer("berta")
    try:
        with opened(browser, training) as page:
            page.locator("#finished h2", has_text="Others have the rest").wait_for()
            store.label(sent(offered, "berta", {"scores": [3]}))
            page.locator("#finished h2", has_text="Waiting for the run").wait_for()
            assert page.locator("#count").inner_text() == "1 / 1"
    finally:
        store.close()


@pytest.mark.slow
def test_the_page_follows_a_run_that_is_stopped_and_continued(browser, tmp_path):
    training = Training(tmp_path, training={"steps": 1})
    training.start()
    try:
        while waiting(training.run) < PROMPTS:
            assert training.process is not None
            assert training.process.poll() is None, training.run.with_suffix(".log").read_text()
        with opened(browser, training, color_scheme="dark") as page:
            rate(page, training, "4")
            assert training.stop(signal.SIGTERM) == 75
            rate(page, training, "2")  # kept for when it goes on
            page.wait_for_selector("#finished[data-run=interrupted]")
            assert "goes on by the command that began it" in page.locator("#finished").inner_text()
            picture(page, "interrupted-dark")
            page.get_by_role("button", name="Look again").focus()
            training.start()
            page.wait_for_selector("#finished[data-run=finished]")
        assert training.end() == 0
    finally:
        training.stop()
    assert len(labels(training.run)) == PROMPTS
