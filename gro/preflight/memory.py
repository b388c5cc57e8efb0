"""How much memory a run needs at its largest moment, before any of it is taken.

What stays (weights, optimizer, reference, critic, reward models) is counted.  What comes and goes is an estimate: what
a micro-batch keeps for its backward pass, the chunks of the head, the cache of sampling.  Learning and sampling take
turns, so the larger of the two counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from gro.assemble import (
    Data,
    Start,
    evaluation_rewards,
    model_behind,
    model_folder,
    needs_start,
    reward_specs,
    start_at,
)
from gro.config import Config
from gro.engines.local import CACHE_GIB, room
from gro.objective import Algorithm
from gro.policy.folder import find, inspect
from gro.policy.head import KEEP_BYTES, most_bytes
from gro.preflight.machine import Machine
from gro.preflight.sizes import Sizes, Weights, sizes
from gro.recipe import CriticSettings
from gro.training.budget import MOST, SHARE

When = Literal["always", "learning", "sampling"]

_DIRECTIONS = 6
"""Vectors as long as the weights that a trust region's search holds: gradient, direction, residual, products, start."""
_WIDEST = 3
"""What the backward pass of a layer works with, in what the layer kept (measured on CPUs; see docs/guide.md)."""
_DRAWS = 4
"""Copies of a step's logits that drawing a token makes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that needs memory."""

    name: str
    bytes: int
    when: When = "always"
    counted: bool = True
    """False: an estimate."""
    knob: str = ""
    """What makes it smaller, where anything does."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the device that trains has to hold."""

    parts: tuple[Part, ...]
    micro_tokens: int
    """Of the largest micro-batch that can come."""

    def total(self, when: When) -> int:
        """Bytes while the run learns or samples; always: what it holds in between."""
        return sum(part.bytes for part in self.parts if part.when in ("always", when))

    @property
    def peak(self) -> int:
        """Bytes in the largest moment."""
        return max(self.total("learning"), self.total("sampling"))

    @property
    def counted(self) -> int:
        """Of the peak, what is not an estimate."""
        return sum(part.bytes for part in self.parts if part.counted and part.when != "sampling")

    @property
    def largest_knob(self) -> Part | None:
        """The largest part of the peak that a setting makes smaller."""
        peak: When = "learning" if self.total("learning") >= self.total("sampling") else "sampling"
        movable = [part for part in self.parts if part.knob and part.when in ("always", peak)]
        return max(movable, key=lambda part: part.bytes, default=None)


def policy_sizes(config: Config, start: Start) -> Sizes:
    """Of the model that is trained."""
    settings = config.model
    return sizes(start.architecture, settings.dtype, autocast=settings.autocast, lora=lora_of(config))


