"""What several samples per prompt show, against full logits and numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.engines.scripted import ScriptedEngine
from gro.evaluation import several
from gro.evaluation.heldout import HeldOut
from gro.policy.policy import Policy
from gro.training.prepare import Reference
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer


def rewarded(*rewards: float | None) -> Group:
    return Group(Prompt((1,)), tuple(Completion((3, 2), reward=r, finish="stop") for r in rewards))


def test_rewards_and_pass_at_k() -> None:
    groups = [rewarded(1.0, 1.0, 0.0, 0.0, 0.0), rewarded(0.0, None, 0.0, 0.0, 0.0)]
    found = several.rewards(groups, (1, 2, 5))
    assert found["samples/reward"].value == found["samples/accuracy"].value == pytest.approx(2 / 9)
    assert found["samples/failed"].value == 1
    assert found["pass@1"].value == pytest.approx(0.2)
    assert found["pass@2"].value == pytest.approx(0.35)
    assert found["pass@5"].value == 1, "the prompt with four rewards has no part in it"


def test_what_is_correct() -> None:
    groups = [rewarded(0.4, 0.9), rewarded(0.6, 0.1)]
    assert "pass@1" not in several.rewards(groups, (1,)), "of such rewards nobody knows"
    found = several.rewards(groups, (1, 2), correct_from=0.6)
    assert found["samples/accuracy"].value == 0.5
    assert found["pass@2"].value == 1


def test_powers() -> None:
    assert several.powers(1) == (1,)
    assert several.powers(8) == (1, 2, 4, 8)
    assert several.powers(12) == (1, 2, 4, 8, 12)


def test_lengths_and_diversity() -> None:
    def group(*answers: tuple[int, ...]) -> Group:
        done = (Completion(a, finish="stop" if a[-1] == 2 else "length") for a in answers)
        return Group(Prompt((1,)), tuple(done))

    found = several.texts([group((5, 6, 2), (5, 7, 2)), group((5, 5, 5), (5, 5, 5))])
    assert found["samples/mean_length"].value == 3
    assert found["samples/stopped"].value == 0.5
    assert found["samples/distinct_1"].value == pytest.approx((3 / 4 + 1 / 6) / 2)
    assert found["samples/distinct_2"].value == pytest.approx((2 / 2 + 1 / 4) / 2)
    assert found["samples/distinct_3"].value == pytest.approx(1 / 2), "only the second has any"
    assert found["samples/self_overlap"].value == pytest.approx(((1 / 2 + 0) / 2 + 1) / 2)
    assert found["samples/unique"].value == pytest.approx((1 + 0.5) / 2)
    assert "samples/unique" not in several.texts([group((5, 2))]), "one sample is as diverse as can be"


@pytest.fixture(scope="module")
def policies() -> tuple[Policy, Policy]:
    return tuple(Policy(tiny_model(seed=s, initializer_range=0.05), tiny_tokenizer()) for s in (1, 2))  # type: ignore[return-value]


def logps(policy: Policy, prompt: Prompt, completion: Completion) -> torch.Tensor:
    """Of each token, by plain full logits in float64."""
    model = tiny_model(seed=0, initializer_range=0.05)
    model.load_state_dict(policy.model.state_dict())
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids + completion.ids])).logits[0].double() / completion.temperature
    rows = logits.log_softmax(-1)[len(prompt.ids) - 1 :]
    return rows[torch.arange(len(completion.ids)), torch.tensor(completion.ids)]


def test_divergence(policies: tuple[Policy, Policy]) -> None:
    policy, start = policies
    drawn = [(3, 4, 2), (5, 2), (6, 7, 8), (9,)]
    groups = [
        Group(Prompt((1, 5 + g), key=g), tuple(Completion(ids, temperature=0.7) for ids in drawn[2 * g : 2 * g + 2]))
        for g in range(2)
    ]
    found = several.divergence(policy, Reference(start), groups, 64)
    u = [logps(policy, g.prompt, c) - logps(start, g.prompt, c) for g in groups for c in g.completions]
    every = torch.cat(u)
    k3 = torch.exp(-every) - 1 + every
    assert found["samples/kl_k1"].value == pytest.approx(every.mean().item(), abs=1e-5)
    assert found["samples/kl"].value == pytest.approx(k3.mean().item(), abs=1e-5)
    assert found["samples/sequence_kl_k1"].value == pytest.approx(every.sum().item() / 4, abs=1e-5)
    assert found["samples/sequence_kl"].value == pytest.approx(k3.sum().item() / 4, abs=1e-5)
    assert found["samples/kl"].low is not None
    assert found["samples/kl"].low > 0


def test_divergence_is_that_of_the_distributions(policies: tuple[Policy, Policy]) -> None:
    """One token of each: both estimates against the sum over the whole vocabulary."""
    policy, start = policies
    prompt = Prompt((1, 9), key=4)
    drawn = LocalEngine(policy.model).generate([prompt], 4000, Sampling(max_new_tokens=1), seed=0, step=0)
    found = several.divergence(policy, Reference(start), [Group(prompt, drawn[0])], 100_000)
    with torch.no_grad():
        ours, theirs = (
            tiny_like(p)(torch.tensor([prompt.ids])).logits[0, -1].double().log_softmax(-1) for p in policies
        )
    exact = (ours.exp() * (ours - theirs)).sum().item()
    assert exact > 0.05
    assert found["samples/kl"].value == pytest.approx(exact, rel=0.08)
    assert found["samples/kl_k1"].value == pytest.approx(exact, abs=0.02), "three standard errors"


def tiny_like(policy: Policy) -> torch.nn.Module:
    model = tiny_model(seed=0, initializer_range=0.05)
    model.load_state_dict(policy.model.state_dict())
    return model


class Even:
    """1 for an answer that begins with an even token."""

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        def one(c: Completion) -> Completion:
            return replace(c, reward=float(c.ids[0] % 2 == 0), rewards={"even": 0.0})

        return [replace(g, completions=tuple(map(one, g.completions))) for g in groups]


def test_held_out_samples(policies: tuple[Policy, Policy]) -> None:
    policy, start = policies
    engine = ScriptedEngine(lambda prompt, i: Completion((4 + i + prompt.key, 2), finish="stop"))
    groups = [Group(Prompt((i + 1,), key=i), ()) for i in range(2)]
    held_out = HeldOut(
        groups, "prompt_only", policy, 4096, Reference(start), engine, Even(), Sampling(stop_ids=(2,)), samples=3
    )
    found = held_out.measure()
    assert found["reward"].value == 0.5, "the greedy answers are those of before"
    assert found["pass@1"].value == found["samples/reward"].value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["pass@3"].value == 1
    assert [name for name in found if name.startswith("pass")] == ["pass@1", "pass@2", "pass@3"]
    assert found["samples/kl"].value > 0
    assert [[c.ids[0] for c in g.completions] for g in held_out.sampled] == [[4, 5, 6], [5, 6, 7]]
    assert "accuracy" not in found
    stricter = HeldOut(
        groups, "prompt_only", policy, 4096, None, engine, Even(), Sampling(), samples=3, k=(2,), correct_from=2.0
    )
    found = stricter.measure()
    assert (found["accuracy"].value, found["pass@2"].value) == (0, 0)
    assert [name for name in found if name.startswith("pass")] == ["pass@2"]
    assert "samples/kl" not in found


def test_held_out_samples_without_rewards(policies: tuple[Policy, Policy]) -> None:
    policy, start = policies
    engine = ScriptedEngine(lambda prompt, i: Completion((4 + i, 2), finish="stop"))
    pair = Group(Prompt((5, 7)), (Completion((11, 2), reward=1.0), Completion((12, 2), reward=-1.0)))
    held_out = HeldOut([pair], "preference", policy, 4096, Reference(start), engine, samples=2)
    found = held_out.measure()
    assert {"accuracy", "margin", "samples/kl", "samples/unique"} <= set(found)
    assert "samples/reward" not in found
    assert not math.isnan(found["samples/kl"].value)
