"""A tiny language task on which every algorithm must improve a real model: repeat the token that belongs to the prompt.

There are few prompts, few tokens and completions of two tokens, so that the policy's expected reward is a sum over all
completions and no estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.probe import attention_of
from gro.training.critic import CriticLearner
from gro.training.learner import Learner, PolicyLearner
from gro.training.loop import Warmup, train
from gro.training.prepare import Reference, score
from gro.training.recording import Recorder, StepResult
from gro.training.settings import Optimization, Portions
from gro.training.shaping import best_against_worst, with_mismatches
from gro.training.sources import Stateless
from gro.training.trust_region import TrustRegionLearner
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

VOCABULARY, LENGTH, SAMPLES = 12, 2, 8
ANSWERS = {8: 3, 9: 4, 10: 5, 11: 6}
"""The only token of a prompt, and the one that is right for it."""
PROMPTS = tuple(Prompt((token,), key=key) for key, token in enumerate(ANSWERS))
BUDGET = 64
"""Tokens of a micro-batch: several per update."""
WARMUP = 5
"""Steps in which a critic that then stays is fitted."""
FILE = 4
"""Batches of pairs in the file that pairs come from."""
RATE, UPDATES = 0.003, 24
TRUSTED_UPDATES = 8
"""A trust region's steps are long, and each costs a solution of linear equations."""


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


def pairs_of(start: Policy) -> list[Group]:
    """The best of each prompt's samples against the worst, as in the file that pairs come from."""
    engine = LocalEngine(start.model)
    pairs, _ = best_against_worst([group for step in range(FILE) for group in rollouts(engine, SAMPLES, step)])
    return pairs


def preference(policy: Policy, pairs: Sequence[Group]) -> float:
    """The mean over the pairs of the log-odds of the better completion against the worse."""
    total_B = score(policy, pairs, 10**6).sum(1)
    return float((total_B[::2] - total_B[1::2]).mean())


def updates_of(algorithm: Algorithm) -> int:
    """In how many updates it is asked to improve the policy."""
    return UPDATES if algorithm.step is None else TRUSTED_UPDATES


def improve(
    policy: Policy, algorithm: Algorithm, *, updates: int, rate: float, recorder: Recorder | None = None
) -> None:
    """Trains the policy in place, by the loop of every run, on rows of the kinds that the algorithm reads.

    Where ratios may leave 1, each step's rows are learnt from twice; a critic that then stays is fitted first.
    """
    epochs = 1 if algorithm.single_update or algorithm.step is not None else 2
    first = WARMUP if algorithm.critic is not None and algorithm.critic.frozen else 0
    learners, critic = learners_of(policy, algorithm, Optimization(learning_rate=rate))
    train(
        policy,
        Rows(algorithm, LocalEngine(policy.model)),
        algorithm,
        learners[:1] if first else learners,
        Portions(steps=first + updates // epochs, epochs=epochs, tokens_per_micro=BUDGET),
        recorder or Silent(),
        reference=Reference(policy.snapshot()),
        critic=critic,
        warmup=Warmup(first, learners[1:]),
        length_limit=LENGTH,
    )


def learners_of(
    policy: Policy, algorithm: Algorithm, optimization: Optimization
) -> tuple[list[Learner], Critic | None]:
    """(what moves the policy, then what moves the critic where the algorithm reads one; the critic)."""
    if algorithm.step is not None:
        mover: Learner = TrustRegionLearner(policy, algorithm, tokens_per_micro=BUDGET)
    else:
        mover = PolicyLearner(policy, algorithm, optimization, total_updates=1, tokens_per_micro=BUDGET)
    if algorithm.critic is None:
        return [mover], None
    critic = Critic.beside(policy)
    regression = CriticLearner(critic, algorithm, optimization, total_updates=1, tokens_per_micro=BUDGET)
    return [mover, regression], critic


class Silent(Recorder):
    """Records nothing."""

    def __init__(self) -> None: ...

    def step(self, step: int, result: StepResult) -> None: ...

    def evaluated(self, step: int, evaluate: object) -> None: ...


class Rows(Stateless):
    """The groups of each step, by the algorithm's roles: pairs are drawn once and stay, as in a file."""

    observed: Mapping[str, float] = {}

    def __init__(self, algorithm: Algorithm, engine: LocalEngine) -> None:
        roles, pairs = algorithm.roles, algorithm.pairs
        self.engine, self.demonstrated = engine, bool(roles & {"targets", "versus"})
        self.shapes = [best_against_worst] * pairs + [with_mismatches] * algorithm.mismatches
        self.samples = SAMPLES if pairs or "scored" in roles or algorithm.beside else 0
        self.samples = 1 if roles == {"versus"} else self.samples
        self.given = [self.draw(step) for step in range(FILE)] if pairs else None

    def take(self, step: int) -> list[Group]:
        return self.draw(step) if self.given is None else self.given[step % FILE]

    def receive(self, policy: Policy, step: int) -> None: ...

    def draw(self, step: int) -> list[Group]:
        groups = rollouts(self.engine, self.samples, step) if self.samples else [Group(p, ()) for p in PROMPTS]
        if self.demonstrated:
            groups = [replace(g, completions=(*g.completions, demonstration(g.prompt))) for g in groups]
        for shape in self.shapes:
            groups, _ = shape(groups)
        return groups


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