def memory_of(
    config: Config, data: Data, algorithm: Algorithm, policy: Sizes, machine: Machine, *, shards: int = 1
) -> Memory:
    """The estimate.  `shards`: over how many processes weights, gradients and optimizer are spread."""
    tokens = micro_tokens(config, data, algorithm)
    if not isinstance(config.training.tokens_per_micro, int) and machine.free is not None:  # auto: as many as fit
        tokens = min(tokens, max(1, int(SHARE * machine.free) // (2 * policy.per_token)))
    parts = [*_kept(config, data, algorithm, policy, machine), *_judges(config)]
    parts += _learning(config, algorithm, policy, tokens, machine)
    parts += [] if algorithm.scores else _sampling(config, data, policy, machine)
    spread = {"weights", "gradients", "optimizer", "reference", "critic", "critic's optimizer"}
    return Memory(
        tuple(replace(p, bytes=-(-p.bytes // shards)) if p.name in spread else p for p in parts if p.bytes), tokens
    )


def lora_of(config: Config) -> Any:
    """The recipe's adapter; None: all weights are trained."""
    return getattr(config.model, "lora", None)


def critic_size(config: Config, algorithm: Algorithm, policy: Sizes) -> Weights | None:
    """Of a critic with its head; None without one."""
    if algorithm.critic is None:
        return None
    settings = config.critic or CriticSettings()
    wide = max(4, torch.empty(0, dtype=getattr(torch, config.model.dtype)).element_size())
    numbers = policy.hidden + 1
    head = Weights(numbers, wide * numbers, wide * numbers, 2 * wide * numbers + 8)
    if settings.kind == "shared":
        return head
    lora = settings.lora or lora_of(config)
    if settings.path is None and lora == lora_of(config):
        # An adapter of its own stands beside the same frozen weights as the policy's.
        return (policy.trunk if lora is None else policy.trained) + head
    architecture = policy.architecture
    if settings.path is not None:
        architecture = start_at(model_folder(settings.path), allow_pickle=config.model.allow_pickle).architecture
    found = sizes(architecture, config.model.dtype, lora=lora)
    return (found.trunk if lora is None else found.trunk + found.trained) + head


def _kept(config: Config, data: Data, algorithm: Algorithm, policy: Sizes, machine: Machine) -> Iterator[Part]:
    lora, trained = lora_of(config), policy.trained
    model = policy.trunk if algorithm.scores else policy.whole
    adapter = 0 if lora is None else trained.weights
    yield Part("weights", model.weights + policy.buffers + adapter)
    if lora is None:
        trained = policy.trunk if algorithm.scores else policy.whole
    yield Part(
        "optimizer", 0 if algorithm.step is not None else trained.optimizer, knob="model.lora" if not lora else ""
    )
    members = config.reward_model.members if algorithm.scores else 1
    if members > 1:
        yield Part("the common start of the members", model.weights, knob="reward_model.members: 1")
    if not algorithm.scores and needs_start(config, algorithm, data):
        copies = 2 if config.training.refresh_reference else 1
        read = "ref" in algorithm.reads or data.online is None
        frozen = trained.weights if lora is not None else model.weights
        yield Part("reference", copies * frozen, knob="" if read else "training.kl_every: 0")
    critic = critic_size(config, algorithm, policy)
    if critic is not None:
        shared = (config.critic or CriticSettings()).kind == "shared"
        yield Part("critic", critic.weights, knob="" if shared else "critic.kind: shared")
        yield Part("critic's optimizer", critic.optimizer, knob="" if shared else "critic.kind: shared")


def _judges(config: Config) -> Iterator[Part]:
    """Models that reward, in this process."""
    for _, spec in reward_specs(config):
        if (path := model_behind(spec)) is not None:
            found = sizes(inspect(find(model_folder(path)), allow_pickle=config.model.allow_pickle).config)
            kept = found.whole if spec.name_or_path == "judge" else found.trunk
            yield Part(f"{spec.name_or_path} {path}", kept.weights)


def micro_tokens(config: Config, data: Data, algorithm: Algorithm) -> int:
    """Most tokens that a forward pass can have: the budget, one row that is longer, or all that a minibatch holds."""
    more = 1 if algorithm.mismatches else 0
    groups, rows = [], [1]
    for dataset, _ in data.offline:
        lengths = [(n, (*c, *([max(c)] * more))) for n, c in dataset.lengths() if c]
        groups += [n + sum(c) for n, c in lengths]
        rows.append(dataset.report.longest)
    taken = -(
        -max(config.prompts_per_step, (config.replay and config.replay.per_step) or 0) // config.training.minibatches
    )
    if data.online is not None:
        prompt = max(n for n, _ in data.online.lengths())
        shown = max((sum(c) for _, c in data.online.lengths()), default=0) if algorithm.beside else 0
        answers = 2 if algorithm.pairs else config.group_size + more
        groups += [prompt + answers * config.sampling.max_new_tokens + shown] * taken
        rows.append(prompt + config.sampling.max_new_tokens)
    together = sum(heapq.nlargest(taken, groups))
    budget: Any = config.training.tokens_per_micro
    return min(together, max(budget if isinstance(budget, int) else MOST, *rows))


def _learning(config: Config, algorithm: Algorithm, policy: Sizes, tokens: int, machine: Machine) -> Iterator[Part]:
    trained = policy.trained
    if lora_of(config) is None and algorithm.scores:
        trained = policy.trunk
    critic = critic_size(config, algorithm, policy)
    gradients = max(trained.gradients, critic.gradients if critic else 0)  # one learner after the other
    yield Part("gradients", gradients, "learning")
    size = torch.empty(0, dtype=getattr(torch, config.model.dtype)).element_size()
    if algorithm.step is not None:
        yield Part("the search for a step", _DIRECTIONS * trained.weights, "learning", counted=False)
    layer = policy.per_token // policy.layers
    if config.model.activation_checkpointing:  # every layer's input, and all of the one that is computed again
        each = policy.layers * policy.hidden * max(4 if config.model.autocast else 0, size) + layer
        knob = "training.tokens_per_micro"
    else:
        each, knob = policy.per_token, "training.tokens_per_micro, or model.activation_checkpointing: true"
    yield Part("activations", tokens * each, "learning", counted=False, knob=knob)
    if config.model.autocast:
        yield Part(f"weights in {config.model.autocast}", policy.once, "learning", counted=False)
    head = 0
    if not algorithm.scores:
        logits = tokens * policy.vocabulary * 4
        work = most_bytes(policy.vocabulary, torch.device(machine.kind)) - KEEP_BYTES
        head = min(KEEP_BYTES, logits) + min(work, 6 * logits)
        head += policy.vocabulary * policy.hidden * size * (2 if policy.tied and not lora_of(config) else 1)
        head += 2 * tokens * policy.hidden * size
    widest = max(head, _WIDEST * tokens * layer)  # the head's is over before the layers' begins
    yield Part("the backward pass at its widest", widest, "learning", counted=False, knob=knob)


def _sampling(config: Config, data: Data, policy: Sizes, machine: Machine) -> Iterator[Part]:
    """The cache and the logits of a decoding step, for training or for evaluation, whichever has more of them."""
    asked: list[tuple[int, int, int, int]] = []
    if data.online is not None:
        longest = max(n for n, _ in data.online.lengths())
        asked.append((config.prompts_per_step, config.group_size, longest, config.sampling.max_new_tokens))
    if data.held_out is not None and config.eval is not None and evaluation_rewards(config):
        longest = max(n for n, _ in data.held_out.lengths())
        new = config.eval.max_new_tokens or config.sampling.max_new_tokens
        asked.append((min(config.eval.limit, len(data.held_out)), config.eval.samples or 1, longest, new))
    per_token = policy.cache_per_token
    if machine.kind == "cpu" and config.model.dtype in ("bfloat16", "float16"):
        per_token *= 2  # which keeps them in float32
    found = [(0, 0)]
    for prompts, n, longest, new in asked:
        slots, places = room(config.slots, prompts, n, longest, new, CACHE_GIB * 2**30 / per_token)
        found.append(((slots * new + places * longest) * per_token, slots * policy.vocabulary * 4 * _DRAWS))
    cache, logits = max(found)
    yield Part("keys and values", cache, "sampling", counted=False, knob="slots")
    yield Part("logits", logits, "sampling", counted=False, knob="slots")
