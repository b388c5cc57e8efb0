"""Settings that are each fine but cannot go together."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gro.errors import GroError
from gro.raters.spec import asking
from gro.recipe import Config, CriticSettings, RewardModelSettings

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from gro.objective import Algorithm

_SMALLEST_VOCABULARY = 259
"""256 bytes and three special tokens: what the tokenizer of a model from nothing begins with."""
_UNGROUPED = ("gpt2", "gpt_neox")
"""Architectures in which every head has keys and values of its own."""


def contradictions(config: Config) -> list[str]:
    """One sentence for each, with the numbers."""
    from gro.algorithms import build

    problems = [*_of_model(config), *_of_data(config), *_of_stopping(config)]
    try:
        algorithm = build(str(config.algorithm["name"]), **config.parameters)
        problems += [*_of_distributed(config, algorithm)]
        return [*problems, *_of_algorithm(config, algorithm), *_of_critic(config, algorithm)]
    except GroError as error:
        return [*problems, *str(error).splitlines()]


def _of_model(config: Config) -> Iterator[str]:
    model = config.model
    if (model.path is None) == (model.create is None):
        yield "model: give either path or create" + (", not both" if model.path else "")
    wants_adapter = model.lora is not None or (config.critic is not None and config.critic.lora is not None)
    if wants_adapter and importlib.util.find_spec("peft") is None:
        key = "critic.lora" if model.lora is None else "model.lora"
        yield f"{key}: needs the package peft, which is not installed: pip install 'gro[lora]'"
    create = model.create
    if create is not None and create.all_bytes and create.vocab_size < _SMALLEST_VOCABULARY:
        yield f"model.create.vocab_size: found {create.vocab_size}; expected at least {_SMALLEST_VOCABULARY}"
    if create is not None and create.architecture in _UNGROUPED and create.kv_heads != create.heads:
        yield (
            f"model.create.kv_heads: {create.kv_heads} of {create.heads} heads, but {create.architecture} has no "
            f"grouped queries: kv_heads must equal heads"
        )


def _of_data(config: Config) -> Iterator[str]:
    if not config.offline and config.online is None:
        yield "offline, online: give at least one; there is nothing to learn from"
    judged = config.online is not None or any(weighted.data.kind == "rewarded" for weighted in config.offline)
    if config.rewards and config.offline and not judged and config.eval is None:
        yield "rewards: given, but there are neither online prompts nor an eval section with answers to reward"
    if config.reward_normalise != "none" and config.group_size == 1:
        yield f"reward_normalise: {config.reward_normalise} compares the answers to a prompt, and group_size is 1"
    both = bool(config.offline and config.online)
    if both and config.offline_share is None:
        yield "offline_share: needed where both offline and online are given: which part of a step's groups is offline"
    if not both and config.offline_share is not None:
        yield f"offline_share: {config.offline_share:g} given, but it belongs to recipes with both offline and online"
    yield from _of_people(config)
    if config.training.eval_every and config.eval is None:
        yield f"training.eval_every: {config.training.eval_every}, but there is no eval section"
    if config.training.minibatches > config.prompts_per_step:
        yield (
            f"training.minibatches: {config.training.minibatches} of {config.prompts_per_step} groups; "
            "a group is never split"
        )


def _of_people(config: Config) -> Iterator[str]:
    """Each completion is asked about once, in one way, while the run trains."""
    asked = asking(config.rewards)
    for i, settings in asked.items():
        try:
            settings.shown(config.group_size)
        except ValueError as error:
            yield f"rewards.{i}.{error}" if str(error).startswith("together") else str(error)
    if len(asked) > 1:
        yield f"rewards: {len(asked)} of them are human, and a run has one file of ratings: ask for one"
    if config.eval is not None and config.eval.rewards is None and asked:
        yield "eval.rewards: none given, and people are asked about training only: name other rewards, or [] for none"
    elif config.eval is not None and asking(config.eval.rewards or ()):
        yield "eval.rewards: human, but people are asked about training only: name other rewards, or [] for none"


def _of_stopping(config: Config) -> Iterator[str]:
    stop = config.training.stop
    if stop is None:
        return
    judged = config.eval is not None and bool(config.rewards if config.eval.rewards is None else config.eval.rewards)
    if stop.by == "gold" and not (judged and config.training.eval_every):
        yield (
            "training.stop: by gold watches the held-out reward: it needs an eval section, rewards that judge its "
            "answers (eval.rewards) and training.eval_every"
        )
    if stop.by == "disagreement" and (config.online is None or len(config.rewards) < 2):
        yield (
            f"training.stop: by disagreement compares rewards of the answers to online prompts: at least 2, found "
            f"{len(config.rewards) if config.online is not None else 'no online prompts'}"
        )


def _of_algorithm(config: Config, algorithm: Algorithm) -> Iterator[str]:
    if algorithm.scores:
        yield from _of_reward_model(config, algorithm)
        return
    if config.reward_model != RewardModelSettings():
        yield f"reward_model: given, but {algorithm.name} trains a policy"
    if config.online is None:
        yield from _without_prompts(config, algorithm)
    else:
        yield from _of_rollouts(config, algorithm)
        yield from _of_resampling(config, algorithm)
        yield from _of_replay(config, algorithm)
    yield from _of_passes(config, algorithm)


def _of_reward_model(config: Config, algorithm: Algorithm) -> Iterator[str]:
    """A reward model reads what is preferred, ranked or rated in the data; it answers nothing."""
    name = algorithm.name
    if config.online is not None:
        yield f"online: given, but {name} trains a reward model, which answers no prompts"
    for key in ("resample", "replay"):
        if getattr(config, key) is not None:
            yield f"{key}: given, but {name} trains a reward model: there are no answers to prompts that it is about"
    if config.rewards:
        yield f"rewards: given, but {name} trains a reward model, from the preferences and ratings of the data"
    if config.training.refresh_reference:
        yield (
            f"training.refresh_reference: {config.training.refresh_reference}, but {name} trains a reward model, "
            "which has no reference"
        )
    if config.eval is not None and (config.eval.rewards or config.eval.samples):
        key = "rewards" if config.eval.rewards else "samples"
        yield f"eval.{key}: given, but a reward model is measured by the preferences and ratings of eval.data"


def _without_prompts(config: Config, algorithm: Algorithm) -> Iterator[str]:
    for key in ("resample", "replay"):
        if getattr(config, key) is not None:
            yield f"{key}: given, but there are no online prompts, whose answers it is about"
    if algorithm.beside:
        yield f"online: none given, but {algorithm.name} compares demonstrations with the policy's own answers"
    elif "greedy" in algorithm.reads:
        yield f"online: none given, but {algorithm.name} subtracts the reward of a prompt's greedy answer"
    if algorithm.roles == {"targets"} and not config.offline:
        yield f"offline: none given, but {algorithm.name} learns from demonstrations only"


def _of_rollouts(config: Config, algorithm: Algorithm) -> Iterator[str]:
    name, size, needed = algorithm.name, config.group_size, algorithm.credit.group_size
    assert config.online is not None
    if algorithm.roles == {"targets"} and not algorithm.beside:
        yield (
            f"online: given, but {name} learns from demonstrations only"
            if config.offline
            else f"offline: none given, but {name} learns from demonstrations only"
        )
    elif algorithm.rewarded and not config.rewards:
        yield "rewards: none given, but the answers to online prompts must be rewarded"
    elif not algorithm.rewarded and config.rewards and config.eval is None:
        yield f"rewards: given, but {name} reads none, and there is no eval section with answers to reward"
    if size < needed:
        yield f"group_size: {size}, but {name} compares a prompt's completions: at least {needed}"
    if "greedy" in algorithm.reads and any(not asked.asked.top for asked in asking(config.rewards).values()):
        yield f"rewards: human compares the answers to a prompt, but {name} subtracts the reward of a greedy one alone"
    if config.reward_normalise != "none" and "greedy" in algorithm.reads:
        yield (
            f"reward_normalise: {config.reward_normalise} compares the answers to a prompt, and {name} subtracts the "
            "reward of a greedy one, which stands alone"
        )
    elif algorithm.pairs and size < 2:
        yield f"group_size: {size}, but {name} learns from the best and the worst of a prompt's completions: at least 2"
    elif algorithm.roles & {"paired", "chosen"} and not algorithm.pairs and size != 2:
        yield f"group_size: {size}, but {name} learns from samples both alone and in pairs: 2"
    if "versus" in algorithm.roles and size != 1:
        yield f"group_size: {size}, but {name} compares a demonstration with one answer to its prompt: 1"
    if algorithm.beside and config.online.kind not in ("auto", "prompt_completion"):
        yield (
            f"online.kind: {config.online.kind}, but {name} needs a demonstration with every prompt: prompt_completion"
        )


def _of_resampling(config: Config, algorithm: Algorithm) -> Iterator[str]:
    """Only groups that teach nothing may be replaced: A = 0 where rewards are equal, and v(0) = 0."""
    if config.resample is None:
        return
    import torch

    from gro.objective import Term
    from gro.objective.credit import Labels
    from gro.objective.values import one

    name, credit = algorithm.name, algorithm.credit
    values = [t.value for t in algorithm.terms if isinstance(t, Term) and t.rows == "scored" and t.value != one]
    kept = next((v for v in values if float(v(torch.zeros(1, 1))) != 0), None)
    if algorithm.beside:
        yield f"resample: given, but {name} learns from the demonstration where all answers are equally bad"
    elif kept is not None:
        yield (
            f"resample: given, but {name} has the value {kept.symbol}, which is {float(kept(torch.zeros(1, 1))):g} "
            "where all rewards are equal: such groups are learnt from, and must not be replaced"
        )
    elif credit.group_size < 2 and not algorithm.pairs and not isinstance(credit, Labels):
        yield (
            f"resample: given, but the credit of {name}, {credit.symbol}, does not compare a prompt's answers with "
            "each other: equal rewards are learnt from too"
        )
    elif config.group_size < 2:
        yield f"resample: given, but the answers to a prompt are compared and group_size is {config.group_size}"


def _of_replay(config: Config, algorithm: Algorithm) -> Iterator[str]:
    replay, fresh = config.replay, config.prompts_per_step
    if replay is None:
        return
    if replay.capacity < fresh:
        yield f"replay.capacity: {replay.capacity}, but every step adds {fresh} groups (prompts_per_step)"
    if replay.per_step is not None and replay.per_step > replay.capacity:
        yield f"replay.per_step: {replay.per_step}, but only {replay.capacity} groups are kept (replay.capacity)"
    if algorithm.single_update:
        yield (
            f"replay: given, but {algorithm.name} as given has no ratio to an old policy and is right only for answers "
            "of the policy as it is"
        )


def _of_passes(config: Config, algorithm: Algorithm) -> Iterator[str]:
    from gro.objective import Term
    from gro.objective.gates import RewardAbove

    name, updates = algorithm.name, config.training.updates_per_step
    if algorithm.single_update and updates > 1:
        yield (
            f"training: {config.training.epochs} epochs × {config.training.minibatches} minibatches are {updates} "
            f"updates on one batch, but {name} as given has no ratio to the old policy and is right for one"
        )
    gates = [t.gate for t in algorithm.terms if isinstance(t, Term) and isinstance(t.gate, RewardAbove)]
    thresholds = max((gate.thresholds for gate in gates), key=len, default=())
    if config.training.epochs < len(thresholds):
        listed = ", ".join(f"{t:g}" for t in thresholds)
        yield (
            f"training.epochs: {config.training.epochs}, but {name} has {len(thresholds)} thresholds ({listed}), one "
            "for each pass: the later ones would never be used"
        )
    if config.training.refresh_reference and "ref" not in algorithm.reads:
        yield (
            f"training.refresh_reference: {config.training.refresh_reference}, but {name} as given does not read the "
            "reference"
        )
    if algorithm.step is not None and updates > 1:
        yield (
            f"training: {config.training.epochs} epochs × {config.training.minibatches} minibatches are {updates} "
            f"updates on one batch, but {name} takes one step per batch: its trust region is around the policy that "
            "sampled it; epochs and minibatches must both be 1"
        )


def advice(config: Config, algorithm: Algorithm) -> Iterator[str]:
    """What is allowed, and yet probably not what was meant."""
    from gro.objective.credit import GroupZScore, Labels

    if config.model.lora is not None and config.model.create is not None:
        yield (
            "model.lora: beside a model from nothing, whose random weights would stay as they are: an adapter is for a "
            "model that was trained"
        )
    credit: object = algorithm.credit
    while (inner := getattr(credit, "inner", None)) is not None:
        credit = inner
    if config.online is not None and config.group_size == 2 and isinstance(credit, GroupZScore):
        yield (
            "group_size: of 2 rewards that differ, the z-scores are the same two numbers however much they differ; 3 "
            "or more, or a credit without the standard deviation, lets their size count"
        )
    if config.online is not None and config.group_size == 1 and isinstance(credit, Labels) and not algorithm.pairs:
        yield (
            f"group_size: {algorithm.name} takes an answer alone for good or bad by the sign of its reward, so that a "
            "reward of 0 teaches nothing; 2 or more are compared with their mean"
        )
    if algorithm.max_kl is not None and config.training.updates_per_step == 1:
        yield (
            f"algorithm: {algorithm.name} ends the passes over a batch above a KL of {algorithm.max_kl:g}, but "
            "training.epochs × training.minibatches is one update, after which there is nothing to end"
        )


def _of_distributed(config: Config, algorithm: Algorithm) -> Iterator[str]:
    shard = config.distributed.shard
    if config.distributed.offload and shard == 1:
        yield "distributed.offload: given, but distributed.shard: 1 cuts no weights, and all stay where they are"
    if algorithm.step is not None and shard != 1:
        yield f"algorithm: {algorithm.name} takes whole weights, but distributed.shard: {shard} cuts them; expected 1"


def _of_critic(config: Config, algorithm: Algorithm) -> Iterator[str]:
    name, settings = algorithm.name, config.critic or CriticSettings()
    if algorithm.critic is None:
        if config.critic is not None:
            yield f"critic: given, but {name} reads no values"
        return
    shared = settings.kind == "shared"
    if shared and settings.path is not None:
        yield "critic.path: given, but with critic.kind: shared the critic has no model of its own"
    if shared and settings.lora is not None:
        yield "critic.lora: given, but with critic.kind: shared the critic has no model of its own"
    if shared and (algorithm.critic.frozen or algorithm.step is not None):
        why = "its critic stays as it is" if algorithm.critic.frozen else "a trust region is for the policy alone"
        yield f"critic.kind: shared, but {name} moves the policy without the critic ({why}): own"
    if algorithm.critic.frozen and settings.warmup_steps == 0:
        yield f"critic.warmup_steps: 0, but {name} fits its critic before the policy moves, and only then: at least 1"
    if settings.warmup_steps >= config.training.steps:
        yield (
            f"critic.warmup_steps: {settings.warmup_steps} of training.steps: {config.training.steps}; the policy "
            "would never learn"
        )
