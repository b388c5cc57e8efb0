"""No part of a step holds vocabulary × tokens: memory is measured where one or the other grows, and where both do.

Of peak(V, M) = a + b·V + c·M + d·V·M only d is asked for, in float32 numbers: 1 if the logits of all tokens lived at
once.  A trust region is the exception: its steps hold the logits of as many tokens as fit into a fixed number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.objective import Algorithm
from gro.policy import head
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.runs.progress import Progress
from gro.runs.store import Run
from gro.training.batching import collate
from gro.training.critic import CriticLearner
from gro.training.learner import Learner, PolicyLearner
from gro.training.live import LiveBytes
from gro.training.prepare import Reference, prepare
from gro.training.recording import Recorder, StepResult
from gro.training.settings import Optimization, Portions
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

VOCABULARY, GROUPS = 2048, 2
LENGTH = 24
WIDER, MORE = 8, 4
"""Times that the vocabulary and the tokens grow."""


@pytest.fixture(autouse=True)
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that are reached already where nothing has grown."""
    monkeypatch.setattr(head, "KEEP_BYTES", 1 << 18)
    monkeypatch.setattr(head, "CHUNK_BYTES", 1 << 19)
    monkeypatch.setattr(head, "MIN_ROWS", 2)
    monkeypatch.setattr(head, "MAX_ROWS", 16)


def coefficient(peak: Callable[[int, int], int], tokens: int) -> float:
    """d, of peaks by (vocabulary, how many times the tokens)."""
    wide = WIDER * VOCABULARY
    mixed = peak(wide, MORE) - peak(wide, 1) - peak(VOCABULARY, MORE) + peak(VOCABULARY, 1)
    return mixed / (4 * (wide - VOCABULARY) * tokens * (MORE - 1))


def groups_of(kind: str, count: int) -> list[Group]:
    """Pairs, or four samples; all completions of one length."""
    rewards = (1.0, -1.0) if kind in ("dpo", "bradley_terry") else (1.0, 0.0, 0.5, 0.0)
    finish = "given" if len(rewards) == 2 else "stop"
    return [
        Group(
            Prompt((5, 6, 7 + g), key=g),
            tuple(
                Completion(tuple(9 + (g + i + t) % 90 for t in range(LENGTH)), reward=r, finish=finish)
                for i, r in enumerate(rewards)
            ),
        )
        for g in range(count)
    ]


def step(kind: str, policy: Policy, groups: list[Group], run: Run) -> None:
    """All of a step: reference, old log-probs, values, credit, updates with the entropy, what is recorded."""
    algorithm: Algorithm = build(kind)
    optimization, portions = Optimization(), Portions(steps=3, kl_every=1)
    critic = Critic.on(policy) if algorithm.critic is not None else None
    reference = Reference(policy.snapshot()) if not algorithm.scores else None
    learner = PolicyLearner(
        policy, algorithm, optimization, total_updates=9, tokens_per_micro=10**6, critic=critic,
        entropy=not algorithm.scores,
    )  # fmt: skip
    learners: list[Learner] = [learner]
    if critic is not None:
        learners.append(CriticLearner(critic, algorithm, optimization, total_updates=9, tokens_per_micro=10**6))
    recorder = Recorder(run, Progress(3), policy, algorithm, portions, reference)
    minibatch, _ = prepare(
        collate(groups, length_limit=LENGTH), policy, reference, algorithm, {}, tokens_per_micro=10**6, updates=2,
        critic=critic,
    )  # fmt: skip
    updates = [learner.update(minibatch) for learner in learners for _ in range(2)]
    recorder.step(1, StepResult(minibatch, updates, 0.0, 1.0))


def measured(kind: str, tmp_path: Path) -> Callable[[int, int], int]:
    def peak(vocabulary: int, times: int) -> int:
        policy = Policy(tiny_model(vocab_size=vocabulary, hidden=16, layers=1), tiny_tokenizer(), layout="shared")
        groups = groups_of(kind, times * GROUPS)
        if kind == "bradley_terry":
            policy, groups = RewardModel.beside(policy), [judged(group) for group in groups]
        with Run.open(tmp_path / f"{vocabulary}-{times}", {}) as run, LiveBytes() as live:
            step(kind, policy, groups, run)
        assert live.peak > 2 * 4 * 16 * vocabulary, "the weights' gradients and moments were seen"
        return live.peak

    return peak


@pytest.mark.parametrize("kind", ["dpo", "grpo", "ppo", "gro", "bradley_terry"])
def test_no_step_holds_the_logits_of_all_tokens(kind: str, tmp_path: Path) -> None:
    tokens = sum(len(c.ids) for g in groups_of(kind, GROUPS) for c in g.completions)
    # Below 0 where what needs most is another part of the step when tokens are many.
    assert -0.1 < coefficient(measured(kind, tmp_path), tokens) < 0.02


def test_the_measurement_sees_logits_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "KEEP_BYTES", 1 << 40)
    assert coefficient(measured("grpo", tmp_path), GROUPS * 4 * LENGTH) == pytest.approx(1.0, abs=0.05)


def test_sampling_holds_the_logits_of_its_slots_only() -> None:
    def peak(vocabulary: int, times: int) -> int:
        engine = LocalEngine(tiny_model(vocab_size=vocabulary, hidden=16, layers=1), slots=4)
        prompts = [Prompt(tuple(5 + (p + i) % 90 for i in range(20)), key=p) for p in range(2 * times)]
        with LiveBytes() as live:
            engine.generate(prompts, 4, Sampling(max_new_tokens=6, stop_ids=()), seed=0, step=0)
        return live.peak

    assert abs(coefficient(peak, 2 * 4 * 6)) < 0.02
