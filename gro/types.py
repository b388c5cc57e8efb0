"""What flows through the system: Prompt → Completion → Group → Batch.

Shape suffixes used everywhere:

    B  completions of an update        T  completion tokens (padded to the longest)
    G  completions of one prompt       N  tokens of one packed stream
    M  completion tokens of one pack   V  vocabulary
    X  either T or 1 (a per-token or a per-sequence quantity)

Text is tokenised once; from there on only token ids travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["sample", "target", "mismatch"]
"""sample: has or will have a reward.  target: a demonstration.  mismatch: scored without loss (KTO's KL)."""

Finish = Literal["stop", "length", "given"]
"""stop: an end token was sampled.  length: cut off.  given: it came from a file."""

ROLES: tuple[Role, ...] = ("sample", "target", "mismatch")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt.

    >>> Prompt(ids=(1, 5, 9), key=0, row={"question": "2+2=", "answer": "4"})
    """

    ids: tuple[int, ...]
    """Never empty: plain text is the beginning-of-sequence token and one completion."""
    key: int = 0
    """Identity in keyed randomness: the row's index in its source, so a sample does not depend on its batch."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data row it came from; rewards receive them."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"prompt {self.key} has no tokens; begin it with the beginning-of-sequence token")


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prompt.

    >>> Completion(ids=(7, 2), reward=1.0, logp=(-0.5, -0.1), finish="stop")
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...] | None = None
    """Per token: does it carry loss?  None: all do.  Same length as ids."""
    role: Role = "sample"
    reward: float | None = None
    """None: pending, failed or not applicable.  Such a row is masked; it is never a reward of 0."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """The parts of the reward by name, unweighted; without those of which people skipped it."""
    logp: tuple[float, ...] | None = None
    """Log-probs under the distribution that was sampled from, as the engine reports them.  Same length as ids."""
    temperature: float = 1.0
    """It was sampled at this temperature, and the trainer scores it at the same."""
    finish: Finish = "given"
    version: int = 0
    """Number of updates behind the weights that sampled it."""

    def __post_init__(self) -> None:
        for name in ("trained", "logp"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.ids):
                raise ValueError(f"{name} has {len(value)} entries for {len(self.ids)} tokens")


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its completions: the unit of data, credit and batching.

    A preference pair is a group of two with rewards +1 and -1, a supervised row a group of one target, a GRPO
    sample a group of G.

    >>> Group(Prompt(ids=(1,)), (Completion(ids=(2,), reward=1.0), Completion(ids=(3,), reward=-1.0)))
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    greedy_reward: float | None = None
    """Reward of the greedy completion, for the credit that subtracts it (ReMax)."""
    margin: float | None = None
    """By how much the first completion of a preference pair is better, where the data say so."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The completions of one update as tensors.  Buildable by hand: only `mask_BT` and `group_B` are required.

    >>> Batch(mask_BT=torch.ones(2, 3, dtype=torch.bool), group_B=torch.tensor([0, 0]), reward_B=torch.tensor([1., 0.]))
    """

    mask_BT: Tensor
    """bool [B, T]: tokens that carry loss."""
    group_B: Tensor
    """int64 [B]: equal numbers belong to one prompt; groups are contiguous."""
    reward_B: Tensor | None = None
    """float [B]; NaN where the reward is missing."""
    role_B: Tensor | None = None
    """int64 [B]: index into ROLES; None: all rows are samples."""
    old_BT: Tensor | None = None
    """[B, T] log-probs of the policy at the start of the iteration, recomputed by the trainer."""
    ref_BT: Tensor | None = None
    """[B, T] log-probs of the reference policy."""
    sampler_BT: Tensor | None = None
    """[B, T] log-probs as the engine reported them; NaN where there were none."""
    values_BT: Tensor | None = None
    """[B, T] the critic's values of the state before each token."""
    advantage_BX: Tensor | None = None
    """[B, 1] or [B, T]: credit's result, computed once on the global batch."""
    returns_BT: Tensor | None = None
    """[B, T] what the critic regresses on."""
    importance_BT: Tensor | None = None
    """[B, T] optional constant factor on each token's share (truncated sampler–trainer correction)."""
    greedy_B: Tensor | None = None
    """float [B]: reward of the prompt's greedy completion."""
    temperature_B: Tensor | None = None
    """float [B]: the temperature at which each row is scored; None: 1."""
    truncated_B: Tensor | None = None
    """bool [B]: the completion was cut off at the length limit."""
    margin_B: Tensor | None = None
    """float [B]: the margin of the row's preference pair."""
    length_limit: int | None = None
    """Most tokens a completion may have; a share of fixed length divides by it."""
    entropy_BT: Tensor | None = None
    """[B, T] entropy of the policy's distribution at each token, in nats; an exact entropy bonus is valued by it."""
    counts_K: tuple[float, ...] | None = None
    """Global denominator of each term's share, over micro-batches and processes; None: this batch is all there is."""
    scales_K: tuple[float, ...] | None = None
    """Factor on each term, as adapted by earlier steps; None: 1."""
    epoch: int = 0
    """Which pass over the same rollouts this is."""

    def rows(self, index_R: Tensor) -> Batch:
        """The batch of these rows only; the global counts stay."""
        return replace(
            self,
            **{f.name: value[index_R] for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)},
        )

    @property
    def samples_B(self) -> Tensor:
        """bool [B]: rows of role sample."""
        if self.role_B is None:
            return torch.ones_like(self.group_B, dtype=torch.bool)
        return self.role_B == ROLES.index("sample")


def rows_of(groups: Sequence[Group]) -> list[tuple[int, Group, Completion]]:
    """Every completion in batch order, with the index of its group."""
    return [(g, group, c) for g, group in enumerate(groups) for c in group.completions]
