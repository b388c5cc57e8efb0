"""Raters that are made up: without noise they say the truth, with noise what the formulas say."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest

from gro.labels.agreement import agreement
from gro.labels.answers import KINDS, is_skip
from gro.labels.export import ratings
from gro.labels.store import Store
from gro.raters.human import RATINGS, Asking, Human, Inner
from gro.raters.simulated import answer, normal, raters_of, uniform
from gro.raters.spec import HumanSettings, Simulated
from gro.rewards.functions import TrainerState
from gro.rewards.rewards import scoring_of
from gro.rewards.spec import RewardSpec
from labels.test_human_reward import columns

N = 4000
"""Answers; a share p of them is off by more than 5·√(p(1−p)/N) ≤ 0.04 once in two million."""


def said(kind: str, scores: list[float], item: int = 0, rater: int = 1, **noise: Any) -> Any:
    """The answer to completions with these true scores."""
    texts = [f"text {i}" for i in range(len(scores))]
    raters = Simulated("any", **noise)
    return answer(KINDS[kind], scores, texts, raters, seed=0, item=f"item {item}", rater=rater)


def given(score: float, kind: str = "score5", **noise: Any) -> list[int]:
    """Scores of N items by one rater."""
    return [said(kind, [score], item, **noise)["scores"][0] for item in range(N)]


# --- without noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scores", "expected"),
    [
        ("score5", [0, 0.12, 0.13, 0.5, 0.87, 0.88, 1], {"scores": [1, 1, 2, 3, 4, 5, 5]}),
        ("score10", [0, 0.05, 0.06, 0.5, 1], {"scores": [1, 1, 2, 6, 10]}),
        ("pairs", [0.2, 0.7], {"choice": 1}),
        ("pairs", [0.7, 0.2], {"choice": 0}),
        ("pairs", [0.7, 0.7], {"choice": "tie"}),
        ("best", [0.1, 0.2, 0.9, 0.3], {"choice": 2}),
        ("ranking", [0.5, 0.9, 0.5, 0.1], {"ranks": [2, 1, 2, 4]}),
    ],
)
def test_the_truth(kind, scores, expected):
    for rater in (1, 2, 3):
        assert said(kind, scores, rater=rater) == expected


def test_of_equals_each_is_the_best_now_and_then():
    chosen = Counter(said("best", [0.9, 0.1, 0.9], item)["choice"] for item in range(N))
    assert set(chosen) == {0, 2}
    assert chosen[0] / N == pytest.approx(0.5, abs=0.04)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_the_noise_is_normal_and_its_own_for_every_key():
    drawn = [normal("error", i) for i in range(N)]
    assert fmean(drawn) == pytest.approx(0, abs=5 / math.sqrt(N))
    assert stdev(drawn) == pytest.approx(1, abs=5 / math.sqrt(2 * N))
    assert sum(x > 1.6449 for x in drawn) / N == pytest.approx(0.05, abs=0.02)
    assert len({uniform(*key) for key in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), ("0", "a", 1)]}) == 5


def test_spread_scatters_scores_around_the_truth():
    """Of x ~ N(0.5, 0.25²) the nearest of five scores: the normal distribution between 1/8, 3/8, 5/8 and 7/8."""
    found = Counter(given(0.5, spread=0.25))
    seen = NormalDist(0.5, 0.25)
    edges = [0, seen.cdf(1 / 8), seen.cdf(3 / 8), seen.cdf(5 / 8), seen.cdf(7 / 8), 1]
    for score in range(1, 6):
        assert found[score] / N == pytest.approx(edges[score] - edges[score - 1], abs=0.04)


def test_spread_makes_comparisons_wrong_as_often_as_it_should():
    """The difference of two completions has √2 times the spread of one."""
    choices = Counter(said("pairs", [0.6, 0.5], item, spread=0.1)["choice"] for item in range(N))
    assert choices["tie"] == 0
    assert choices[0] / N == pytest.approx(NormalDist().cdf(0.1 / (0.1 * math.sqrt(2))), abs=0.04)


@pytest.mark.parametrize(("skew", "expected"), [(0.5, [1, 3, 4, 4, 5]), (1.0, [1, 2, 3, 4, 5]), (2.0, [1, 1, 2, 3, 5])])
def test_skew_makes_harsh_and_lenient(skew, expected):
    assert [said("score5", [s / 4], skew=skew)["scores"][0] for s in range(5)] == expected


def test_skew_alone_changes_no_comparison():
    for skew in (0.3, 3.0):
        assert said("ranking", [0.2, 0.9, 0.5], skew=skew) == {"ranks": [3, 1, 2]}


def test_every_rater_has_a_bias_of_its_own():
    """The mean of many raters' means scatters with the bias, and one rater's answers do not."""
    raters = [
        fmean(said("score10", [0.5], item, rater, bias_spread=0.1)["scores"][0] for item in range(20))
        for rater in range(400)
    ]
    assert stdev(raters) == pytest.approx(0.9, abs=0.2)  # 0.1 of the nine steps, and rounding
    one = [said("score10", [0.5], item, 7, bias_spread=0.1)["scores"][0] for item in range(20)]
    assert len(set(one)) == 1
    assert said("ranking", [0.2, 0.9], rater=5, bias_spread=9.0) == {"ranks": [2, 1]}


@pytest.mark.parametrize("kind", KINDS)
def test_blind_answers_are_uniform(kind):
    """Whatever the truth is: all scores, sides or orders alike."""
    found = Counter(json.dumps(said(kind, [0.9, 0.1], item, flip=1.0)) for item in range(N))
    kinds = {"pairs": 2, "best": 2, "ranking": 2, "score5": 25, "score10": 100}
    assert len(found) == kinds[kind]
    assert "tie" not in str(found)
    for count in found.values():
        assert count / N == pytest.approx(1 / kinds[kind], abs=0.04)


def test_a_share_of_answers_is_blind():
    right = fmean(said("pairs", [0.9, 0.1], item, flip=0.4)["choice"] == 0 for item in range(N))
    assert right == pytest.approx(0.8, abs=0.04)


def test_a_share_of_answers_is_skipped():
    skips = fmean(is_skip(said("score5", [0.5], item, skip=0.25, flip=0.5)) for item in range(N))
    assert skips == pytest.approx(0.25, abs=0.04)


def test_who_answers_is_drawn_alike():
    who = [raters_of(f"item {i}", 2, Simulated("any", raters=4), 0) for i in range(N)]
    assert all(len(set(pair)) == 2 for pair in who)
    counts = Counter(rater for pair in who for rater in pair)
    assert sorted(counts) == [1, 2, 3, 4]
    for count in counts.values():
        assert count / N == pytest.approx(0.5, abs=0.04)


# --- as a reward -----------------------------------------------------------------------------------------------------


def human(folder: Path, inner: Any, group_size: int, seed: int = 0, **settings: Any) -> Human:
    """The reward, as a job makes it."""
    simulated = {"reward": inner} | settings.pop("simulated", {})
    parsed = HumanSettings.parse({"simulated": simulated} | settings)
    spec = RewardSpec.parse(inner)
    raters = parsed.raters
    assert raters is not None
    asking = Asking(folder / RATINGS, group_size, seed, says=lambda text: None)
    return Human(parsed, asking, Inner(scoring_of(spec, {}), spec, raters))


LENGTH = {"reward": "length", "least": 4, "scale": 4, "unit": "characters"}
"""0 from four characters on, −1/4 less for each that is missing, down to −1."""


def test_a_reward_between_low_and_high_in_the_same_file_as_peoples(tmp_path):
    made = human(tmp_path, LENGTH, 1, simulated={"low": -1.0, "high": 0.0, "raters": 2}, per_item=2)
    try:
        batch = made.score(columns(["", "a", "ab", "abc", "abcdefg"]), TrainerState(global_step=1))
    finally:
        made.close()
    assert [batch.scores[row] for row in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    store = Store(tmp_path / RATINGS, "score5", per_item=2)
    rows = store.read("SELECT annotator, count(*) FROM labels GROUP BY annotator ORDER BY annotator")
    assert rows == [("simulated 1", 5), ("simulated 2", 5)]
    assert agreement(ratings(store)).fleiss == pytest.approx(1)
    assert store.read("SELECT count(*) FROM used") == [(5,)]


def test_raters_of_a_run_that_is_begun_anew_are_others(tmp_path):
    """Where a run was stopped before its first step was done, its recipe may change; what people said stays."""
    asked, state = columns(["", "ab"]), TrainerState(global_step=1)

    def score(scale: float, per_item: int) -> dict[int, Any]:
        inner = {"low": -scale, "high": 0.0, "raters": 2}
        made = human(tmp_path, LENGTH, 1, simulated=inner, per_item=per_item)
        try:
            return made.score(asked, state).scores
        finally:
            made.close()

    assert score(1.0, 1) == {0: 0, 1: 0.5}
    assert score(2.0, 2) == {0: 0.5, 1: 0.75}
    store = Store(tmp_path / RATINGS, "score5", per_item=2)
    assert store.read("SELECT count(*) FROM labels") == [(4,)]
    with store.transaction() as db:
        db.execute("UPDATE labels SET annotator = 'anna' WHERE annotator = 'simulated 1'")
    store.close()
    assert score(1.0, 2) == {0: 0.25, 1: 0.625}, "anna still says 0.5 and 0.75"


def test_what_the_inner_reward_does_not_apply_to_has_none(tmp_path):
    made = human(tmp_path, {"reward": "exact_match", "column": "answer"}, 2, kind="pairs")
    try:
        asked = columns(["4", "5"], ["6", "6"]) | {"answer": ["5", "5", None, None]}
        batch = made.score(asked, TrainerState(global_step=1))
    finally:
        made.close()
    assert batch.scores == {0: 0, 1: 1, 2: None, 3: None}


def test_the_same_answers_in_any_order_and_at_any_time(tmp_path):
    """Noise is keyed by content: all at once, one after the other, in another order, in another file."""
    texts = [f"{'x' * (i % 5)} {i}" for i in range(12)]
    noise = {"spread": 0.3, "bias_spread": 0.2, "flip": 0.2, "raters": 5, "low": -1.0, "high": 0.0}

    def scored(folder: str, order: list[str], at_once: int, seed: int = 0) -> dict[str, Any]:
        (tmp_path / folder).mkdir()
        made = human(tmp_path / folder, LENGTH, 1, seed, simulated=noise, per_item=3)
        found: dict[str, Any] = {}
        try:
            for i in range(0, len(order), at_once):
                part = order[i : i + at_once]
                asked = columns(*([text] for text in part)) | {"prompts": ["p"] * len(part)}
                scores = made.score(asked, TrainerState(global_step=i)).scores
                found |= {text: scores[row] for row, text in enumerate(part)}
        finally:
            made.close()
        return found

    once = scored("a", texts, 12)
    assert scored("b", texts[::-1], 3) == once
    assert scored("c", texts, 1, seed=1) != once
    assert len(set(once.values())) > 4
