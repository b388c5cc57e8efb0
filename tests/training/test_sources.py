"""Sources are functions of the step: orders, shares and keys worked out by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gro.engines.base import Progress, Sampling
from gro.training.rollouts import Online
from gro.training.sources import Mixture, Offline, apportion, permutation
from gro.types import Completion, Group, Prompt


def rows(n: int, name: str = "") -> list[Group]:
    return [Group(Prompt((1,), key=i, row={"from": name}), (Completion((2,), role="target"),)) for i in range(n)]


def keys(groups: Sequence[Group]) -> list[int]:
    return [g.prompt.key for g in groups]


class ScriptedEngine:
    """Answers with (sample index, step) as tokens and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, Sampling, int, int]] = []
        self.versions: list[int] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        on_progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        self.calls.append(([p.key for p in prompts], n, sampling, seed, step))
        return [tuple(Completion((i, step), finish="stop") for i in range(n)) for _ in prompts]

    def update(self, version: int) -> None:
        self.versions.append(version)

    def close(self) -> None: ...


class Scores:
    """A completion's reward is its first token, a greedy one's 10."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        self.calls += 1
        single = {id(g) for g in groups if len(g.completions) == 1}

        def reward(group: Group, completion: Completion) -> float:
            return 10.0 if id(group) in single else float(completion.ids[0])

        return [replace(g, completions=tuple(replace(c, reward=reward(g, c)) for c in g.completions)) for g in groups]


def online(n: int, engine: ScriptedEngine, scores: Scores | None = None, **kwargs: Any) -> Online:
    settings: dict[str, Any] = {"prompts_per_step": 2, "group_size": 3, "seed": 5} | kwargs
    return Online(rows(n, "online"), engine, scores or Scores(), Sampling(), **settings)


def test_the_order_is_the_same_on_every_machine() -> None:
    # Computed once by an independent scalar splitmix64 (below); a change would break every resumed run.
    assert permutation(8, seed=0, epoch=0).tolist() == _reference_permutation(8, 0, 0)
    assert permutation(50, seed=-3, epoch=7).tolist() == _reference_permutation(50, -3, 7)


def _reference_permutation(n: int, seed: int, epoch: int) -> list[int]:
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = mix(mix(seed & mask) ^ epoch)
    return sorted(range(n), key=lambda i: mix(mix(i) ^ key))


def test_every_row_once_per_epoch_and_another_order_in_the_next() -> None:
    source = Offline(rows(10), per_step=4, seed=1)
    taken = [keys(source.take(step)) for step in range(5)]
    flat = [key for step in taken for key in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert flat[:10] == permutation(10, 1, 0).tolist()
    # A function of the step alone: any order of asking, and a new source, give the same.
    again = Offline(rows(10), per_step=4, seed=1)
    assert [keys(again.take(step)) for step in (4, 0, 3, 2, 1)] == [taken[s] for s in (4, 0, 3, 2, 1)]
    assert keys(Offline(rows(10), per_step=10, seed=2).take(0)) != flat[:10]


def test_permutations_look_random() -> None:
    counts = Counter(permutation(6, seed, epoch).tolist()[0] for seed in range(60) for epoch in range(20))
    # 1200 draws over 6 rows: 200 ± 13; ten standard deviations are a bug.
    assert all(70 < counts[i] < 330 for i in range(6))
    assert len({tuple(permutation(6, s, 0).tolist()) for s in range(200)}) > 150


def test_rollouts_are_keyed_by_row_seed_and_step() -> None:
    engine, scores = ScriptedEngine(), Scores()
    source = online(10, engine, scores)
    groups = source.take(3)
    order = permutation(10, 5, 0).tolist()
    assert engine.calls == [(order[6:8], 3, Sampling(), 5, 3)]
    assert keys(groups) == order[6:8]
    assert [[(c.ids, c.reward) for c in g.completions] for g in groups] == [[((i, 3), float(i)) for i in range(3)]] * 2
    assert groups[0].greedy_reward is None
    source.receive(None, 3)
    assert engine.versions == [4]


def test_the_same_prompt_twice_in_a_step_is_sampled_with_other_noise() -> None:
    engine = ScriptedEngine()
    online(3, engine, prompts_per_step=7).take(0)
    asked = engine.calls[0][0]
    assert len(set(asked)) == 7
    assert sorted(Counter(k % (1 << 40) for k in asked).values()) == [2, 2, 3]
    assert asked[:3] == permutation(3, 5, 0).tolist()


def test_greedy_answers_are_scored_in_the_same_call() -> None:
    engine, scores = ScriptedEngine(), Scores()
    groups = online(10, engine, scores, greedy=True).take(0)
    assert [g.greedy_reward for g in groups] == [10.0, 10.0]
    assert [len(g.completions) for g in groups] == [3, 3]
    assert [(n, s.greedy) for _, n, s, _, _ in engine.calls] == [(3, False), (1, True)]
    assert scores.calls == 1


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 300))
def test_shares_are_kept_as_closely_as_whole_numbers_can(weights: list[int], total: int) -> None:
    shares = [Fraction(w, sum(weights)) for w in weights]
    counts, more = apportion(total, shares), apportion(total + 1, shares)
    assert sum(counts) == total
    assert sorted(b - a for a, b in zip(counts, more, strict=True)) == [0] * (len(weights) - 1) + [1]
    # Webster's own definition: the groups that are due first, one by one.
    slow = [0] * len(weights)
    for _ in range(total):
        due = min(range(len(shares)), key=lambda k: (Fraction(2 * slow[k] + 1, 2) / shares[k], k))
        slow[due] += 1
    assert counts == slow
    assert all(abs(c - total * s) <= Fraction(len(weights), 2) for c, s in zip(counts, shares, strict=True))
    if total % sum(weights) == 0:
        assert counts == [total * s for s in shares]


def test_a_quarter_of_every_batch_is_demonstrations() -> None:
    engine = ScriptedEngine()
    source = Mixture([(online(20, engine), 0.75), (Offline(rows(6, "file"), 1, seed=9), 0.25)], per_step=8)
    for step in range(6):
        groups = source.take(step)
        assert [g.prompt.row["from"] for g in groups] == ["online"] * 6 + ["file"] * 2
    # Each part goes on where it was, whatever its own portion per step: 12 rows are two epochs of 6.
    taken = [g.prompt.key for step in range(6) for g in source.take(step) if g.prompt.row["from"] == "file"]
    assert taken == permutation(6, 9, 0).tolist() + permutation(6, 9, 1).tolist()
    assert engine.calls[0][0] == permutation(20, 5, 0).tolist()[:6]


def test_shares_that_do_not_come_out_even() -> None:
    source = Mixture([(Offline(rows(5, "a"), 1), 2), (Offline(rows(5, "b"), 1), 1)], per_step=4)
    names = ["".join(g.prompt.row["from"] for g in source.take(step)) for step in range(6)]
    # Due at ¾, 2¼, 3¾, 5¼, … for a and 1½, 4½, … for b: a b a a b a | per 3 numbers 2 and 1.
    assert names == ["aaab", "aabb", "aaab"] * 2
    assert Counter("".join(names)) == {"a": 16, "b": 8}


def test_a_mixture_of_mixtures() -> None:
    inner = Mixture([(Offline(rows(40, "a"), 1), 1), (Offline(rows(40, "b"), 1), 1)], per_step=3)
    outer = Mixture([(inner, 0.5), (Offline(rows(40, "c"), 1), 0.5)], per_step=8)
    counts = Counter(g.prompt.row["from"] for step in range(5) for g in outer.take(step))
    assert counts == {"a": 10, "b": 10, "c": 20}
    seen = [g.prompt.key for step in range(5) for g in outer.take(step) if g.prompt.row["from"] == "a"]
    assert len(set(seen)) == 10
    versions = ScriptedEngine()
    Mixture([(Mixture([(online(3, versions), 1)], 1), 1)], 1).receive(None, 0)
    assert versions.versions == [1]


def test_shares_that_no_binary_fraction_is() -> None:
    source = Mixture([(Offline(rows(9, "a"), 1), 0.1), (Offline(rows(9, "b"), 1), 0.9)], per_step=10)
    for step in range(300):
        assert sum(g.prompt.row["from"] == "a" for g in source.take(step)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Offline([], 1),
        lambda: Offline(rows(1), 0),
        lambda: online(1, ScriptedEngine(), group_size=0),
        lambda: Mixture([], 1),
        lambda: Mixture([(Offline(rows(1), 1), 0)], 1),
        lambda: Mixture([(Offline(rows(1), 1), float("nan"))], 1),
        lambda: Mixture([(Offline(rows(1), 1), 1)], 0),
    ],
)
def test_what_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"at least|weights"):
        make()
