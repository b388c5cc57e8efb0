"""`gro watch` beside a real `gro train`, from before it begins until it has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import TOKEN
from watched_runs import LONG, watched

from gro.runs import RunReader
from jobs_on_sums import sft, write_data
from web.browser import until
from web.test_watch_browser import curves, says, settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 200


def test_a_training_is_watched_from_start_to_end(browser: Any, tmp_path: Path) -> None:
    write_data(tmp_path)
    recipe = sft(tmp_path, "watched", run=str(tmp_path / "runs" / "watched"), training__steps=STEPS)
    (tmp_path / "runs").mkdir()
    page = browser.new_page()
    page.set_default_timeout(1000 * LONG)
    seen: set[int] = set()
    with (tmp_path / "output.txt").open("w") as output, watched(tmp_path / "runs", every=0.2) as (server, _):
        page.goto(f"http://127.0.0.1:{server.port}/watch?token={TOKEN}")
        says(page, "#none", "No run yet in runs")
        command = [sys.executable, "-m", "gro", "train", str(recipe)]
        training = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while training.poll() is None:
                seen.add(len(curves(page, "loss").get("loss", [])))
                page.wait_for_timeout(50)
        finally:
            code = training.wait(10 * LONG)
        assert code == 0, (tmp_path / "output.txt").read_text()
        until(page, f"document.querySelector('.facts').textContent.includes('finished · step {STEPS} of {STEPS}')")
        until(page, f"document.querySelector('#panel-loss .curve').getAttribute('d').split('L').length >= {STEPS}")
        settled(page)
        assert any(0 < points < STEPS for points in seen), seen  # it was drawn while it grew
        with RunReader(tmp_path / "runs" / "watched") as run:
            steps, values = run.metrics()["loss"]
        page.focus("[id=plot-loss]")
        page.focus("#smooth")
        page.keyboard.press("Home")
        settled(page)
        page.focus("[id=plot-loss]")
        page.keyboard.press("End")
        assert page.locator("#said").text_content().startswith(f"step {steps[-1]}: loss {values[-1]:.4g}")
    page.close()
