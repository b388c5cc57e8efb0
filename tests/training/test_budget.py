"""`tokens_per_micro: auto`: what is measured is what is needed, and nothing is left changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gro.algorithms import registry
from gro.objective import Algorithm
from gro.policy import head
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel
from gro.training import budget
from gro.training.budget import MARGIN, MOST, Fit, chosen, find_budget, grown
from gro.training.live import LiveBytes
from gro.training.room import memory_available
from tiny import tiny_model, tiny_tokenizer

GB = 10**9


@pytest.fixture(autouse=True)
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output layer whose constant is small beside tiny models."""
    monkeypatch.setattr(head, "KEEP_BYTES", 1 << 18)
    monkeypatch.setattr(head, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(head, "MIN_ROWS", 8)


def policy_of(arch: str = "qwen3", layout: str = "shared", **settings) -> Policy:
    return Policy(tiny_model(arch, **settings), tiny_tokenizer(), layout=layout)  # type: ignore[arg-type]


def algorithm(name: str = "dpo") -> Algorithm:
    return registry.build(name)


def needed(policy: Policy, tokens: int, longest: int, critic: Critic | None = None) -> float:
    """Bytes that three small passes say."""
    trained = budget._parameters([policy, *([critic.trunk] if critic else [])], critic)
    need = budget.measured(policy, longest, algorithm(), critic, [p for p in trained if p.requires_grad])
    for parameter in trained:
        parameter.grad = None
    return need(tokens)


def live(policy: Policy, rows: int, length: int, critic: Critic | None = None) -> int:
    """Bytes that a forward and backward pass over real rows holds at most, all their tokens scored."""
    for parameter in policy.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with LiveBytes() as found:
        budget._learn(policy, budget._groups(policy, rows, length, scored="all"), critic)
    return found.peak


def checkpointed(policy: Policy) -> Policy:
    policy.checkpoint_activations()
    return policy


CASES = {
    "qwen3": lambda: policy_of(layers=2),
    "plain rows": lambda: policy_of(layers=2, layout="rows"),
    "learned positions": lambda: policy_of("gpt2"),
    "soft-caps, plain rows": lambda: policy_of("gemma2", "rows"),
    "activation checkpointing": lambda: checkpointed(policy_of(layers=4)),
    "reward model": lambda: RewardModel.beside(policy_of(layers=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_three_small_passes_say_of_a_large_one(case: str) -> None:
    policy = CASES[case]()
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters() if p.requires_grad)
    said, held = needed(policy, 1024, 64) - 3 * weights, live(policy, 16, 64)
    assert held < said < 1.4 * held


def test_the_longest_row_counts_where_attention_holds_its_matrix() -> None:
    assert needed(policy_of("gemma2", "rows"), 2048, 256) > 2 * needed(policy_of("gemma2", "rows"), 2048, 64)
    assert needed(policy_of(), 2048, 256) < 1.2 * needed(policy_of(), 2048, 64)


def test_more_memory_never_gives_fewer_tokens() -> None:
    def need(tokens: int) -> float:
        return 10_000_000 + 5_000 * tokens

    rooms = [0, 10**6, *range(20 * 10**6, 800 * 10**6, 7 * 10**6)]
    found = [chosen(need, 40, room) for room in rooms]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (40, MOST)
    for room, tokens in zip(rooms, found, strict=True):
        assert tokens == 40 or (need(tokens) <= budget.SHARE * room and tokens & (tokens - 1) == 0)
        assert tokens == MOST or need(2 * tokens) > budget.SHARE * room


def test_no_fewer_tokens_than_the_longest_row_has_and_it_is_said_if_that_is_too_much() -> None:
    found = find_budget(policy_of(), 300, algorithm(), available=10**6)
    assert found.tokens == 300
    assert "activation_checkpointing" in found.why
    assert "auto is 300" in found.why
    assert "activation_checkpointing" not in find_budget(policy_of(), 300, algorithm(), available=10**10).why


def test_the_same_memory_gives_the_same_number_every_time() -> None:
    assert len({find_budget(policy_of(), 100, algorithm(), available=20_000_000).why for _ in range(2)}) == 1


@pytest.mark.parametrize("kind", ["on", "beside", None])
def test_weights_gradients_and_random_numbers_stay(kind: str | None) -> None:
    policy = policy_of()
    critic = getattr(Critic, kind)(policy) if kind else None
    weights = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    first = next(policy.model.parameters())
    kept = first.grad = torch.full_like(first, 3.0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    find_budget(policy, 20, algorithm("ppo"), critic=critic, available=GB)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.grad is kept
    assert bool((kept == 3.0).all())
    assert all(p.grad is None for p in policy.model.parameters() if p is not first)
    assert all(torch.equal(p, weights[n]) for n, p in policy.model.named_parameters())
    assert critic is None or all(p.grad is None for p in critic.parameters.values() if p is not first)


def test_a_critic_of_its_own_needs_memory_and_one_on_the_trunk_hardly_any() -> None:
    policy = policy_of()
    alone, on = needed(policy, 512, 64), needed(policy, 512, 64, Critic.on(policy))
    beside = needed(policy, 512, 64, Critic.beside(policy))
    trunk = sum(p.numel() * p.element_size() for p in Critic.beside(policy).parameters.values())
    assert alone <= on < 1.02 * alone
    assert 3 * trunk <= beside - alone < 3 * trunk + 0.1 * alone  # gradient and two moments


def test_frozen_weights_need_no_gradient_and_no_moments() -> None:
    """As under a low-rank adapter: all but a few small weights are frozen."""
    whole, part = policy_of(), policy_of()
    for name, parameter in part.model.named_parameters():
        parameter.requires_grad_("norm" in name)
    saved = sum(p.numel() * p.element_size() for p in part.model.parameters() if not p.requires_grad)
    assert needed(part, 512, 64) < needed(whole, 512, 64) - 3 * saved
    assert all(p.grad is None for p in part.model.parameters())


def test_nothing_to_learn_is_no_error() -> None:
    policy = policy_of()
    policy.model.requires_grad_(False)
    assert find_budget(policy, 64, algorithm(), available=GB).tokens == MOST


def test_checkpointing_allows_larger_micro_batches() -> None:
    plain = find_budget(policy_of(layers=6), 64, algorithm(), available=100_000_000).tokens
    assert find_budget(checkpointed(policy_of(layers=6)), 64, algorithm(), available=100_000_000).tokens >= 4 * plain


def test_a_trust_region_gets_less() -> None:
    policy = policy_of()
    few = find_budget(policy, 64, algorithm("trpo"), available=60_000_000).tokens
    assert few < find_budget(policy, 64, algorithm("reinforce"), available=60_000_000).tokens


@pytest.mark.parametrize("room", [100, 1_000, 5_000, 40_000, 10**6])
def test_growing_stops_before_what_does_not_fit(room: int) -> None:
    """As on CUDA, where a micro-batch is tried."""
    tried: list[int] = []

    def fits(tokens: int) -> bool:
        tried.append(tokens)
        return tokens <= room

    found = grown(fits, 70)
    assert found is not None
    assert found <= MOST
    assert found == 70 or found * MARGIN <= room
    assert found == MOST or 2 * found * MARGIN > room
    assert len(tried) <= 12


def test_growing_says_that_not_even_the_longest_row_fits() -> None:
    assert grown(lambda tokens: False, 70) is None


def test_fit_of_exact_numbers() -> None:
    def peak(rows: int, length: int) -> int:
        return 500 + 7 * rows * length + 2 * rows * length * length

    fit = Fit.of(16, peak(1, 16), peak(2, 16), peak(1, 32))
    assert fit == Fit(500.0, 7.0, 2.0)
    assert fit.needed(10 * 100, 100) == peak(10, 100)


def test_live_bytes_counts_what_lives_at_once() -> None:
    with LiveBytes() as found:
        kept: list[Tensor] = [torch.ones(1000)]
        for _ in range(5):
            kept[0] = kept[0] + 1  # two at a time
        kept[0].view(10, 100).add_(1)  # none more
    assert (found.peak, found.largest) == (8000, 4000)


def machine(root: Path, available: int, cgroup: str, files: dict[str, str]) -> Path:
    """A folder that looks like / to a process."""
    texts = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available} kB\n", "proc/self/cgroup": cgroup, **files}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_available_memory_is_that_of_the_narrowest_container(tmp_path: Path) -> None:
    inside = "sys/fs/cgroup/a/b"
    files = {
        f"{inside}/memory.max": "max\n",
        f"{inside}/memory.current": "5\n",
        "sys/fs/cgroup/a/memory.max": "50000\n",
        "sys/fs/cgroup/a/memory.current": "30000\n",
        "sys/fs/cgroup/a/memory.stat": "anon 20000\ninactive_file 4000\n",
    }
    assert memory_available(machine(tmp_path, 1000, "0::/a/b\n", files)) == 24_000
    assert memory_available(machine(tmp_path, 20, "0::/a/b\n", files)) == 20 * 1024


def test_available_memory_under_the_first_version_of_control_groups(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "8000",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500",
    }
    assert memory_available(machine(tmp_path, 1000, "7:cpu,memory:/gone\n3:pids:/x\n", files)) == 1500


def test_a_container_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"}
    assert memory_available(machine(tmp_path, 1000, "0::/\n", files)) == 0


def test_available_memory_of_this_machine() -> None:
    assert 2**24 < memory_available() < 2**50
