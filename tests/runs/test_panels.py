from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.runs.differences import differences, flat
from gro.runs.frontier import best_within, frontier
from gro.runs.panels import Line, Panel, Series, groups, panels
from gro.runs.seeds import mean_and_band, t_quantile

NAN = math.nan


def series(name: str, config: Mapping[str, Any] | None = None, **metrics: Mapping[int, float]) -> Series:
    """A run from step → value; a name's `__` is a slash."""
    curves = {
        metric.replace("__", "/"): (
            np.array(list(values), dtype=np.int64),
            np.array(list(values.values()), dtype=float),
        )
        for metric, values in metrics.items()
    }
    return Series(name, config or {"algorithm": {"name": "grpo"}}, curves)


def seeded(seed: int, rate: float = 1e-3, **metrics: Mapping[int, float]) -> Series:
    config = {
        "run": f"runs/{seed}",
        "algorithm": {"name": "grpo", "beta": 0.1},
        "training": {"seed": seed, "steps": 3},
        "optimizer": {"learning_rate": rate},
    }
    return series(f"r{seed}", config, **metrics)


def panel(found: list[Panel], key: str) -> Panel:
    return next(one for one in found if one.key == key)


# Bands


def test_the_band_of_two_runs_by_hand() -> None:
    # Mean (1 + 4)/2 = 2.5; standard deviation 3/√2, its error 3/2; t(0.975; 1) = 12.7062.
    steps, mean, low, high = mean_and_band([(np.array([5]), np.array([1.0])), (np.array([5]), np.array([4.0]))])
    assert (steps.tolist(), mean.tolist()) == ([5], [2.5])
    np.testing.assert_allclose([low[0], high[0]], [2.5 - 1.5 * 12.7062, 2.5 + 1.5 * 12.7062])


def test_the_band_of_three_runs_by_hand() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 7, error √(7/3) = 1.527525; t(0.975; 2) = 4.302653.
    # 2, 2, 2: no spread, a band of no width.
    curves = [(np.array([1, 2]), np.array([first, 2.0])) for first in (1.0, 2.0, 6.0)]
    _, mean, low, high = mean_and_band(curves)
    np.testing.assert_allclose(mean, [3, 2])
    np.testing.assert_allclose(low, [3 - 6.572410, 2], atol=1e-3)
    np.testing.assert_allclose(high, [3 + 6.572410, 2], atol=1e-3)


def test_where_only_some_runs_have_a_value_there_is_their_mean_without_a_band() -> None:
    curves = [
        (np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0])),
        (np.array([1, 2, 4]), np.array([3.0, NAN, 9.0])),  # between 1 and 4 on the line 3, 5, 7, 9
    ]
    steps, mean, low, high = mean_and_band(curves)
    assert steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(mean, [2.0, 3.5, 5.0, 9.0])
    assert np.isfinite(low).tolist() == np.isfinite(high).tolist() == [True, True, True, False]
    _, mean, low, _ = mean_and_band([(np.array([1]), np.array([7.0]))])
    assert mean.tolist() == [7.0]
    assert np.isnan(low).all()  # nobody knows how sure one run is


def test_a_line_says_where_not_all_of_its_group_have_the_metric() -> None:
    both, one = {1: 1.0, 2: 2.0}, {1: 3.0}
    runs = [seeded(0, reward=both, kl=one), seeded(1, reward=both, kl=one), seeded(2, reward=both)]
    found = panels(runs)
    assert [line.label for line in panel(found, "reward").lines] == ["grpo (3 seeds)"]
    assert [line.label for line in panel(found, "kl").lines] == ["grpo (3 seeds), 2 of them"]


def test_quantiles_of_students_t() -> None:
    """By integrating its density: the probability of being below the quantile is 0.975."""
    for freedom in (*range(1, 60), 100, 1000):
        x = np.linspace(0, t_quantile(freedom), 20001)
        log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
        assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=1e-5), freedom


# Groups by seed


def test_runs_that_differ_only_in_seed_and_place_are_a_group() -> None:
    runs = [seeded(0), seeded(0, rate=2e-3), seeded(1), seeded(7), series("other", {"algorithm": "sft"})]
    found = groups(runs)
    assert [group.members for group in found] == [(0, 2, 3), (1,), (4,)]
    assert [group.label for group in found] == ["grpo learning_rate=0.001 (3 seeds)", "r0", "other"]
    alone = groups([runs[0], runs[2]])
    assert [(group.label, group.members) for group in alone] == [("grpo (2 seeds)", (0, 1))]


