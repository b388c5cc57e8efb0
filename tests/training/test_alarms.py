"""Alarms: each on numbers worked out by hand, once for an episode, and never on a run in which nothing is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from gro.rewards.ranges import ScoreRange
from gro.training.alarm_limits import AlarmLimits
from gro.training.alarms import ALARMS
from gro.training.metrics import describe_duplicates, gap, k1_to, outside_ranges
from gro.training.watching import Alarms
from gro.types import Completion, Group, Prompt

GAP = "sampling/sampling_logp_difference"
DEFAULTS = AlarmLimits()
DRAWN = {"completions/clipped_ratio": 0.1}


def healthy(step: int) -> dict[str, float]:
    """An on-policy run as it should be: entropy halves, the KL rises, lengths wander."""
    wave = math.sin(step)
    return DRAWN | {
        "ratio/first": 3e-6,
        "kl": 0.01 * step,
        "kl/k1": 0.01 * step + 0.02 * wave,
        "kl/k1_error": 0.02,
        "flat": 0.5 + 0.4 * wave,
        "entropy": 2.0 / (1 + step / 20),
        "completions/mean_length": 30 + 10 * wave,
        "rewards/judge/outside": 0.02,
        "rewards/failed": 0.0,
        "duplicates/share": 0.3 + 0.05 * wave,
        "duplicates/expected": 0.3,
        "duplicates/error": 0.05,
        "sampling/outside": 0.001,
        f"{GAP}/p99.9": 0.05,
        f"{GAP}/max": 0.4,
        "reward": 0.02 * step,
    }


def follow(steps: Sequence[Mapping[str, float]], limits: AlarmLimits = DEFAULTS, **how: Any) -> list[tuple]:
    """(step, alarm, whether the run ends) of what begins or ends, from 1."""
    alarms = Alarms(limits, **how)
    return [
        (step, one.alarm.name, one.ends)
        for step, metrics in enumerate(steps, 1)
        for one in alarms.step(metrics)
        if one.new or one.ends
    ]


@pytest.mark.fault("N5")
def test_a_healthy_run_is_quiet() -> None:
    assert follow([healthy(step) for step in range(1, 101)]) == []


BAD: list[tuple[str, dict[str, float], int, int | None]] = [
    ("ratio", {"ratio/first": 1.1e-4}, 1, 1),
    ("kl_negative", {"kl/k1": -0.09, "kl/k1_error": 0.02}, 2, None),  # 4.5 errors
    ("kl_explosion", {"kl": 5.1}, 2, None),
    ("flat_groups", {"flat": 1.0}, 1, 4),
    ("truncated", {"completions/clipped_ratio": 0.91}, 1, None),
    ("entropy_collapse", {"entropy": 0.08}, 3, None),  # of 1.75 on average at first: a part of 0.046
    ("length_drift", {"completions/mean_length": 62.0}, 3, None),  # of 30.4 at first
    ("length_drift", {"completions/mean_length": 15.0}, 3, None),
    ("reward_range", {"rewards/judge/outside": 0.21}, 2, None),
    ("reward_failed", {"rewards/failed": 1.0}, 1, None),
    ("duplicates", {"duplicates/share": 0.51}, 2, None),  # 0.3 expected, 0.1 for chance
    ("sampler_gap", {"sampling/outside": 0.051}, 2, None),
    ("sampler_tail", {f"{GAP}/p99.9": 1.01}, 2, None),
    ("sampler_max", {f"{GAP}/max": 10.1}, 1, None),
]


@pytest.mark.fault("N5")
@pytest.mark.parametrize(("name", "metrics", "patience", "ends"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_each_is_raised_once_and_past_its_limit_only(
    name: str, metrics: dict[str, float], patience: int, ends: int | None
) -> None:
    early = [healthy(step) for step in range(1, 7)]
    bad = healthy(3) | metrics
    within = {k: v - math.copysign(0.12 * max(abs(v), 1.0), v - healthy(3).get(k, 0.0)) for k, v in metrics.items()}
    found = follow([*early, *[bad] * 6], stops={"flat_groups": 4})
    assert [f for f in found if not f[2]] == ([(6 + patience, name, False)] if ends != patience else [])
    assert next((step for step, _, last in found if last), None) == (6 + ends if ends is not None else None)
    assert {f[1] for f in found} == {name}
    if name not in ("ratio", "kl_negative", "reward_failed", "entropy_collapse", "duplicates", "sampler_gap"):
        assert follow([*early, *[healthy(3) | within] * 6]) == [], "not within the limit"
    off = AlarmLimits(**{name: None})
    assert follow([*early, *[bad] * 6], off, stops={"flat_groups": 4}) == [], "switched off"


@pytest.mark.parametrize(
    ("name", "metric", "values"),
    [
        ("ratio", "ratio/first", (1e-4, 1.01e-4)),
        ("kl_explosion", "kl", (5.0, 5.01)),
        ("flat_groups", "flat", (0.99, 1.0)),
        ("truncated", "completions/clipped_ratio", (0.9, 0.901)),
        ("reward_failed", "rewards/failed", (0.0, 1.0)),
        ("kl_negative", "kl/k1", (-0.079, -0.081)),
        ("duplicates", "duplicates/share", (0.499, 0.501)),
        ("sampler_gap", "sampling/outside", (0.05, 0.0501)),
        ("sampler_tail", f"{GAP}/p99.9", (1.0, 1.01)),
        ("entropy_collapse", "entropy", (0.0961, 0.0959)),
        ("length_drift", "completions/mean_length", (39.9, 40.1)),
        ("length_drift", "completions/mean_length", (10.1, 9.9)),
    ],
)
def test_limits_are_where_they_say(name: str, metric: str, values: tuple[float, float]) -> None:
    """At the first value quiet, at the second not; first averages are an entropy of 1.92 and a length of 20."""
    early = [healthy(3) | {"entropy": 1.92, "completions/mean_length": 20.0}] * 5
    quiet, loud = ([*early, *[early[0] | {metric: value}] * 4] for value in values)
    assert follow(quiet) == []
    assert {found[1] for found in follow(loud)} == {name}


@pytest.mark.fault("N3")
def test_a_sampler_apart_ends_the_run_at_the_third_step_in_a_row() -> None:
    apart, near = healthy(1) | {"sampling/outside": 0.21}, healthy(1)
    found = follow([apart, apart, near, apart, apart, apart, apart])
    assert [f for f in found if f[1] == "sampler_apart"] == [
        *((1, "sampler_apart", False), (6, "sampler_apart", True), (7, "sampler_apart", True))
    ]
    assert (2, "sampler_gap", False) in found
    assert follow([apart] * 9, whole=False) == [], "with top_p its log-probs are those of another distribution"


@pytest.mark.fault("M6")
def test_the_ratio_is_asserted_and_looser_only_in_half_precision() -> None:
    off = healthy(1) | {"ratio/first": 0.02}
    assert follow([off]) == [(1, "ratio", True)]
    assert follow([off], half=True) == []
    assert follow([off | {"ratio/first": 0.6}], half=True) == [(1, "ratio", True)]
    assert follow([off], AlarmLimits(ratio=0.01), half=True) == [(1, "ratio", True)], "a recipe's limit holds"
    assert follow([off], AlarmLimits(ratio=0.03)) == []


def test_an_episode_ends_after_ten_within() -> None:
    cut, whole = DRAWN | {"completions/clipped_ratio": 1.0}, DRAWN
    assert follow([cut, *[whole] * 9, cut]) == [(1, "truncated", False)]
    assert follow([cut, *[whole] * 10, cut]) == [(1, "truncated", False), (12, "truncated", False)]
    assert follow([cut, *[{"loss": 1.0}] * 20, cut]) == [(1, "truncated", False)], "not measured is not within"
    assert follow([DRAWN | {"completions/clipped_ratio": math.nan}]) == []


def test_of_files_neither_length_nor_entropy_nor_kl_is_the_policys() -> None:
    early = {"entropy": 2.0, "completions/mean_length": 20.0, "kl": 0.0}
    late = {"entropy": 0.01, "completions/mean_length": 100.0, "kl": 1e6}
    assert follow([early] * 5 + [late] * 5) == []
    assert {f[1] for f in follow([early | DRAWN] * 5 + [late | DRAWN] * 5)} == {
        *("entropy_collapse", "length_drift", "kl_explosion")
    }


def test_a_few_tokens_are_no_drift() -> None:
    lengths = [2.0] * 5 + [5.9] * 5, [2.0] * 5 + [6.1] * 5
    found = [follow([DRAWN | {"completions/mean_length": n} for n in series]) for series in lengths]
    assert found == [[], [(8, "length_drift", False)]]


def judged(golds: list[float], proxies: list[float], limits: AlarmLimits = DEFAULTS) -> list[tuple[int, float]]:
    """Evaluations with a step between each two; which of them were alarming."""
    alarms, found = Alarms(limits), []
    for place, gold in enumerate(golds):
        if place:
            alarms.step({"reward": proxies[place - 1]})
        found += [(place, one.value) for one in alarms.evaluated(gold) if one.new]
    return found


@pytest.mark.fault("N5")
def test_the_reward_rises_while_held_out_falls() -> None:
    up = [1.0, 2.0, 3.0, 4.0, 5.0]
    # Gained 0.4, then 0.25 and 0.3 of it lost: 0.625, then 0.75 of the gain.
    assert judged([0.2, 0.6, 0.35, 0.3], up) == [(3, pytest.approx(0.75))]
    assert judged([0.2, 0.6, 0.35, 0.5], up) == [], "once is not enough"
    assert judged([0.2, 0.6, 0.35, 0.3], [3.0, 2.0, 1.0]) == [], "the reward in training falls, too"
    assert judged([0.6, 0.55, 0.545, 0.55, 0.545], up) == [], "a tenth of the level is noise"
    assert judged([0.6, 0.5, 0.45, 0.4, 0.3], up) == [(3, pytest.approx(0.2 / 0.12))]
    assert judged([0.2, 0.6, 0.35, 0.3], up, AlarmLimits(held_out_down=0.8)) == []
    assert judged([0.2, math.nan, 0.6, 0.3, 0.3], up) == [(4, pytest.approx(0.75))]


def test_k1_by_hand() -> None:
    """Sums of log-ratios 3 and −1 over lengths 2 and 2: mean 0.5; residuals ±2, so √(8·2/1)/4 = 1."""
    base_BT = torch.zeros(3, 3)
    logp_BT = torch.tensor([[1.0, 2.0, torch.nan], [-0.5, -0.5, torch.nan], [9.0, 9.0, 9.0]])
    mask_BT = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    assert k1_to(base_BT, logp_BT, mask_BT) == {"kl/k1": 0.5, "kl/k1_error": 1.0}
    assert k1_to(base_BT, logp_BT, mask_BT[:1].repeat(3, 1) & torch.tensor([True, False, False])[:, None]) == {}
    # Lengths 1 and 3, sums 1 and 1: mean 2/4; residuals 0.5 and −0.5.
    uneven_BT = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    found = k1_to(torch.zeros(2, 3), uneven_BT, torch.tensor([[True, False, False], [True, True, True]]))
    assert found == {"kl/k1": 0.5, "kl/k1_error": pytest.approx(math.sqrt(2 * (0.25 + 0.25)) / 4)}


def test_k1_of_true_samples_is_rarely_negative_and_of_others_is() -> None:
    """The alarm's claim on a categorical policy: samples of the policy against samples of the reference."""
    generator = torch.Generator().manual_seed(0)
    logits, base = torch.tensor([1.0, 0.0, -1.0]).log_softmax(0), torch.tensor([0.0, 0.5, 0.0]).log_softmax(0)
    mask_BT = torch.ones(64, 8, dtype=torch.bool)

    def values(of: torch.Tensor) -> Iterator[float]:
        for _ in range(100):
            drawn_BT = torch.multinomial(of.exp(), 64 * 8, replacement=True, generator=generator).view(64, 8)
            found = k1_to(base[drawn_BT], logits[drawn_BT], mask_BT)
            yield -found["kl/k1"] / found["kl/k1_error"]

    assert max(values(logits)) < 0
    assert min(values(base)) > 4.0


