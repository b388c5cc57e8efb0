"""A bandit on which every algorithm must improve: a few prompts, two tokens, the policy a table of logits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gro.objective import Algorithm, coefficients, entropy_coefficients
from gro.types import ROLES, Batch

PROMPTS, TOKENS, VOCABULARY = 4, 2, 4
BEST = 0
"""The token that is right everywhere."""
RATE = 0.2
STEPS = 30


def mean_reward(logits_PTV: Tensor) -> float:
    """The policy's exact expected reward: −1 with no token right, 0 with one, 1 with both."""
    return float(_expected(logits_PTV).mean() * 2 - 1)


def improvement(algorithm: Algorithm, *, steps: int = STEPS, group_size: int = 6, seed: int = 0) -> tuple[float, float]:
    """The expected reward before and after so many steps of Adam, each on a batch of the policy's own samples.

    Demonstrations, where the algorithm learns from some, are the best completion; what a critic would say is exact.
    """
    random = torch.Generator().manual_seed(seed)
    logits_PTV = 0.3 * torch.randn(PROMPTS, TOKENS, VOCABULARY, generator=random, dtype=torch.float64)
    logits_PTV.requires_grad_()
    start_PTV, state = logits_PTV.detach().clone(), {}
    optimizer = torch.optim.Adam([logits_PTV], lr=RATE)
    before = mean_reward(start_PTV)
    for _ in range(steps):
        tokens_BT, batch = rollout(algorithm, logits_PTV.detach(), start_PTV, group_size, random)
        advantage_BX, state = algorithm.credit(batch, state)
        batch = replace(batch, advantage_BX=advantage_BX)
        every_BTV = logits_PTV.log_softmax(-1)[batch.group_B]
        logp_BT = every_BTV.gather(-1, tokens_BT[..., None])[..., 0]
        loss = -(coefficients(logp_BT, batch, algorithm) * logp_BT).sum()
        bonus_BT = entropy_coefficients(batch, algorithm)
        if bonus_BT is not None:
            loss = loss + (bonus_BT * (every_BTV.exp() * every_BTV).sum(-1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, mean_reward(logits_PTV.detach())


def rollout(
    algorithm: Algorithm, logits_PTV: Tensor, start_PTV: Tensor, group_size: int, random: torch.Generator
) -> tuple[Tensor, Batch]:
    """(tokens_BT, batch) of one step on all prompts, with the rows that the algorithm learns from."""
    roles = _roles(algorithm, group_size)
    role_B = torch.tensor(roles * PROMPTS)
    group_B = torch.arange(PROMPTS).repeat_interleave(len(roles))
    sampled_BT = torch.multinomial(logits_PTV.softmax(-1)[group_B].flatten(0, 1), 1, generator=random)
    tokens_BT = sampled_BT.view(len(group_B), TOKENS)
    tokens_BT[role_B == ROLES.index("target")] = BEST

    def scored(table_PTV: Tensor) -> Tensor:
        return table_PTV.log_softmax(-1)[group_B].gather(-1, tokens_BT[..., None])[..., 0]

    right_BT = (tokens_BT == BEST).double()
    behind_BT = right_BT.cumsum(1) - right_BT
    ahead_BT = _expected(logits_PTV)[group_B].flip(1).cumsum(1).flip(1)
    greedy_B = ((logits_PTV.argmax(-1) == BEST).double().mean(1) * 2 - 1)[group_B]
    sample_B = role_B == ROLES.index("sample")
    every_BTV = logits_PTV.log_softmax(-1)[group_B]
    return tokens_BT, Batch(
        mask_BT=torch.ones_like(tokens_BT, dtype=torch.bool),
        group_B=group_B,
        role_B=role_B,
        reward_B=(right_BT.mean(1) * 2 - 1).masked_fill(~sample_B, torch.nan),
        old_BT=scored(logits_PTV),
        ref_BT=scored(start_PTV),
        values_BT=(behind_BT + ahead_BT) / TOKENS * 2 - 1,
        entropy_BT=-(every_BTV.exp() * every_BTV).sum(-1),
        greedy_B=greedy_B,
        margin_B=torch.zeros_like(greedy_B),
        truncated_B=torch.zeros_like(sample_B),
        length_limit=TOKENS,
    )


def _expected(logits_PTV: Tensor) -> Tensor:
    """[P, T] the probability that the token is right."""
    return logits_PTV.softmax(-1)[..., BEST]


def _roles(algorithm: Algorithm, group_size: int) -> list[int]:
    """The roles of a prompt's rows."""
    samples = group_size if algorithm.roles & {"scored", "paired", "chosen"} else 0
    if algorithm.roles & {"paired", "chosen"}:
        samples = 2
    if "versus" in algorithm.roles:
        samples = 1
    targets = 1 if algorithm.roles & {"targets", "versus"} else 0
    names = ["sample"] * samples + ["target"] * targets + ["mismatch"] * algorithm.mismatches
    return [ROLES.index(name) for name in names]  # type: ignore[arg-type]