def test_a_run_that_was_made_twice_does_not_count_twice() -> None:
    runs = [seeded(0, reward={1: 0.0}), seeded(1, reward={1: 1.0}), seeded(0, reward={1: 0.0})]
    assert [(group.label, group.members) for group in groups(runs)] == [("grpo (2 seeds)", (0, 1)), ("r0", (2,))]
    line, again = panel(panels(runs, smooth=0), "reward").lines
    assert line.low is not None
    assert line.low[0] == pytest.approx(0.5 - 12.7062 * math.sqrt(0.5) / math.sqrt(2))
    assert again.low is None


def test_groups_that_no_setting_in_a_label_tells_apart_have_different_labels() -> None:
    def run(seed: int, last: str) -> Series:
        settings = {"a": last, "b": last, "c": last}
        return Series(f"{last}{seed}", {"algorithm": "x", **settings, "seed": seed}, {})

    labels = [group.label for group in groups([run(s, last) for last in ("1", "2") for s in (0, 1)])]
    assert len(set(labels)) == 2
    same = [Series("s", {"algorithm": "x", "seed": n, "kind": ["x"] * 2}, {}) for n in (0, 1)]
    assert groups(same)[0].members == (0, 1)


def test_of_very_many_runs_settings_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep: what is done for every two of its groups would take minutes."""
    looked: list[Any] = []
    for module in ("differences", "seeds"):
        monkeypatch.setattr(f"gro.runs.{module}.flat", lambda *asked: looked.append(asked) or flat(*asked))
    found = groups([seeded(seed, rate=rate / 100) for rate in range(50) for seed in (0, 1)])
    assert [group.label for group in found] == [f"grpo learning_rate={rate / 100} (2 seeds)" for rate in range(50)]
    assert len(looked) == 100


@given(st.permutations(range(6)), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_runs_or_keys(order: list[int], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        random.shuffle(items)
        return {key: shuffled(item) for key, item in items}

    runs = [seeded(seed, rate) for rate in (1e-3, 2e-3) for seed in (0, 1, 2)]
    mixed = [Series(runs[i].name, shuffled(dict(runs[i].config)), {}) for i in order]
    found = {frozenset(order[i] for i in group.members) for group in groups(mixed)}
    assert found == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


# Differences


def test_differences_by_hand() -> None:
    one = {"run": "a", "optimizer": {"learning_rate": 1e-5, "eps": 1.0}, "rewards": [{"reward": "x", "weight": 2}]}
    two = {"run": "b", "optimizer": {"learning_rate": 1e-4, "eps": 1.0}, "rewards": [{"reward": "x"}], "eval": None}
    runs = [Series("a", one, {}, {"torch": "2.9", "threads": 2}), Series("b", two, {}, {"torch": "2.9", "threads": 4})]
    assert [(row.key, row.values) for row in differences(runs)] == [
        ("optimizer.learning_rate", ("1.0e-05", "0.0001")),
        ("rewards.0.weight", ("2", "–")),
        ("versions.threads", ("2", "4")),
        ("eval", ("–", "null")),
    ]
    assert differences([runs[0], runs[0]]) == []


def test_settings_as_text() -> None:
    found = flat({"a": {}, "b": [], "c": [1, "x"], "d": {"e": True, "f": "true"}, 3: "two\nlines"})
    assert found == {"a": "{}", "b": "[]", "c": "[1, x]", "d.e": "true", "d.f": "true", "3": "two\nlines"}


# The frontier


def test_the_frontier_by_hand() -> None:
    runs = [
        series("a", reward={1: 0.0, 2: 1.0, 3: 2.0, 4: 1.5}, kl={1: 0.1, 2: 0.3, 4: 0.5}),
        series("b", {"algorithm": "b"}, reward={1: 0.5, 2: NAN, 3: 1.2}, kl={1: 0.2, 2: 0.1, 3: 0.25}),
        series("c", {"algorithm": "c"}, reward={1: 9.0}),  # was never compared with a reference
    ]
    found = frontier(runs, 0)
    assert found is not None
    lines = {line.label: (line.source, line.steps.tolist(), line.values.tolist()) for line in found.lines}
    assert lines == {
        "a": (0, [0.1, 0.3, 0.5], [0.0, 1.0, 1.5]),
        "b": (1, [0.2, 0.25], [0.5, 1.2]),
        # within 0.1: 0; within 0.2: 0.5; within 0.25: 1.2 (a's 1.0 at 0.3 is no better); within 0.5: 1.5
        "the best at no more KL": (-1, [0.1, 0.2, 0.2, 0.25, 0.25, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5, 1.2, 1.2, 1.5]),
    }
    assert frontier(runs[2:], 0) is None
    assert [p.key for p in panels(runs[2:])] == ["reward"]
    assert [p.key for p in panels(runs[:1])] == ["reward", "kl", "frontier"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=1, max_size=12))
def test_the_best_within_a_kl_is_the_highest_reward_of_all_points_within_it(points: list[tuple[int, int]]) -> None:
    kl, reward = (np.array(part, dtype=float) for part in zip(*points, strict=True))
    x, y = best_within(kl, reward)
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) >= 0)
    for limit in range(6):
        if (kl <= limit).any():
            assert y[x <= limit].max() == reward[kl <= limit].max()


# Panels


def test_the_panels_of_one_run() -> None:
    run = series(
        "a",
        reward={1: 0.0, 2: 1.0},
        eval_reward={0: 0.5},
        loss={1: NAN},
        completions__mean_length={1: 3.0},
        completions__max_length={1: 9.0},
        mine={1: 2.5},
    )
    found = panels([run])
    shown = [(p.key, p.title, [(line.label, line.source) for line in p.lines], p.last) for p in found]
    assert shown == [
        ("reward", "Reward", [("reward", -1), ("eval_reward", -1)], "1"),
        ("length", "Completion length, tokens", [("mean_length", -1), ("max_length", -1)], "3"),
    ]
    with_all = panels([run], every=True)
    assert [p.key for p in with_all] == ["reward", "length", "metric:mine"]
    assert with_all[-1].lines[0].values.tolist() == [2.5]


def test_the_panels_of_several_runs_have_one_metric_and_what_is_held_out_apart() -> None:
    runs = [
        seeded(0, reward={1: 0.0, 2: 2.0}, rewards__x__mean={1: 5.0}, eval_reward={0: 1.0}),
        seeded(1, reward={1: 1.0, 2: 4.0}, eval_reward={0: 2.0}, eval_loss={0: 3.0}),
        series("dpo", {"algorithm": "dpo"}, rewards__accuracies={1: 0.5}, loss={1: 0.7}, eval_loss={0: 1.0}),
    ]
    found = panels(runs, smooth=0)
    assert [p.key for p in found] == ["reward", "reward:held_out", "accuracy", "loss", "loss:held_out"]
    assert [p.metric for p in found] == ["reward", "eval_reward", "rewards/accuracies", "loss", "eval_loss"]
    line = panel(found, "reward").lines[0]
    assert (line.label, line.source, line.values.tolist()) == ("grpo (2 seeds)", 0, [0.5, 3.0])
    assert line.low is not None
    assert [(line.label, line.source) for line in panel(found, "loss").lines] == [("dpo", 1)]
    assert [(one.label, one.low) for one in panel(found, "loss:held_out").lines] == [
        ("grpo (2 seeds), 1 of them", None),
        ("dpo", None),
    ]
    apart = panel(panels(runs, smooth=0, by_seed=False), "reward")
    assert [(line.label, line.source, line.values.tolist()) for line in apart.lines] == [
        ("r0", 0, [0.0, 2.0]),
        ("r1", 1, [1.0, 4.0]),
    ]


def test_of_metrics_that_belong_together_the_one_that_most_runs_have_is_drawn() -> None:
    """The others are drawn on request, under their own names."""
    runs = [
        series("a", accuracy={1: 0.5}, mine={1: 1.0}, eval_mine={1: 2.0}),
        series("b", {"algorithm": "b"}, rewards__accuracies={1: 0.5}),
        series("c", {"algorithm": "c"}, rewards__accuracies={1: 0.5}),
    ]
    found = panels(runs, every=True)
    assert [(p.key, p.title, p.metric, len(p.lines)) for p in found] == [
        ("accuracy", "Accuracy", "rewards/accuracies", 2),
        ("metric:accuracy", "accuracy", "accuracy", 1),  # the other one of its row
        ("metric:mine", "mine", "mine", 1),
        ("metric:eval_mine", "eval_mine", "eval_mine", 1),
    ]


def test_without_smoothing_values_are_as_recorded_and_with_it_a_constant_stays() -> None:
    steps = range(1, 101)
    noisy = {step: float((step * 37) % 11) for step in steps}
    run = series("a", reward=noisy, kl=dict.fromkeys(steps, 0.25))
    raw = panels([run], smooth=0)
    assert panel(raw, "reward").lines[0].values.tolist() == list(noisy.values())
    assert panel(raw, "reward").lines[0].raw is None
    smoothed = panels([run], smooth=0.5)
    line = panel(smoothed, "reward").lines[0]
    assert line.raw is not None
    assert line.raw.tolist() == list(noisy.values())
    assert np.ptp(line.values) < 1 < np.ptp(line.raw)
    np.testing.assert_allclose(panel(smoothed, "kl").lines[0].values, 0.25)
    with pytest.raises(ValueError, match="below 1, found 1"):
        panels([run], smooth=1)


def test_smoothing_covers_the_same_stretch_of_steps_however_often_a_run_records() -> None:
    # 90 steps; a tenth of them is 9 values of the first, 3 of the second: r = 1 − 2/10 and 1 − 2/4.
    often = series("a", reward={step: float(step == 45) for step in range(90)})
    seldom = series("b", {"algorithm": "b"}, reward={step: float(step == 45) for step in range(0, 90, 3)})
    one, two = panel(panels([often, seldom], smooth=0.1), "reward").lines
    assert one.values[46] / one.values[45] == pytest.approx(0.8, rel=1e-3)
    assert two.values[16] / two.values[15] == pytest.approx(0.5, rel=1e-3)


def test_runs_of_any_length_and_gaps() -> None:
    long = seeded(0, reward=dict.fromkeys(range(1, 51), 1.0), kl={1: NAN})
    short = seeded(1, reward={1: 3.0})
    begun = seeded(2)
    found = panels([long, short, begun], every=True)
    assert [p.key for p in found] == ["reward"]
    line = found[0].lines[0]
    assert line.values[0] == pytest.approx(2)
    assert line.values[1:].tolist() == pytest.approx([1.0] * 49)
    assert line.low is not None
    assert np.isfinite(line.low).sum() == 1
    assert panels([begun]) == panels([begun, begun]) == panels([]) == []


def test_panels_as_json() -> None:
    run = series("a", loss={step: math.sin(step) if step % 7 else NAN for step in range(5000)})
    text = json.dumps([p.plain() for p in panels([run], smooth=0)], allow_nan=False)
    line = json.loads(text)[0]["lines"][0]
    assert line.keys() == {"label", "source", "steps", "values", "raw", "low", "high"}
    assert len(line["steps"]) == len(line["values"]) <= 800
    for step, value in zip(line["steps"], line["values"], strict=True):
        assert value == (pytest.approx(math.sin(step)) if step % 7 else None)


def test_thinning_keeps_the_arrays_of_a_line_together() -> None:
    steps = np.arange(3000)
    raw = np.where(steps == 1234, 50.0, np.cos(steps))
    line = Line("x", 0, steps, steps * 2.0, raw, steps * 3.0, steps * 4.0).thinned(100)
    assert len(line.steps) <= 100
    assert 1234 in line.steps  # the outlier of what was recorded is still seen
    for array, factor in ((line.values, 2.0), (line.low, 3.0), (line.high, 4.0)):
        np.testing.assert_array_equal(array, line.steps * factor)  # type: ignore[arg-type]
    assert line.raw is not None
    np.testing.assert_array_equal(line.raw, raw[line.steps])


def test_no_metric_is_in_two_panels() -> None:
    """And every panel of the table is drawn first for a metric that nobody else takes from it."""
    from gro.runs.panel_table import PANELS

    keys, titles = [key for key, *_ in PANELS], [title for _, title, _ in PANELS]
    assert len(set(keys)) == len(keys)
    assert len(set(titles)) == len(titles)
    for key, _, patterns in PANELS:
        names = [pattern.replace("*", "x") for pattern in patterns]
        for name in names:
            assert [p.key for p in panels([Series("a", {}, {name: (np.array([1]), np.array([1.0]))})])] == [key], name
