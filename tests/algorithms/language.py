"""A tiny language task on which every algorithm must improve a real model: repeat the token that belongs to the prompt.

There are few prompts, few tokens and completions of two tokens, so that the policy's expected reward is a sum over all
completions and no estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.probe import attention_of
from gro.training.batching import collate
from gro.training.critic import CriticLearner
from gro.training.learner import Learner, PolicyLearner
from gro.training.prepare import Reference, prepare
from gro.training.settings import Optimization
from gro.training.shaping import best_against_worst, with_mismatches
from gro.training.trust_region import TrustRegionLearner
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

VOCABULARY, LENGTH, SAMPLES = 12, 2, 8
ANSWERS = {8: 3, 9: 4, 10: 5, 11: 6}
"""The only token of a prompt, and the one that is right for it."""
PROMPTS = tuple(Prompt((token,), key=key) for key, token in enumerate(ANSWERS))
BUDGET = 64
"""Tokens of a micro-batch: several per update."""


def warm_policy() -> Policy:
    """A model that has seen the right answers a few times: it is right more often than by chance, and rarely sure."""
    model = tiny_model("llama", vocab_size=VOCABULARY, hidden=16, layers=1, seed=3)
    policy = Policy(model, tiny_tokenizer())
    improve(policy, build("sft"), updates=12, rate=0.003)
    return policy


@torch.no_grad()
def expected_reward(policy: Policy) -> float:
    """The exact mean over prompts of the expected share of right tokens."""
    right = torch.tensor(list(ANSWERS.values()))
    first_P1 = torch.tensor([p.ids for p in PROMPTS])
    every_V = torch.arange(VOCABULARY)
    pairs = torch.cartesian_prod(first_P1[:, 0], every_V)
    with attention_of(policy.model, "eager"):
        p_PV = policy.model(first_P1, use_cache=False).logits[:, -1].softmax(-1)
        q_PVV = policy.model(pairs, use_cache=False).logits[:, -1].softmax(-1).view(*p_PV.shape, -1)
    p_P = p_PV.gather(1, right[:, None])[:, 0]
    q_PV = q_PVV[torch.arange(len(right)), :, right]
    return float((p_P + (p_PV * q_PV).sum(1)).mean() / LENGTH)


def improve(policy: Policy, algorithm: Algorithm, *, updates: int, rate: float) -> None:
    """Trains the policy in place on rows of the kinds that the algorithm reads.

    Where ratios may leave 1, each step's rows are learnt from twice.
    """
    epochs = 1 if algorithm.single_update or algorithm.step is not None else 2
    groups_of, reference = source(algorithm, LocalEngine(policy.model)), Reference(policy.snapshot())
    learners, critic = learners_of(policy, algorithm, Optimization(learning_rate=rate))
    state: dict[str, float] = {}
    for step in range(updates // epochs):
        minibatch, state = prepare(
            collate(groups_of(step), length_limit=LENGTH),
            policy,
            reference,
            algorithm,
            state,
            tokens_per_micro=BUDGET,
            updates=epochs,
            critic=critic,
        )
        for epoch in range(epochs):
            for part in minibatch.epoch(epoch, 1, seed=0, step=step):
                for learner in learners:
                    learner.update(part)


def learners_of(
    policy: Policy, algorithm: Algorithm, optimization: Optimization
) -> tuple[list[Learner], Critic | None]:
    """(what moves the policy, and the critic where the algorithm reads one; the critic)."""
    if algorithm.step is not None:
        mover: Learner = TrustRegionLearner(policy, algorithm, tokens_per_micro=BUDGET)
    else:
        mover = PolicyLearner(policy, algorithm, optimization, total_updates=1, tokens_per_micro=BUDGET)
    if algorithm.critic is None:
        return [mover], None
    critic = Critic.beside(policy)
    regression = CriticLearner(critic, algorithm, optimization, total_updates=1, tokens_per_micro=BUDGET)
    return [mover] if algorithm.critic.frozen else [mover, regression], critic


def source(algorithm: Algorithm, engine: LocalEngine) -> Callable[[int], list[Group]]:
    """The groups of each step, by the algorithm's roles: pairs are drawn once and stay, as in a file."""
    roles, pairs = algorithm.roles, algorithm.pairs
    shapes = [best_against_worst] * pairs + [with_mismatches] * algorithm.mismatches
    samples = SAMPLES if pairs or "scored" in roles or algorithm.beside else 0
    samples = 1 if roles == {"versus"} else samples
    demonstrated = bool(roles & {"targets", "versus"})

    def draw(step: int) -> list[Group]:
        groups = rollouts(engine, samples, step) if samples else [Group(p, ()) for p in PROMPTS]
        if demonstrated:
            groups = [replace(g, completions=(*g.completions, demonstration(g.prompt))) for g in groups]
        for shape in shapes:
            groups, _ = shape(groups)
        return groups

    if not pairs:
        return draw
    given = [draw(step) for step in range(4)]
    return lambda step: given[step % len(given)]


def rollouts(engine: LocalEngine, samples: int, step: int) -> list[Group]:
    """Each prompt with samples of the present policy and the reward of its greedy completion."""
    drawn = engine.generate(PROMPTS, samples, Sampling(max_new_tokens=LENGTH), seed=0, step=step)
    greedy = engine.generate(PROMPTS, 1, Sampling(max_new_tokens=LENGTH, greedy=True), seed=0, step=step)
    return [
        Group(p, tuple(replace(y, reward=reward(p, y)) for y in ys), greedy_reward=reward(p, best))
        for p, ys, (best,) in zip(PROMPTS, drawn, greedy, strict=True)
    ]


def demonstration(prompt: Prompt) -> Completion:
    return Completion((ANSWERS[prompt.ids[0]],) * LENGTH, role="target")


def reward(prompt: Prompt, completion: Completion) -> float:
    """The share of right tokens."""
    return completion.ids.count(ANSWERS[prompt.ids[0]]) / LENGTH
