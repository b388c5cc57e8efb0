"""Two or four processes that share the work learn exactly what one learns, in any layout."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from gro.algorithms import build, names
from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Layout, Policy
from gro.policy.sharding import assign, whole_tensor
from gro.training.adapting import adapt
from gro.training.batching import collate
from gro.training.critic import CriticLearner
from gro.training.learner import PolicyLearner
from gro.training.prepare import Reference, prepare
from gro.training.processes import Processes
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

VOCABULARY = 24
CASES = {name: (build(name), False) for name in names()} | {
    "ppo, every option": (
        build("ppo", kl=0.05, kl_target=1.0, entropy=0.03, whiten=True, max_kl=100.0),
        False,
    ),
    "ppo, shared trunk": (build("ppo", entropy=0.03), True),
}
"""Every registered algorithm at its defaults, each with whether its critic shares the policy's trunk."""


def groups_for(algorithm: Algorithm) -> list[Group]:
    """Five prompts with what the algorithm learns from; lengths and rewards differ, one reward has failed."""
    rng = random.Random(algorithm.name)
    pair = bool(algorithm.roles & {"paired", "chosen"})
    versus = "versus" in algorithm.roles

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(least, most)))

    def answers(k: int) -> tuple[Completion, ...]:
        rewards = [0.0, 1.0, rng.randrange(9) / 8][: 1 if versus else 2 if pair else 3]
        samples = [] if algorithm.roles == {"targets"} else [Completion(ids(1, 4 + k), reward=r) for r in rewards]
        if k == 1 and len(samples) == 3:
            samples[2] = replace(samples[2], reward=None)
        if algorithm.beside or not samples:
            samples.append(Completion(ids(1, 4), role="target", reward=1.0))
        if algorithm.mismatches:
            samples.append(Completion(ids(1, 4), role="mismatch"))
        return tuple(samples)

    groups = [Group(Prompt(ids(1, 5), key=k), answers(k), greedy_reward=0.5, margin=0.25) for k in range(5)]
    if "targets" in algorithm.roles and not algorithm.beside:  # only one of the processes has demonstrations
        demonstration = Completion(ids(1, 4), role="target", reward=1.0)
        groups[4:] = [replace(group, completions=(demonstration,)) for group in groups[4:]]
    return groups


@cache
def made(seed: int, layout: Layout = "shared") -> Policy:
    model = tiny_model(vocab_size=VOCABULARY, hidden=16, layers=1, seed=seed, dtype=torch.float64)
    return Policy(model, tiny_tokenizer(), layout=layout)


def start(layout: Layout, seed: int = 0) -> Policy:
    """The same policy with the same weights each time."""
    policy = copy.copy(made(seed, layout))
    policy.model = copy.deepcopy(policy.model)
    return policy


def learnt(
    name: str,
    processes: Processes,
    *,
    layout: Layout = "shared",
    tokens_per_micro: int = 20,
    cut: Callable[[Policy], object] = lambda policy: None,
) -> dict[str, Any]:
    """Gradients (before clipping), metrics and state of one update.  cut: told of each model that is loaded."""
    algorithm, shared = CASES[name]
    groups = groups_for(algorithm)
    policy, frozen = start(layout), start(layout, 1)
    cut(policy)
    cut(frozen)
    critic = Critic.on(policy) if shared else Critic.beside(policy)
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-0.1, 0.1, 16)[None])
    settings: dict[str, Any] = {"tokens_per_micro": tokens_per_micro}
    minibatch, state = prepare(
        collate(groups, length_limit=8),
        policy,
        Reference(frozen.snapshot(), processes),
        algorithm,
        {},
        updates=2,
        critic=critic,
        processes=processes,
        **settings,
    )
    with torch.no_grad():  # the policy has moved since: ratios are not 1
        moved = list(policy.model.parameters())
        moved += [] if shared else list(critic.parameters.values())
        for i, p in enumerate(moved):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
            assign(p, whole_tensor(p) + 0.03 * noise)
    still = Optimization(learning_rate=1e-12, max_grad_norm=0.0)
    settings |= {"total_updates": 1, "processes": processes}
    learner = PolicyLearner(policy, algorithm, still, critic=critic if shared else None, **settings)
    learners: list[Any] = [learner]
    if algorithm.critic is not None and not shared:
        learners.append(CriticLearner(critic, algorithm, still, **settings))
    gradients: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    updates = []
    for part in learners:
        part.descent.abandon = lambda: None
        updates.append(part.update(minibatch))
        metrics |= updates[-1].metrics
        found = part.descent.parameters.items()
        gradients |= {
            f"{type(part).__name__} {n}": whole_tensor(p.grad).clone() for n, p in found if p.grad is not None
        }
    state, measured = adapt(
        minibatch, updates, policy, algorithm, state, tokens_per_micro=tokens_per_micro, processes=processes
    )
    return {"gradients": gradients, "metrics": metrics | measured, "state": state}


def worker(rank: int, size: int, folder: str) -> None:
    """One of several processes; four go in lockstep, as where weights are cut over them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    processes = Processes.current(lockstep=size == 4)
    torch.save({name: learnt(name, processes) for name in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two, then of four processes found, by case."""
    folder = tmp_path_factory.mktemp("processes")
    spawn(worker, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@cache
def alone(name: str) -> dict[str, Any]:
    """What one process finds."""
    return learnt(name, Processes())


@pytest.mark.parametrize("name", CASES)
def test_several_processes_learn_as_one(each: list[dict[str, dict[str, Any]]], name: str) -> None:
    for found in (one[name] for one in each):
        check_same(found, alone(name))


@pytest.mark.fault("N2")
@pytest.mark.parametrize("name", CASES)
def test_neither_packing_nor_shared_prefixes_change_the_update(name: str) -> None:
    """Prefixes shared in small packs, which split the larger groups, and plain rows all at once.

    Not to the last digit: norms are in single precision whatever the weights are.
    """
    rows = learnt(name, Processes(), layout="rows", tokens_per_micro=10**6)
    check_same(rows, alone(name), within=1e-5)


def check_same(found: dict[str, Any], expected: dict[str, Any], *, within: float = 1e-9) -> None:
    assert any(g.abs().max() > 1e-4 for g in expected["gradients"].values())
    assert found["gradients"].keys() == expected["gradients"].keys()
    for parameter, gradient in expected["gradients"].items():
        scale = gradient.abs().max().clamp(min=1e-6).item()
        gap = (found["gradients"][parameter] - gradient).abs().max().item()
        assert gap <= within * scale, f"{parameter}: {gap:.2g} of {scale:.2g}"
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=max(within, 1e-6), abs=within)
    assert found["state"] == pytest.approx(expected["state"], rel=max(within, 1e-6))


def test_alone_nothing_is_exchanged() -> None:
    processes = Processes.current()
    assert processes == Processes(0, 1)
    assert processes.share("abc") == "abc"
    assert processes.join([2.0, 3.0]) == [2.0, 3.0]
    assert not processes.any(False)
    ones = torch.ones(3)
    processes.whole(ones)
    assert ones.tolist() == [1.0, 1.0, 1.0]
    processes.raise_together(None)
    with pytest.raises(GroError, match=r"^broken$"):
        processes.raise_together("broken")
