"""What a policy does on held-out data: greedy rewards, several samples, preference accuracy, loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from gro.engines.base import Engine, Progress, Sampling
from gro.errors import GroError
from gro.evaluation import several
from gro.evaluation.estimates import Estimate, mean, proportion
from gro.objective.credit import Labels
from gro.policy.policy import Policy
from gro.training.batching import collate
from gro.training.prepare import Reference, score
from gro.training.processes import ALONE, Processes
from gro.types import Completion, Group, Prompt

EVALUATION_STEP = -1
"""The step under which evaluation keys its randomness, apart from every training step."""

Metrics = dict[str, Estimate]


class Scorer(Protocol):
    """Rewards, as far as evaluation needs them."""

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]: ...


@dataclass(slots=True)
class HeldOut:
    """Held-out rows and everything to measure a policy on them; what is measured follows from the rows."""

    groups: Sequence[Group]
    kind: str
    """The dataset type of the rows."""
    policy: Policy
    tokens_per_micro: int
    reference: Reference | None = None
    """What implicit rewards and the KL of samples are relative to."""
    engine: Engine | None = None
    rewards: Scorer | None = None
    """None: prompts are not answered."""
    sampling: Sampling = field(default_factory=Sampling)
    samples: int | None = None
    """Sampled answers per prompt, besides the greedy one; None: none."""
    k: Sequence[int] | None = None
    """Of pass@k; None: powers of two up to `samples`."""
    correct_from: float | None = None
    """An answer with at least this reward is correct; None: 1 where every reward is 0 or 1."""
    on_progress: Progress | None = None
    processes: Processes = ALONE
    """Which share the passes; the engine and the rewards know their own."""
    answers: Answers | None = None
    """Of the latest `measure`, where prompts were answered."""
    sampled: Sequence[Group] = ()
    """Prompts with their sampled answers, of the latest `measure`."""

    def measure(self) -> Metrics:
        """Preference pairs: accuracy.  Anything else: rewards of greedy answers, and the loss of its completions.

        Of both, where `samples` are asked for, what these show.
        """
        if self.kind == "preference":
            found = preferences(self.policy, self.reference, self.groups, self.tokens_per_micro, self.processes)
            return found | self._measure_samples()
        found = self._measure_greedy()
        return found | self._measure_samples() | self._measure_likelihood()

    def _measure_likelihood(self) -> Metrics:
        return likelihood(self.policy, self.groups, self.tokens_per_micro, self.processes)

    def _measure_greedy(self) -> Metrics:
        if self.rewards is None or self.engine is None:
            return {}
        prompts, greedy = [g.prompt for g in self.groups], replace(self.sampling, greedy=True)
        self.answers = answer(self.engine, self.rewards, prompts, greedy, on_progress=self.on_progress)
        found = self.answers.measure()
        if self.correct_from is not None:
            rewards = [c.reward for c in self.answers.completions if c.reward is not None]
            found["accuracy"] = mean([float(reward >= self.correct_from) for reward in rewards])
        return found

    def _measure_samples(self) -> Metrics:
        if self.samples is None or self.engine is None:
            return {}
        prompts = [g.prompt for g in self.groups]
        drawn = answer(self.engine, self.rewards, prompts, self.sampling, n=self.samples, on_progress=self.on_progress)
        self.sampled = drawn.groups
        found = several.texts(self.sampled)
        if self.rewards is not None:
            ks = self.k or several.powers(self.samples)
            found = several.rewards(self.sampled, ks, self.correct_from) | found
        if self.reference is not None:
            found |= several.divergence(self.policy, self.reference, self.sampled, self.tokens_per_micro)
        return found

    def metrics(self) -> dict[str, float]:
        """The values alone."""
        return {name: estimate.value for name, estimate in self.measure().items()}


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to held-out prompts, with their rewards."""

    groups: tuple[Group, ...]

    @property
    def completions(self) -> list[Completion]:
        return [c for g in self.groups for c in g.completions]

    def measure(self) -> Metrics:
        """Of one answer per prompt.  reward: its mean over the answers that have one; failed: how many have none."""
        rewards = [c.reward for c in self.completions if c.reward is not None]
        found = {
            "reward": mean(rewards),
            "failed": Estimate(float(len(self.completions) - len(rewards))),
            "mean_length": mean([float(len(c.ids)) for c in self.completions]),
            "stopped": mean([float(c.finish == "stop") for c in self.completions]),
        }
        names = dict.fromkeys(name for c in self.completions for name in c.rewards)
        if len(names) > 1:
            for name in names:
                parts = [v for c in self.completions if (v := c.rewards.get(name)) is not None]
                found[f"rewards/{name}"] = mean(parts)
        return found


