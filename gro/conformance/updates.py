"""Random updates in two forms: the batch that the objective sees, and the completions that a paper talks about.

The batches are nasty on purpose: groups of several sizes, completions of one token, untrained tokens inside
completions, garbage (NaN and huge numbers) wherever no loss is carried, failed rewards, ties, an empty completion,
demonstrations among the samples, and old and reference policies that differ from the current one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from gro.objective import Algorithm
from gro.types import ROLES, Batch

Maker = Callable[[int], tuple[Tensor, Batch]]
"""A seed → (logp_BT, batch) in float64, without advantages."""

LIMIT = 9
"""The most tokens a completion may have."""
WIDTH = 7
PER_TOKEN = ("old_BT", "ref_BT", "values_BT", "sampler_BT")


@dataclass(frozen=True)
class Completion:
    """A completion's trained tokens, [n] each, and what is known of it."""

    logp: Tensor
    """Log-probs under the policy; the loss is differentiated by them."""
    old: Tensor
    """Under the policy at the start of the step."""
    ref: Tensor
    """Under the reference."""
    values: Tensor
    """The critic's value before each token."""
    entropy: Tensor
    """Of the policy's whole distribution at each token."""
    reward: float
    """NaN: none."""
    greedy: float
    """The reward of the prompt's greedy completion."""
    margin: float
    truncated: bool
    """Cut off at the length limit."""

    @property
    def scored(self) -> bool:
        """Whether it has a reward."""
        return self.reward == self.reward


@dataclass(frozen=True)
class Prompt:
    """The completions of a prompt that have trained tokens, by role."""

    samples: list[Completion] = field(default_factory=list)
    targets: list[Completion] = field(default_factory=list)
    mismatches: list[Completion] = field(default_factory=list)

    @property
    def scored(self) -> list[Completion]:
        """The samples that have a reward."""
        return [y for y in self.samples if y.scored]


@dataclass(frozen=True)
class Update:
    """What a paper's loss is a function of."""

    prompts: list[Prompt]
    limit: int = LIMIT
    """The most tokens a completion may have."""

    @property
    def groups(self) -> list[list[Completion]]:
        """The samples with a reward, by prompt; prompts without any are left out."""
        return [prompt.scored for prompt in self.prompts if prompt.scored]

    @property
    def samples(self) -> list[Completion]:
        """All samples with a reward."""
        return [y for group in self.groups for y in group]

    @property
    def targets(self) -> list[Completion]:
        """All demonstrations."""
        return [y for prompt in self.prompts for y in prompt.targets]

    @property
    def mismatches(self) -> list[Completion]:
        """Completions scored on a prompt that is not theirs (KTO's KL estimate)."""
        return [y for prompt in self.prompts for y in prompt.mismatches]

    @property
    def pairs(self) -> list[tuple[Completion, Completion]]:
        """(better, worse) of every prompt with two completions that are not tied."""
        return [
            (a, b) if a.reward > b.reward else (b, a)
            for a, b in (group for group in self.groups if len(group) == 2)
            if a.reward != b.reward
        ]

    @property
    def versus(self) -> list[tuple[Completion, Completion]]:
        """(demonstration, sample) of every prompt that has one of each."""
        alone = [p for p in self.prompts if len(p.samples) == len(p.targets) == 1]
        return [(p.targets[0], p.samples[0]) for p in alone]


def as_a_paper_sees_it(logp_BT: Tensor, batch: Batch) -> Update:
    """The batch taken apart; gradients flow to logp_BT."""
    assert batch.reward_B is not None
    assert batch.role_B is not None
    per_token: dict[str, Any] = {"logp": logp_BT, "old": batch.old_BT, "ref": batch.ref_BT}
    per_token |= {"values": batch.values_BT, "entropy": batch.entropy_BT}
    per_row: dict[str, Any] = {"reward": batch.reward_B, "greedy": batch.greedy_B}
    per_row |= {"margin": batch.margin_B, "truncated": batch.truncated_B}
    prompts: dict[int, Prompt] = {}
    for i, (group, role) in enumerate(zip(batch.group_B.tolist(), batch.role_B.tolist(), strict=True)):
        trained_T = batch.mask_BT[i]
        prompt = prompts.setdefault(group, Prompt())
        if not trained_T.any():
            continue
        tokens = {name: t[i][trained_T] for name, t in per_token.items() if t is not None}
        numbers = {name: t[i].item() for name, t in per_row.items() if t is not None}
        rows = {"sample": prompt.samples, "target": prompt.targets, "mismatch": prompt.mismatches}[ROLES[role]]
        rows.append(Completion(**tokens, **numbers))
    return Update(list(prompts.values()))