def sampled(*answers: tuple[tuple[int, ...], float], key: int = 0) -> Group:
    completions = tuple(
        Completion(ids, logp=(math.log(p), *(0.0 for _ in ids[1:])), finish="stop") for ids, p in answers
    )
    return Group(Prompt((1,), key=key), completions)


def test_duplicates_by_hand() -> None:
    """Of the first prompt's 3 pairs 1 is alike and (½ + ½ + ¼)/3 explained; of the second's all, and ¼ explained."""
    one = sampled(((1,), 0.5), ((1,), 0.5), ((2,), 0.25))
    two = sampled(((3,), 0.25), ((3,), 0.25))
    found = describe_duplicates([one, two, Group(Prompt((1,)), (Completion((9,)), Completion((9,))))])
    assert found["duplicates/share"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["duplicates/expected"] == pytest.approx((5 / 12 + 1 / 4) / 2)
    low, high = 1 / 3 - 5 / 12, 3 / 4
    assert found["duplicates/error"] == pytest.approx((high - low) / math.sqrt(2) / math.sqrt(2))
    assert describe_duplicates([one]) == {}


def test_peaked_policies_explain_their_duplicates() -> None:
    greedy = [sampled(*[((1, 2), 1.0)] * 4, key=k) for k in range(4)]
    shared = [sampled(*[((k, 2), 0.1)] * 4, key=k) for k in range(4)]
    for groups, name in ((greedy, []), (shared, [(2, "duplicates", False)])):
        assert follow([describe_duplicates(groups)] * 3) == name


def test_the_gap_is_that_of_tokens_with_a_reported_log_prob() -> None:
    logp_BT = torch.tensor([[-1.0, -2.0, -3.0]])
    sampler_BT = torch.tensor([[-1.05, -2.2, torch.nan]])
    found = gap(logp_BT, sampler_BT, torch.ones(1, 3, dtype=torch.bool))
    assert found[f"{GAP}/max"] == pytest.approx(0.2)
    assert found[f"{GAP}/mean"] == pytest.approx(0.125)
    assert found["sampling/outside"] == 0.5  # e^0.05 is within 10 %, e^0.2 is not
    assert gap(logp_BT, sampler_BT, torch.zeros(1, 3, dtype=torch.bool)) == {}


def test_scores_outside_a_reward_models_range(tmp_path) -> None:
    ScoreRange.of([float(i) for i in range(101)]).write(tmp_path)
    known = ScoreRange.read(tmp_path)
    assert known is not None
    assert known == ScoreRange(1.0, 99.0, 101)
    parts = [{"judge": 0.5}, {"judge": 1.0, "other": 5.0}, {"judge": None}, {"judge": 99.5}, {"judge": 50.0}]
    groups = [Group(Prompt((1,)), tuple(Completion((2,), rewards=part) for part in parts))]
    assert outside_ranges(groups, {"judge": known}) == {"rewards/judge/outside": 0.5}
    assert outside_ranges(groups, {"absent": known}) == {}
    assert ScoreRange.read(tmp_path / "elsewhere") is None


def test_alarms_go_on_where_they_were() -> None:
    steps = [*[healthy(s) for s in range(1, 8)], *[healthy(2) | {"entropy": 0.01, "kl": 9.0}] * 6, *[healthy(1)] * 12]
    whole = Alarms(AlarmLimits())
    told = [[(r.alarm.name, r.new, r.ends, r.steps) for r in whole.step(m)] for m in steps]
    for cut in (1, 4, 8, 9, 14, 20):
        first, second = Alarms(AlarmLimits()), Alarms(AlarmLimits())
        before = [[(r.alarm.name, r.new, r.ends, r.steps) for r in first.step(m)] for m in steps[:cut]]
        first.evaluated(0.5)
        second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert second.state() == first.state()
        after = [[(r.alarm.name, r.new, r.ends, r.steps) for r in second.step(m)] for m in steps[cut:]]
        assert before + after == told
        assert second.counts == whole.counts == {"entropy_collapse": 1, "kl_explosion": 1}


@pytest.mark.parametrize(
    ("limits", "flat", "ends"),
    [
        (AlarmLimits(), 2, True),
        (AlarmLimits(), 3, False),
        (AlarmLimits(flat_groups=None), 2, False),
        (AlarmLimits(ratio=1.0), 2, True),
    ],
)
def test_other_limits_let_a_run_go_on(limits: AlarmLimits, flat: int, ends: bool) -> None:
    first = Alarms(AlarmLimits(), stops={"flat_groups": 2})
    assert [[r.ends for r in first.step({"flat": 1.0})] for _ in range(2)] == [[False], [True]]
    second = Alarms(limits, stops={"flat_groups": flat})
    second.load(first.state())
    assert second.still_end({"flat_groups": 1.0}) == ends


def test_measurements_within_a_new_limit_are_not_counted() -> None:
    """Of three steps in a row beyond 0.2 the run ended; the last, 0.3, is none beyond 0.4."""
    first, second = Alarms(AlarmLimits()), Alarms(AlarmLimits(sampler_apart=0.4))
    ended = [one for gap in (0.5, 0.6, 0.3) for one in first.step({"sampling/outside": gap}) if one.ends]
    assert [(one.alarm.name, one.value, one.key) for one in ended] == [
        ("sampler_apart", 0.3, "training.alarms.sampler_apart")
    ]
    second.load(first.state())
    assert not second.still_end({"sampler_apart": 0.3})
    assert not any(
        one.ends for one in [*second.step({"sampling/outside": 0.5}), *second.step({"sampling/outside": 0.5})]
    )
    assert any(one.ends for one in second.step({"sampling/outside": 0.5}))


def test_the_table_and_the_settings_are_of_the_same_alarms() -> None:
    assert [field.name for field in fields(AlarmLimits)] == [alarm.name for alarm in ALARMS]
    for alarm in ALARMS:
        message = alarm.message(0.5, 0.25)
        assert message.startswith(f"{alarm.name}: ")
        assert all(text.endswith(".") for text in (alarm.cause, alarm.knob)), alarm.name
    assert replace(AlarmLimits(), ratio=None).ratio is None