def answer(
    engine: Engine,
    rewards: Scorer | None,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    n: int = 1,
    on_progress: Progress | None = None,
) -> Answers:
    """Answers every prompt n times and rewards the answers."""
    drawn = engine.generate(prompts, n, sampling, seed=0, step=EVALUATION_STEP, on_progress=on_progress)
    groups = [Group(prompt, completions) for prompt, completions in zip(prompts, drawn, strict=True)]
    return Answers(tuple(groups if rewards is None else rewards.score(groups)))


def preferences(
    policy: Policy,
    reference: Reference | None,
    groups: Sequence[Group],
    tokens_per_micro: int,
    processes: Processes = ALONE,
) -> Metrics:
    """How often the chosen completion is preferred; ties count one half.

    accuracy: by the implicit reward, the log-ratio to the reference (a policy that *is* its reference has ½); margin:
    the mean difference of the log-ratios, in nats.  logp_accuracy: by the policy's total log-likelihood alone.
    """
    batch = collate(groups, length_limit=None, device=policy.device).batch
    sign_B = Labels()(batch, {})[0][:, 0]
    chosen_B, rejected_B = sign_B > 0, sign_B < 0
    logp_B = score(policy, groups, tokens_per_micro, processes=processes).sum(1)
    found: Metrics = {}
    if reference is not None:
        ratio_B = logp_B - reference.score(groups, tokens_per_micro).sum(1)
        difference = ratio_B[chosen_B] - ratio_B[rejected_B]
        found = {"accuracy": _wins(difference), "margin": mean(difference.tolist())}
    return found | {"logp_accuracy": _wins(logp_B[chosen_B] - logp_B[rejected_B])}


def likelihood(policy: Policy, groups: Sequence[Group], tokens_per_micro: int, processes: Processes = ALONE) -> Metrics:
    """Mean negative log-likelihood of the trained tokens, in nats, and its exponential; empty without completions.

    Of labelled completions, those of either label apart: low is good for the desirable ones only.
    """
    kinds: dict[str, Callable[[Completion], bool]] = {
        "loss": lambda c: c.reward is None,
        "loss_desirable": lambda c: c.reward is not None and c.reward > 0,
        "loss_undesirable": lambda c: c.reward is not None and c.reward <= 0,
    }
    found: Metrics = {}
    for name, belongs in kinds.items():
        chosen = [replace(g, completions=tuple(c for c in g.completions if belongs(c))) for g in groups]
        chosen = [g for g in chosen if g.completions]
        if not chosen:
            continue
        batch = collate(chosen, length_limit=None, device=policy.device).batch
        nll = -score(policy, chosen, tokens_per_micro, processes=processes)[batch.mask_BT].double().mean()
        found[name] = Estimate(nll.item())
        if name == "loss":
            found["perplexity"] = Estimate(nll.exp().item())
    return found


def check_kind(kind: str, rewarded: bool) -> None:
    """Raises GroError where nothing can be measured on rows of this type."""
    if kind == "prompt_only" and not rewarded:
        raise GroError(
            "eval.data has prompts without completions, and there is no reward to judge answers by: give eval.rewards"
        )


def _wins(difference: torch.Tensor) -> Estimate:
    wins = (difference > 0).double() + 0.5 * (difference == 0).double()
    return proportion(wins.sum().item(), len(difference))
