"""Settings that are each fine but cannot go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gro.errors import GroError
from gro.recipe import Config

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from gro.objective import Algorithm

_SMALLEST_VOCABULARY = 259
"""256 bytes and three special tokens: what the tokenizer of a model from nothing begins with."""
_UNGROUPED = ("gpt2", "gpt_neox")
"""Architectures in which every head has keys and values of its own."""


def contradictions(config: Config) -> list[str]:
    """One sentence for each, with the numbers."""
    from gro.algorithms import build

    problems = [*_of_model(config), *_of_data(config)]
    try:
        algorithm = build(str(config.algorithm["name"]), **config.parameters)
        return [*problems, *_of_algorithm(config, algorithm)]
    except GroError as error:
        return [*problems, *str(error).splitlines()]


def _of_model(config: Config) -> Iterator[str]:
    model = config.model
    if (model.path is None) == (model.create is None):
        yield "model: give either path or create" + (", not both" if model.path else "")
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
    if config.online is not None and not config.rewards:
        yield "rewards: none given, but the answers to online prompts must be rewarded"
    if config.rewards and config.offline and config.online is None and config.eval is None:
        yield "rewards: given, but there are neither online prompts nor an eval section with answers to reward"
    both = bool(config.offline and config.online)
    if both and config.offline_share is None:
        yield "offline_share: needed where both offline and online are given: which part of a step's groups is offline"
    if not both and config.offline_share is not None:
        yield f"offline_share: {config.offline_share:g} given, but it belongs to recipes with both offline and online"
    if config.training.eval_every and config.eval is None:
        yield f"training.eval_every: {config.training.eval_every}, but there is no eval section"
    if config.training.minibatches > config.prompts_per_step:
        yield (
            f"training.minibatches: {config.training.minibatches} of {config.prompts_per_step} groups; "
            "a group is never split"
        )


def _of_algorithm(config: Config, algorithm: Algorithm) -> Iterator[str]:
    name, size = algorithm.name, config.group_size
    needed = algorithm.credit.group_size
    if config.online is not None and size < needed:
        yield f"group_size: {size}, but {name} compares a prompt's completions: at least {needed}"
    pairs_only = algorithm.roles <= {"paired", "chosen"}
    if config.online is not None and pairs_only and size != 2:
        yield f"group_size: {size}, but {name} learns from pairs of completions: 2"
    if algorithm.roles == {"targets"} and not config.offline:
        yield f"offline: none given, but {name} learns from demonstrations only"
    elif algorithm.roles == {"targets"} and config.online is not None:
        yield f"online: given, but {name} learns from demonstrations only"
    updates = config.training.updates_per_step
    if algorithm.single_update and updates > 1:
        yield (
            f"training: {config.training.epochs} epochs × {config.training.minibatches} minibatches are {updates} "
            f"updates on one batch, but {name} as given has no ratio to the old policy and is right for one"
        )
    if algorithm.step is not None and updates > 1:
        yield (
            f"training: {config.training.epochs} epochs × {config.training.minibatches} minibatches are {updates} "
            f"updates on one batch, but {name} takes one step per batch: its trust region is around the policy that "
            "sampled it; epochs and minibatches must both be 1"
        )
