"""Random updates in two forms: the batch that the objective sees, and the completions that a paper talks about.

The batches are nasty on purpose: groups of several sizes, completions of one token, untrained tokens inside
completions, garbage (NaN and huge numbers) wherever no loss is carried, failed rewards, ties, an empty completion,
demonstrations among the samples, and old and reference policies that differ from the current one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gro.types import ROLES, Batch

LIMIT = 9
"""The most tokens a completion may have."""
WIDTH = 7
PER_TOKEN = ("old_BT", "ref_BT", "values_BT", "sampler_BT")


@dataclass(frozen=True)
class Completion:
    """A completion's trained tokens, [n] each, and what is known of it."""

    logp: Tensor
    old: Tensor
    ref: Tensor
    reward: float
    greedy: float
    margin: float


@dataclass(frozen=True)
class Update:
    """What a paper's loss is a function of."""

    groups: list[list[Completion]]
    """The completions with a reward, by prompt; prompts without any are left out."""
    targets: list[Completion]
    limit: int = LIMIT

    @property
    def samples(self) -> list[Completion]:
        return [y for group in self.groups for y in group]

    @property
    def pairs(self) -> list[tuple[Completion, Completion]]:
        """(better, worse) of every prompt with two completions that are not tied."""
        return [
            (a, b) if a.reward > b.reward else (b, a)
            for a, b in (group for group in self.groups if len(group) == 2)
            if a.reward != b.reward
        ]


def as_a_paper_sees_it(logp_BT: Tensor, batch: Batch) -> Update:
    """The batch taken apart; gradients flow to logp_BT."""
    assert batch.reward_B is not None
    assert batch.role_B is not None
    groups: dict[int, list[Completion]] = {}
    targets: list[Completion] = []
    for i, (group, role) in enumerate(zip(batch.group_B.tolist(), batch.role_B.tolist(), strict=True)):
        trained_T = batch.mask_BT[i]
        known = (logp_BT, batch.old_BT, batch.ref_BT, batch.reward_B, batch.greedy_B, batch.margin_B)
        logp_T, old_T, ref_T, reward, greedy, margin = (t[i] for t in known if t is not None)
        completion = Completion(
            logp_T[trained_T], old_T[trained_T], ref_T[trained_T], float(reward), float(greedy), float(margin)
        )
        if not trained_T.any():
            continue
        if ROLES[role] == "target":
            targets.append(completion)
        elif ROLES[role] == "sample" and completion.reward == completion.reward:
            groups.setdefault(group, []).append(completion)
    return Update(list(groups.values()), targets)


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


def _update(seed: int, rewards: Sequence[Sequence[float | str]]) -> tuple[Tensor, Batch]:
    """(logp_BT, batch) in float64 from each prompt's rewards; 'target' is a demonstration, 'mismatch' a KTO row."""
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
        length_limit=LIMIT,
        **tokens,
    )
    return with_garbage(logp_BT, mask_BT), batch


def groups(seed: int = 0) -> tuple[Tensor, Batch]:
    """Prompts with 2 to 5 completions: random rewards, equal rewards, failed ones, all failed; demonstrations."""
    r = torch.randn(9, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64).tolist()
    return _update(
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
    return _update(
        seed,
        [[1.0, -1.0], [-1.0, 1.0], [0.3, 0.3], [1.0, "failed"], [-2.0, -0.5], ["target"], [3.5, 0.5], [1.0, -1.0]],
    )


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
