"""How long, how fast and in which portions is learnt.  Light to import: recipes are checked with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from gro.schema import CHECKED, Count, Index, NotNegative, Positive
from gro.training.alarm_limits import AlarmLimits

Schedule = Literal["constant", "linear", "cosine"]
_UNTRAINED = 16384
"""Tokens of a forward pass without gradients where training finds its own number."""
Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Optimization:
    """How weights move (AdamW).  None of it changes *what* is optimised.

    An algorithm with a trust region sets the policy's steps itself and reads nothing of this; its critic does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    learning_rate: Positive = 1e-5
    """At its highest, after the warm-up."""
    warmup_steps: Index = 0
    """Updates over which the rate rises linearly from 0."""
    schedule: Schedule = "constant"
    """After the warm-up: constant, or linear or cosine to 0 at the last update."""
    weight_decay: NotNegative = 0.0
    """AdamW's, decoupled from the gradient."""
    beta1: Momentum = 0.9
    """Memory of the gradient's mean."""
    beta2: Momentum = 0.999
    """Memory of the gradient's square."""
    eps: Positive = 1e-8
    """Added to the root of the gradient's square."""
    max_grad_norm: NotNegative = 1.0
    """The gradient's norm is scaled down to this; 0 for no limit."""

    def factor(self, update: int, total: int) -> float:
        """What the learning rate is multiplied by at this update (0-based): a pure function, so resume is exact."""
        if update < self.warmup_steps:
            return (update + 1) / self.warmup_steps
        progress = min((update - self.warmup_steps) / max(total - self.warmup_steps, 1), 1.0)
        if self.schedule == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0


@dataclass(frozen=True)
class Resampling:
    """Prompts whose answers are all equally good are replaced by others (DAPO's dynamic sampling)."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    rounds: Count = 3
    """Most times that replacements are rolled out in a step; then it learns from what was found."""
    by: Annotated[str, Field(min_length=1)] | None = None
    """The reward that tells, by its name, such as maths where overlong is added to it; None: their sum."""


@dataclass(frozen=True)
class Replaying:
    """Rollouts of earlier steps are learnt from again."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    capacity: Count
    """Groups kept; the oldest leave first."""
    per_step: Count | None = None
    """Groups a step learns from, drawn from all that are kept, fresh ones included; None: as many as are fresh."""


@dataclass(frozen=True)
class Distributed:
    """What several processes, started by torchrun, do with the weights.  One process reads nothing of this."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    shard: Index = 1
    """Over how many processes weights, gradients and the optimizer's memory are cut.  1: every process has all of them;
    0: over all; fewer than there are: several groups, each with all weights (HSDP)."""
    offload: bool = False
    """Keep weights that are cut in main memory, and bring a layer to the device while it is used."""
    elastic: bool = False
    """Allow a run to be continued on another number of processes, or cut otherwise: the same groups are learnt from,
    and only rounding differs.  Otherwise that is refused."""


@dataclass(frozen=True)
class Stopping:
    """When a run ends before its last step, so that its reward is not over-optimised."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    by: Literal["gold", "disagreement"]
    """gold: the held-out reward has turned down, as `eval.rewards` judge it.  disagreement: the recipe's rewards, such
    as several reward models of one task, are further apart on the samples than they were at the first step."""
    patience: Count = 2
    """So many evaluations without a new highest reward; or so many steps above the threshold, one after the other."""
    threshold: Positive = 1.5
    """Of disagreement: how many times that of the first step."""


@dataclass(frozen=True)
class Portions:
    """How a run is cut into steps, updates and micro-batches."""

    steps: Count
    """Rollouts (or draws of rows) that are learnt from."""
    epochs: Count = 1
    """Passes over a step's completions."""
    minibatches: Count = 1
    """Optimizer updates per pass."""
    tokens_per_micro: Count | Literal["auto"] = 16384
    """Most tokens in one forward pass.  A matter of memory: it cannot change the result but for rounding.  auto: as
    many as fit, found when the models are loaded and kept in the run; jobs that train nothing take 16384."""
    seed: Index = 0
    """Of the order of rows and of all sampling."""
    refresh_reference: Index = 0
    """Every so many steps the reference becomes the policy as it is then (iterative DPO); 0: it stays the start."""
    kl_every: Index = 10
    """Every so many steps the KL to the starting policy is measured where the algorithm does not read it; 0: never."""
    eval_every: Index = 0
    """Every so many steps the held-out data are evaluated; 0: before and after training only."""
    save_every: Index = 0
    """Every so many steps the model is written to checkpoints/; 0: at the end only."""
    resume_every: Count | None = None
    """Every so many steps everything is written that the same command needs to continue an interrupted run; None: when
    ten minutes have passed since, or more time was spent waiting for people than writing it takes."""
    keep_state: bool = False
    """Keep that of a run that is finished, too.  It holds the optimizer's memory: as a rule three times the weights."""
    record_groups: Index = 4
    """Groups of each step kept in the run with their per-token quantities."""
    flat_steps: Count = 25
    """Training stops when no group had any variance in its rewards for so many steps."""
    alarms: AlarmLimits = field(default_factory=AlarmLimits)
    """At which values alarms are raised."""
    stop: Stopping | None = None
    """A rule by which training ends earlier; None: it goes on to the last step."""

    @property
    def micro_tokens(self) -> int:
        """`tokens_per_micro` as a number."""
        return _UNTRAINED if self.tokens_per_micro == "auto" else self.tokens_per_micro

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates on one batch."""
        return self.epochs * self.minibatches
