"""What a run directory says of every token: what was recorded, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from inspected_runs import records, trained

from gro.objective.units import score
from gro.runs import RunReader
from gro.runs.records import TERMS, RolloutRecord
from gro.web.inspect.stored import numbers, parts_of, quantities, quantities_of


def product(found: dict[str, np.ndarray]) -> np.ndarray:
    """Σ share · w · v · slope over the terms."""
    terms = [name.removesuffix(".share") for name in found if name.endswith(".share")]
    return sum(np.prod([found[f"{term}.{f}"] for f in ("share", "w", "v", "slope")], axis=0) for term in terms)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo", "gro", "dpo", "kto", "twice"])
def test_the_product_of_the_parts_is_the_recorded_coefficient(name: str) -> None:
    run, pushed = trained(name), 0
    with RunReader(run) as reader:
        steps, terms = reader.rollout_steps(), reader.kept(TERMS)
    for step in steps:
        for record in records(run, step):
            found = quantities(record)
            assert {q.name for q in parts_of(terms) if not q.name.endswith(".clip")} <= set(found)
            size = sum(np.abs(found[f"term{k}.c"]) for k in range(len(terms)))
            assert (np.abs(product(found) - found["coefficient"]) <= 1e-6 * size).all()
            pushed += int((found["coefficient"] != 0).sum())
    assert pushed > 10


def test_of_a_reward_model_there_is_the_score_of_an_answer_and_no_log_prob() -> None:
    run = trained("judge")
    with RunReader(run) as reader:
        known = {q.name: q for q in quantities_of(reader.kept(TERMS))}
        assert f" · {score.symbol}, " in reader.kept(TERMS)[0]
    own = [q.label for q in known.values() if q.term is None]
    assert own == ["coefficient c", "advantage A", "reward placement", "score", "loss mask"]
    assert known["logp"].scale == "signed"
    assert not [q for q in known.values() if "log-" in q.meaning or "log-" in q.label]
    for step, differ in ((1, False), (2, True)):  # a fresh head gives 0 to all
        rows = records(run, step)
        assert len({row.group for row in rows}) == len(rows) / 2 > 1
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            mine, theirs = quantities(one), quantities(other)
            assert (mine["logp"][:-1] == 0).all()
            gap = mine["logp"][-1] - theirs["logp"][-1]
            assert (gap != 0) == differ
            assert mine["term0.u"][-1] == pytest.approx(gap, rel=1e-5, abs=1e-7)
            assert mine["term0.w"][-1] == pytest.approx(1 / (1 + math.exp(gap)), rel=1e-5)  # σ(−u)


@pytest.mark.parametrize(("name", "completions"), [("grpo", 16), ("twice", 8)])
def test_the_share_is_that_of_the_whole_update_though_a_part_of_it_is_recorded(name: str, completions: int) -> None:
    """Sequence mean: 1/(B·|y|) of B completions.  grpo records 2 of 4 groups of 4; twice learns in two minibatches, of
    which the first is recorded."""
    run = trained(name)
    for step in (1, 2):
        rows = records(run, step)
        assert len(rows) == 8
        for record in rows:
            for term in ("term0", "term1"):
                share = quantities(record)[f"{term}.share"]
                np.testing.assert_allclose(share, 1 / (completions * len(record.completion_ids)), rtol=1e-6)


def test_recorded_quantities_and_what_follows_from_them() -> None:
    log_r = math.log(1.5)
    tokens = {"logp": [-0.5, -0.75], "old": [-0.5, -0.75 - log_r], "ref": [-0.5, -1.05], "trained": [1.0, 1.0]}
    row = RolloutRecord(
        group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[0, 1], reward=1.0, tokens=tokens
    )
    found = quantities(row)
    np.testing.assert_allclose(found["ratio"], [1, 1.5], rtol=1e-5)
    np.testing.assert_allclose(found["kl1"], [0, 0.3], atol=1e-6)
    np.testing.assert_allclose(found["kl3"], [0, math.exp(-0.3) - 1 + 0.3], atol=1e-6)
    assert found["reward"].tolist() == [0, 1]
    assert not {"value", "gap"} & set(found)  # nobody recorded them
    assert numbers(np.array([1.0, math.nan, math.inf])) == [1.0, None, None]


def test_the_reward_stands_at_the_last_token_that_carries_loss() -> None:
    record = RolloutRecord(
        group=0, row=0, prompt="", prompt_ids=[1], completion="", completion_ids=[5, 6, 7], reward=2.0,
        tokens={"trained": np.array([1, 1, 0], np.float32)},
    )  # fmt: skip
    assert quantities(record)["reward"].tolist() == [0, 2, 0]


def test_epsilon_is_what_the_log_prob_is_compared_with() -> None:
    """GRPO's first term looks at the old policy's log-prob, its second at the reference's; DPO's at the partner's."""
    for record in records(trained("twice"), 2):
        found = quantities(record)
        np.testing.assert_allclose(found["term0.epsilon"], found["old"], atol=1e-6)
        np.testing.assert_allclose(found["term1.epsilon"], found["ref"], atol=1e-6)
    for better, worse in zip(*[iter(records(trained("dpo"), 2))] * 2, strict=True):
        sums = [{name: r.tokens[name].sum() for name in ("logp", "ref")} for r in (better, worse)]
        partner = sums[1]["logp"] - sums[1]["ref"]
        np.testing.assert_allclose(quantities(better)["term0.epsilon"], sums[0]["ref"] + partner, rtol=1e-5)


def test_what_was_not_recorded_is_left_out() -> None:
    """As in a step in which the policy rested."""
    resting = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1], reward=1.0)
    assert set(quantities(resting)) == {"reward"}
    assert [q.name for q in parts_of(["a", "b"]) if q.name.endswith("clip")] == ["term0.clip", "term1.clip"]
    assert [q.term for q in parts_of(["a"])] == [1] * 8


def test_a_factor_that_is_no_number_anywhere_is_none() -> None:
    """As where a policy has come apart: what is NaN throughout is not recorded, and the rest can still be looked at."""
    tokens = {"term0.share": [0.5, 0.5], "term0.v": [1.0, 2.0], "term0.slope": [1.0, 1.0]}
    record = RolloutRecord(
        group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1, 2], tokens=tokens
    )
    found = quantities(record)
    assert found["term0.v"].tolist() == [1, 2]
    assert [numbers(found[f"term0.{name}"]) for name in ("w", "u", "epsilon", "c")] == [[None, None]] * 4
