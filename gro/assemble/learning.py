"""The algorithm, and what improves policy and critic by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gro.assemble.data import Data
from gro.assemble.models import model_folder
from gro.config import Config
from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.recipe import CriticSettings
from gro.training.critic import CriticLearner
from gro.training.descent import Descent
from gro.training.learner import Learner, PolicyLearner
from gro.training.loop import Warmup
from gro.training.processes import ALONE, Processes
from gro.training.trust_region import TrustRegionLearner


@dataclass(frozen=True, slots=True)
class Learning:
    """Who learns in a run."""

    learners: tuple[Learner, ...]
    descents: Mapping[str, Descent]
    """Their optimizers by the name of what they move; a trust region has none."""
    critic: Critic | None = None
    warmup: Warmup = field(default_factory=Warmup)


def learning_of(config: Config, policy: Policy, algorithm: Algorithm, processes: Processes = ALONE) -> Learning:
    """What improves the policy, and the critic where the algorithm has one."""
    portions, settings = config.training, config.critic or CriticSettings()
    critic = critic_of(config, policy, algorithm)
    warmup_steps = 0 if critic is None else settings.warmup_steps
    updates = (portions.steps - warmup_steps) * portions.updates_per_step
    learner = learner_of(config, policy, algorithm, critic, updates, processes)
    descents = {"policy": learner.descent} if isinstance(learner, PolicyLearner) else {}
    if critic is None or algorithm.critic is None:
        return Learning((learner,), descents)
    only_first = critic.shared or algorithm.critic.frozen
    fitting = CriticLearner(
        critic,
        algorithm,
        settings.optimizer or config.optimizer,
        total_updates=(warmup_steps if only_first else portions.steps) * portions.updates_per_step,
        tokens_per_micro=portions.micro_tokens,
        processes=processes,
    )
    learners = (learner,) if only_first else (learner, fitting)
    descents |= {"critic": fitting.descent}
    return Learning(learners, descents, critic, Warmup(warmup_steps, (fitting,)))


def learner_of(
    config: Config, policy: Policy, algorithm: Algorithm, critic: Critic | None, updates: int, processes: Processes
) -> Learner:
    """What improves the policy, over so many updates; and a critic on the same trunk."""
    if algorithm.step is not None:
        tokens = config.training.micro_tokens
        return TrustRegionLearner(policy, algorithm, tokens_per_micro=tokens, processes=processes)
    return PolicyLearner(
        policy,
        algorithm,
        config.optimizer,
        total_updates=updates,
        tokens_per_micro=config.training.micro_tokens,
        critic=critic if critic is not None and critic.shared else None,
        processes=processes,
    )


def critic_of(config: Config, policy: Policy, algorithm: Algorithm) -> Critic | None:
    """Where the algorithm reads values, what gives them at first."""
    settings = config.critic or CriticSettings()
    if algorithm.critic is None:
        return None
    if settings.kind == "shared":
        return Critic.on(policy)
    seed = config.training.seed
    if settings.path is None:
        return Critic.beside(policy, lora=settings.lora, seed=seed)
    pickled = config.model.allow_pickle
    try:
        critic = Critic.load(model_folder(settings.path), policy, allow_pickle=pickled, lora=settings.lora, seed=seed)
    except GroError as error:
        raise GroError(f"critic.path: {error}") from error
    if policy.sharding is not None:
        critic.shard(policy.sharding.mesh, offload=policy.sharding.offload)
    return critic


def needs_start(config: Config, algorithm: Algorithm, data: Data) -> bool:
    """Whether a frozen copy of the start is kept: the algorithm reads it, or something is measured against it."""
    preferences = "paired" in algorithm.roles or (data.held_out is not None and data.held_out.kind == "preference")
    return "ref" in algorithm.reads or preferences or (config.online is not None and config.training.kl_every > 0)