def with_garbage(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """NaN, infinity and huge numbers where no loss is carried."""
    garbage = torch.tensor([torch.nan, 1e30, -torch.inf, -1e4], dtype=values_BT.dtype)
    column_T = torch.arange(values_BT.shape[1]) % len(garbage)
    return torch.where(mask_BT, values_BT, garbage[column_T])


def _masks(rows: int, random: torch.Generator) -> Tensor:
    """bool [rows, WIDTH]: some tokens untrained; row 1 has one token, rows 3 and 20 none, the others at least one."""
    length_B = torch.randint(1, WIDTH, (rows,), generator=random)
    place_T = torch.arange(WIDTH)
    mask_BT = (place_T < length_B[:, None]) & (torch.rand(rows, WIDTH, generator=random) < 0.8)
    mask_BT[:, 0] |= ~mask_BT.any(1)
    mask_BT[1] = place_T == 2
    for empty in (3, 20):
        mask_BT[empty : empty + 1] = False
    return mask_BT


def update_of(seed: int, rewards: Sequence[Sequence[float | str]]) -> tuple[Tensor, Batch]:
    """(logp_BT, batch) in float64 from each prompt's rewards.

    In the place of a reward may stand 'failed', 'target' (a demonstration) or 'mismatch' (a completion of another
    prompt).
    """
    random = torch.Generator().manual_seed(seed)
    listed = [(g, reward) for g, group in enumerate(rewards) for reward in group]
    rows = len(listed)
    roles: dict[float | str, int] = {role: number for number, role in enumerate(ROLES)}
    mask_BT = _masks(rows, random)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    logp_BT = -0.05 - 2.5 * torch.rand(rows, WIDTH, generator=random, dtype=torch.float64)
    tokens: dict[str, Any] = {
        name: with_garbage(logp_BT * (0.4 * normal(rows, WIDTH)).exp(), mask_BT) for name in PER_TOKEN
    }
    batch = Batch(
        mask_BT=mask_BT,
        group_B=torch.tensor([g for g, _ in listed]),
        reward_B=torch.tensor([torch.nan if isinstance(r, str) else r for _, r in listed], dtype=torch.float64),
        role_B=torch.tensor([roles.get(r, roles["sample"]) for _, r in listed]),
        greedy_B=normal(len(rewards))[[g for g, _ in listed]],
        margin_B=normal(len(rewards)).abs()[[g for g, _ in listed]],
        truncated_B=torch.rand(rows, generator=random) < 0.3,
        entropy_BT=with_garbage(normal(rows, WIDTH).abs(), mask_BT),
        length_limit=LIMIT,
        **tokens,
    )
    return with_garbage(logp_BT, mask_BT), batch


def groups(seed: int = 0) -> tuple[Tensor, Batch]:
    """Prompts with 2 to 5 completions: random rewards, equal rewards, failed ones, all failed; demonstrations."""
    r = torch.randn(9, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64).tolist()
    return update_of(
        seed,
        [
            [r[0], r[1], r[2], r[3]],
            [r[4], r[5], "target"],
            [0.1, 0.1, 0.1],
            [r[6], "failed", r[7], 0.0, r[8]],
            ["failed", 0.7],
            ["failed", "failed"],
            ["target", "target"],
            [1.0, 0.0],
            [1.0, 0.5, 0.0],  # one at the mean
        ],
    )


def pairs(seed: int = 0) -> tuple[Tensor, Batch]:
    """Preference pairs in both orders, labelled ±1 and by scores; a tie, a failed one, and demonstrations."""
    return update_of(
        seed,
        [[1.0, -1.0], [-1.0, 1.0], [0.3, 0.3], [1.0, "failed"], [-2.0, -0.5], ["target"], [3.5, 0.5], [1.0, -1.0]],
    )


def mismatched(seed: int = 0) -> tuple[Tensor, Batch]:
    """Labelled completions, alone and in pairs, each prompt also with a completion that belongs to another."""
    return update_of(
        seed,
        [
            [1.0, -1.0, "mismatch"],
            [-1.0, 1.0, "mismatch"],
            [1.0, -1.0],
            [-2.0, -0.5, "mismatch", "mismatch"],
            ["target"],
            [0.3, 0.3, "mismatch"],
            ["failed", 1.0, "mismatch"],
        ],
    )


def beside(seed: int = 0) -> tuple[Tensor, Batch]:
    """Demonstrations beside the groups of the same prompts, which fail, succeed or do both; and either alone."""
    r = torch.randn(4, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64).tolist()
    return update_of(
        seed,
        [
            ["target", -1.0, -1.0, -0.5],
            ["target", 1.0, r[0], 0.5],
            ["target", 0.0, 0.0],
            [r[1], r[2]],
            ["target", "target"],
            ["target", "failed", 0.7],
            [0.0, 0.0, "target"],
            ["target", -1.0, r[3], "failed"],
        ],
    )


def versus(seed: int = 0) -> tuple[Tensor, Batch]:
    """A demonstration against a sample of the same prompt, with and without a reward; several samples; either alone."""
    r = torch.randn(3, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64).tolist()
    return update_of(
        seed,
        [["target", r[0]], ["failed", "target"], ["target", 0.0, r[1]], ["target"], [r[2]], ["target", "failed"]],
    )


def for_algorithm(algorithm: Algorithm) -> Maker:
    """The updates that hold what an algorithm learns from."""
    if algorithm.mismatches:
        return mismatched
    if algorithm.beside:
        return versus if "versus" in algorithm.roles else beside
    return pairs if algorithm.roles & {"paired", "chosen"} else groups


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with all of its real numbers in another precision."""
    return replace(
        batch,
        **{
            f.name: value.to(dtype)
            for f in fields(batch)
            if isinstance(value := getattr(batch, f.name), Tensor) and value.is_floating_point()
        },
    )
