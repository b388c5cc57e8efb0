"""What is measured on held-out rows, against full logits of the whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gro.engines.base import Sampling
from gro.engines.scripted import ScriptedEngine
from gro.errors import GroError
from gro.evaluation.heldout import HeldOut, check_kind, likelihood, preferences
from gro.policy.policy import Policy
from gro.training.prepare import Reference
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

PAIRS = [
    Group(
        Prompt((5 + i, 7, 9)),
        (
            Completion((11, 12 + i, 2), reward=1.0),
            Completion((21 + i, 2), reward=-1.0),
        ),
    )
    for i in range(7)
]


@pytest.fixture(scope="module")
def policies() -> tuple[Policy, Policy]:
    return Policy(tiny_model(seed=1), tiny_tokenizer()), Policy(tiny_model(seed=2), tiny_tokenizer())


def totals(policy: Policy, group: Group) -> list[float]:
    """Log-likelihood of each completion from full logits, one row at a time."""
    model = tiny_model(seed=0)
    model.load_state_dict(policy.model.state_dict())
    found = []
    for c in group.completions:
        with torch.no_grad():
            logp = model(torch.tensor([group.prompt.ids + c.ids])).logits[0].double().log_softmax(-1)
        found.append(sum(logp[len(group.prompt.ids) - 1 + t, i].item() for t, i in enumerate(c.ids)))
    return found


def test_preferences_against_a_reference(policies: tuple[Policy, Policy]) -> None:
    policy, start = policies
    found = preferences(policy, Reference(start), PAIRS, 4096)
    ours, theirs = [totals(policy, g) for g in PAIRS], [totals(start, g) for g in PAIRS]
    margins = [(a - b) - (c - d) for (a, b), (c, d) in zip(ours, theirs, strict=True)]
    assert found["accuracy"].value == sum(m > 0 for m in margins) / 7
    assert 0 < found["accuracy"].value < 1, "the example has both"
    assert found["margin"].value == pytest.approx(sum(margins) / 7, abs=1e-4)
    assert found["logp_accuracy"].value == sum(a > b for a, b in ours) / 7


def test_ties_count_one_half(policies: tuple[Policy, Policy]) -> None:
    policy, _ = policies
    found = preferences(policy, Reference(policy.snapshot()), PAIRS, 4096)
    assert found["accuracy"].value == 0.5
    assert found["margin"].value == 0
    mixed = [replace(PAIRS[0], completions=(PAIRS[0].completions[0], replace(PAIRS[0].completions[0], reward=-1.0)))]
    assert preferences(policy, None, mixed, 4096)["logp_accuracy"].value == 0.5


def test_the_order_of_a_pair_does_not_matter(policies: tuple[Policy, Policy]) -> None:
    policy, start = policies
    turned = [replace(g, completions=g.completions[::-1]) for g in PAIRS]
    one, two = (preferences(policy, Reference(start), groups, 4096) for groups in (PAIRS, turned))
    assert one["accuracy"] == two["accuracy"]
    assert one["margin"].value == pytest.approx(two["margin"].value, abs=1e-5)


def test_likelihood(policies: tuple[Policy, Policy]) -> None:
    policy, _ = policies
    targets = [
        replace(g, completions=tuple(replace(c, reward=None, role="target") for c in g.completions)) for g in PAIRS
    ]
    found = likelihood(policy, targets, 4096)
    nll = -sum(sum(totals(policy, g)) for g in PAIRS) / (7 * 5)
    assert found["loss"].value == pytest.approx(nll, abs=1e-5)
    assert found["perplexity"].value == pytest.approx(math.exp(nll), rel=1e-5)
    assert set(found) == {"loss", "perplexity"}
    assert likelihood(policy, [Group(Prompt((1,)), ())], 4096) == {}


def test_labelled_completions_are_measured_apart(policies: tuple[Policy, Policy]) -> None:
    policy, _ = policies
    groups = [replace(g, completions=(c,)) for g in PAIRS for c in g.completions]
    found = likelihood(policy, groups, 4096)
    good, bad = (sum(totals(policy, g)[k] for g in PAIRS) for k in (0, 1))
    assert set(found) == {"loss_desirable", "loss_undesirable"}
    assert found["loss_desirable"].value == pytest.approx(-good / (7 * 3), abs=1e-5)
    assert found["loss_undesirable"].value == pytest.approx(-bad / (7 * 2), abs=1e-5)


def test_untrained_tokens_are_not_measured(policies: tuple[Policy, Policy]) -> None:
    policy, _ = policies
    c = Completion((11, 12, 2), role="target", trained=(False, True, True))
    group = Group(Prompt((5, 7)), (c,))
    whole = totals(policy, replace(group, completions=(replace(c, trained=None),)))[0]
    first = totals(policy, replace(group, completions=(Completion((11,)),)))[0]
    assert likelihood(policy, [group], 4096)["loss"].value == pytest.approx(-(whole - first) / 2, abs=1e-5)


class Length:
    """Rewards an answer's length, and fails on answers of one token."""

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        def scored(c: Completion) -> Completion:
            value = None if len(c.ids) == 1 else float(len(c.ids))
            return replace(c, reward=value, rewards={"length": value, "other": 1.0})

        return [replace(g, completions=tuple(map(scored, g.completions))) for g in groups]


def test_answers_are_greedy_and_failures_are_counted(policies: tuple[Policy, Policy]) -> None:
    policy, _ = policies
    answers = [(3, 2), (4, 5, 2), (2,), (6, 7, 8)]

    def script(prompt: Prompt, _: int) -> Completion:
        ids = answers[prompt.key]
        return Completion(ids, finish="stop" if ids[-1] == 2 else "length")

    engine = ScriptedEngine(script)
    prompts = [Group(Prompt((i + 1,), key=i), ()) for i in range(4)]
    held_out = HeldOut(
        prompts, "prompt_only", policy, 4096, engine=engine, rewards=Length(),
        sampling=Sampling(temperature=2.0, max_new_tokens=3, stop_ids=(2,)),
    )  # fmt: skip
    found = held_out.measure()
    assert found["reward"].value == pytest.approx((2 + 3 + 3) / 3), "a failed reward is no 0"
    assert found["failed"].value == 1
    assert found["mean_length"].value == (2 + 3 + 1 + 3) / 4
    assert found["stopped"].value == 3 / 4
    assert found["rewards/length"].value == found["reward"].value
    assert held_out.answers is not None
    assert [c.temperature for c in held_out.answers.completions] == [1.0] * 4, "greedy"
    assert held_out.metrics() == {name: estimate.value for name, estimate in found.items()}


def test_prompts_need_a_judge() -> None:
    check_kind("prompt_only", True)
    check_kind("prompt_completion", False)
    with pytest.raises(GroError, match=r"give eval\.rewards"):
        check_kind("prompt_only", False)
