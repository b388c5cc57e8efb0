"""The metrics that an algorithm's page tells to watch are recorded in its runs, and belong to what is in its slots."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest

from algorithms.language import BUDGET, PROMPTS, RATE, improve, warm_policy
from gro.algorithms import build, names
from gro.algorithms.watch import watch
from gro.evaluation.heldout import likelihood
from gro.objective import Algorithm
from gro.policy.policy import Policy
from gro.training.recording import Recorder, StepResult
from gro.training.settings import Portions
from gro.types import Completion, Group

POLICIES = [name for name in names() if not build(name).scores]


class Names(Recorder):
    """Keeps the names of what every run records of a step."""

    def __init__(self, policy: Policy, algorithm: Algorithm) -> None:
        super().__init__(mock.Mock(), mock.Mock(), policy, algorithm, Portions(steps=1, kl_every=0))
        self.names: set[str] = set()

    def step(self, step: int, result: StepResult) -> None:
        self.names |= set(self._metrics(step, result))

    def evaluated(self, step: int, evaluate: object) -> None: ...


@pytest.fixture(scope="module")
def start() -> Policy:
    return warm_policy()


@pytest.fixture(scope="module")
def held_out(start: Policy) -> set[str]:
    """Names of what is measured on held-out demonstrations and on labelled completions."""
    ids, prompt = (3, 4), PROMPTS[0]
    plain = Group(prompt, (Completion(ids),))
    labelled = Group(prompt, (Completion(ids, reward=1.0), Completion(ids, reward=-1.0)))
    return {f"eval_{name}" for name in likelihood(start, [plain, labelled], BUDGET)}


def recorded(start: Policy, algorithm: Algorithm) -> set[str]:
    """Names of the metrics of the first steps of a run."""
    policy = start.snapshot()
    policy.model.requires_grad_(True)
    seen = Names(policy, algorithm)
    improve(policy, algorithm, updates=2, rate=RATE, recorder=seen)
    return seen.names


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_to_be_watched_is_recorded(name: str, start: Policy, held_out: set[str]) -> None:
    algorithm = build(name)
    told = [metric for metric, _ in watch(algorithm)]
    assert told
    assert len(told) == len(set(told))
    assert set(told) <= recorded(start, algorithm) | held_out


def test_so_it_is_where_parameters_ask_for_more(start: Policy) -> None:
    algorithm = build("ppo", max_kl=0.03, kl_target=6.0)
    more = {metric for metric, _ in watch(algorithm)}
    assert more - {metric for metric, _ in watch(build("ppo"))} == {"epochs_done", "kl_coefficient"}
    assert more <= recorded(start, algorithm)


@pytest.mark.parametrize(
    ("metric", "told", "not_told"),
    [
        ("clip_ratio/region_mean", ("grpo", "ppo", "gspo"), ("cispo", "rloo", "dpo")),
        ("kl", ("grpo", "rloo", "ppo"), ("dapo", "dr_grpo", "simpo")),
        ("critic/explained_variance", ("ppo", "awr", "trpo"), ("grpo", "rft")),
        ("frac_reward_zero_std", ("grpo", "rloo", "rebel"), ("reinforce", "ppo", "sft", "dpo")),
        ("logps/chosen", ("dpo", "simpo", "orpo", "rebel"), ("kto", "grpo", "bradley_terry")),
        ("inactive_ratio", ("gro", "slic"), ("grpo", "dpo")),
        ("trust_region/accepted", ("trpo",), ("ppo",)),
        ("kl_scale", ("ppo_penalty",), ("ppo",)),
        ("eval_accuracy", ("bradley_terry", "all_pairs"), ("dpo",)),
        ("eval_loss", ("sft",), ("rft",)),
    ],
)
def test_metrics_belong_to_slots(metric: str, told: Sequence[str], not_told: Sequence[str]) -> None:
    said = {name: {m for m, _ in watch(build(name))} for name in (*told, *not_told)}
    assert {name for name, metrics in said.items() if metric in metrics} == set(told)


def test_parameters_that_change_slots_change_what_is_watched() -> None:
    assert "kl" not in dict(watch(build("grpo", beta=0.0)))
    assert "inactive_ratio" not in dict(watch(build("gro", kappa=0.0)))
    assert "critic/explained_variance" not in dict(watch(build("trpo", baseline="group")))
    assert "inactive_ratio" in dict(watch(build("gpo", loss="hinge")))
