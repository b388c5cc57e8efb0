"""Curves over tokens and hours: where each value lies, worked out by hand."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.runs import Run
from gro.runs.axes import AXES, along, count
from gro.runs.curves import plot_panel
from gro.runs.lines import Line, Panel
from gro.runs.panels import panels
from jobs_on_sums import cli
from runs.test_panels import panel, seeded, series

NAN = math.nan
HOUR = 3600.0


def test_tokens_and_hours_of_one_run() -> None:
    run = series(
        "a",
        eval_reward={0: 0.5, 3: 0.75},  # measured before the first step, and after the third
        reward={1: 1.0, 2: 2.0, 3: 4.0},
        num_tokens={1: 100.0, 2: 250.0, 3: 300.0},
        step_time={1: HOUR, 2: 2 * HOUR, 3: HOUR / 2},
    )
    drawn = {x: panel(panels([run], smooth=0, x=x), "reward") for x in AXES}
    found = {x: [line.steps.tolist() for line in one.lines] for x, one in drawn.items()}
    assert found == {
        "step": [[1, 2, 3], [0, 3]],
        "tokens": [[100, 250, 300], [0, 300]],
        "hours": [[1, 3, 3.5], [0, 3.5]],
    }
    assert {x: one.x for x, one in drawn.items()} == {x: x for x in AXES}
    for one in drawn.values():
        assert [line.values.tolist() for line in one.lines] == [[1, 2, 4], [0.5, 0.75]]
    with pytest.raises(ValueError, match="x is one of step, tokens, hours, found 'miles'"):
        panels([run], x="miles")


def test_a_value_between_two_known_places_is_between_them() -> None:
    run = series("a", reward={2: 1.0, 3: 2.0}, num_tokens={1: 10.0, 2: NAN, 3: 30.0, 5: 50.0})
    assert panel(panels([run], smooth=0, x="tokens"), "reward").lines[0].steps.tolist() == [20, 30]


def test_a_pause_between_two_sessions_takes_no_time(tmp_path: Path) -> None:
    """A run that is stopped, left for days and continued: the hours are those of its steps."""
    for opened in (0, 1):
        with Run.open(tmp_path / "run", {}) as run:
            for step in (1 + 2 * opened, 2 + 2 * opened):
                run.record(step, {"reward": float(step), "step_time": 0.5 * HOUR})
    drawn = tmp_path / "reward.svg"
    done = cli("report", tmp_path / "run", "--x", "hours", "--pictures", tmp_path, "--format", "svg")
    assert done.code == 0, done.err
    words = [element.text for element in ET.parse(drawn).iter() if element.text]
    assert "hours" in words
    assert [float(word) for word in words if re.fullmatch(r"[\d.]+", word)][:4] == [0.5, 1.0, 1.5, 2.0]


def test_means_over_seeds_are_those_of_steps_placed_at_the_mean() -> None:
    runs = [
        seeded(0, reward={1: 0.0, 2: 2.0}, num_tokens={1: 100.0, 2: 200.0}),
        seeded(1, reward={1: 1.0, 2: 4.0}, num_tokens={1: 140.0, 2: 300.0}),
    ]
    over = {x: panel(panels(runs, smooth=0, x=x), "reward").lines[0] for x in ("step", "tokens")}
    assert over["tokens"].steps.tolist() == [120, 250]
    for name in ("values", "low", "high"):
        np.testing.assert_array_equal(getattr(over["tokens"], name), getattr(over["step"], name))


def test_where_one_seed_ends_the_line_goes_on_as_the_others_do() -> None:
    # After step 2 the slow one is at 1000 tokens and the other at 20: a mean of those there would fall from 510 to 30.
    runs = [
        seeded(0, reward={1: 1.0, 2: 1.0}, num_tokens={1: 500.0, 2: 1000.0}),
        seeded(1, reward=dict.fromkeys((1, 2, 3, 4), 1.0), num_tokens={1: 10.0, 2: 20.0, 3: 30.0, 4: 50.0}),
    ]
    line = panel(panels(runs, smooth=0, x="tokens"), "reward").lines[0]
    assert line.steps.tolist() == [255, 510, 520, 540]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=4))
def test_an_axis_never_goes_back_and_of_equal_lengths_is_the_mean(tokens: list[list[int]]) -> None:
    def run(moves: list[int]) -> dict[int, float]:
        return {step: float(far) for step, far in enumerate(np.cumsum(moves), 1)}

    runs = [seeded(seed, num_tokens=run(moves)) for seed, moves in enumerate(tokens)]
    at = along(np.arange(1, 10), runs, "tokens")
    assert np.all(np.diff(at) >= 0)
    shared = min(map(len, tokens))
    mean = [sum(sum(moves[:n]) for moves in tokens) / len(tokens) for n in range(1, shared + 1)]
    np.testing.assert_allclose(at[:shared], mean)


def test_a_run_that_does_not_record_the_axis_is_left_out_of_its_curves_only() -> None:
    both, tokens = {1: 1.0, 2: 2.0}, {1: 10.0, 2: 20.0}
    runs = [
        seeded(0, reward=both, kl=both, num_tokens=tokens),
        seeded(1, reward=both, kl=both, num_tokens=tokens),
        seeded(2, reward=both, kl=both),
        series("other", {"algorithm": "x"}, reward=both, kl=both, num_tokens={1: NAN}),
    ]
    found = panels(runs, smooth=0, x="tokens")
    assert [(line.label, line.source) for line in panel(found, "reward").lines] == [("grpo (3 seeds), 2 of them", 0)]
    paths = panel(found, "frontier")
    assert [line.label for line in paths.lines] == ["grpo (3 seeds)", "other", "the best at no more KL"]
    assert paths.x == panel(panels(runs), "frontier").x != "tokens"
    assert [one.key for one in panels(runs[2:], x="tokens")] == ["frontier"]
    assert [one.key for one in panels(runs[3:], x="hours")] == ["frontier"]


def test_the_frontier_says_where_not_all_of_a_group_have_both() -> None:
    both = {1: 1.0, 2: 3.0}
    runs = [
        seeded(0, reward={1: 1.0, 2: 2.0}, kl=both),
        seeded(1, reward={1: 3.0, 2: 6.0}, kl=both),
        seeded(2, reward={1: 80.0, 2: 90.0}),
    ]
    line = panel(panels(runs, smooth=0), "frontier").lines[0]
    assert (line.label, line.values.tolist()) == ("grpo (3 seeds), 2 of them", [2.0, 4.0])  # of the two that have KL


def test_numbers_of_tokens_are_short(tmp_path: Path) -> None:
    assert [count(n) for n in (0, 999, 1500, 12_500_000, 3e9)] == ["0", "999", "1.5k", "12.5M", "3B"]
    line = Line("a", -1, np.array([0.0, 1e6, 2e6]), np.array([1.0, 2.0, 3.0]))
    for x in ("tokens", "step"):
        drawn = plot_panel(tmp_path / "x.svg", Panel("k", "", x, (line,)))
        assert ("1.5M" in [element.text for element in ET.parse(drawn).iter()]) == (x == "tokens")


def test_the_commands_draw_over_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, recorded in (("a", {"num_tokens": 7e6}), ("b", {"num_tokens": 5e6}), ("without", {})):
        with Run.open(Path("runs") / name, {"algorithm": name}) as run:
            for step in (1, 2):
                run.record(step, {"reward": float(step), **{key: value * step for key, value in recorded.items()}})
    done = cli("compare", "runs", "--x", "tokens", "--pictures", "figures", "--format", "svg")
    assert done.code == 0, done.err
    words = re.sub(r"\s+", " ", Path("compare.html").read_text())
    assert "Not drawn, since they do not record their tokens: without." in words
    texts = [element.text for element in ET.parse("figures/reward.svg").iter()]
    assert {"tokens", "10M", "a", "b"} <= set(texts)
    assert "without" not in texts
    for arguments, why in (
        (["compare", "runs", "--x", "miles"], "--x: expected one of step, tokens, hours, found 'miles'"),
        (["compare", "runs", "--x", "hours"], "--x hours: no run here has recorded how many hours its steps took"),
        (["report", "runs/without", "--x", "tokens"], "--x tokens: no run here has recorded how many tokens"),
    ):
        done = cli(*arguments)
        assert done.code != 0
        assert why in done.err
