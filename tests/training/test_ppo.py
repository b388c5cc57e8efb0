"""PPO in full: policy, critic, entropy and KL learn as the literal loss says, on plain rows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.runs.progress import Progress
from gro.runs.reader import RunReader
from gro.runs.store import Run
from gro.training.batching import Minibatch, collate
from gro.training.critic import CriticLearner, CriticUpdate
from gro.training.learner import Learner, PolicyLearner, Update
from gro.training.loop import Warmup, train
from gro.training.prepare import Reference, prepare
from gro.training.recording import Recorder, StepResult
from gro.training.rollouts import Online
from gro.training.settings import Optimization, Portions
from gro.types import Completion, Group, Prompt, rows_of
from tiny import tiny_model, tiny_tokenizer

VOCABULARY = 320
STILL = Optimization(learning_rate=1e-12, max_grad_norm=0.0)


def sampled(seed: int, groups: int = 3, size: int = 2) -> list[Group]:
    rng = random.Random(seed)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, most)))

    return [
        Group(Prompt(ids(6), key=k), tuple(Completion(ids(5), reward=rng.randrange(9) / 8) for _ in range(size)))
        for k in range(groups)
    ]


def model(seed: int) -> PreTrainedModel:
    return tiny_model("qwen3", seed=seed, dtype=torch.float64)


def critic_of(policy: Policy, shared: bool) -> Critic:
    critic = Critic.on(policy) if shared else Critic.beside(policy)
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-0.1, 0.1, critic.head.weight.numel())[None])
        critic.head.bias.fill_(0.5)
    return critic


def nudge(parameters: Mapping[str, Tensor]) -> None:
    """The same small move of weights wherever it is made."""
    with torch.no_grad():
        for name, p in parameters.items():
            if "head" not in name:
                p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)), dtype=p.dtype)


# --- the oracle: plain rows, full logits, loops over tokens ---------------------------------------------------------


def plain_row(lm: PreTrainedModel, group: Group, completion: Completion) -> tuple[Tensor, Tensor, Tensor]:
    """([T] log-probs, [T] entropies, [T, H] hidden states that predict)."""
    row = torch.tensor([[*group.prompt.ids, *completion.ids]])
    out = lm(input_ids=row, use_cache=False, output_hidden_states=True)
    before = slice(len(group.prompt.ids) - 1, -1)
    logp_TV = out.logits[0, before].log_softmax(-1)
    logp_T = logp_TV[torch.arange(len(completion.ids)), torch.tensor(completion.ids)]
    return logp_T, -(logp_TV.exp() * logp_TV).sum(-1), out.hidden_states[-1][0, before]


def gae(rewards: list[float], values: list[float], lam: float) -> list[float]:
    """Schulman et al. 2016, eq. 16, summed as it is written; γ = 1."""
    following = [*values[1:], 0.0]
    deltas = [r + ahead - here for r, ahead, here in zip(rewards, following, values, strict=True)]
    return [sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def literal_loss(
    groups: list[Group], now: dict[str, Any], then: dict[str, Any], *, kl: float, entropy: float
) -> tuple[Tensor, Tensor]:
    """(policy and entropy, critic) as PPO's papers write them; `then`: before the updates on this batch."""
    losses, value_losses = [], []
    for _, group, y in rows_of(groups):
        with torch.no_grad():
            old, _, hidden = plain_row(then["policy"], group, y)
            ref, _, _ = plain_row(then["ref"], group, y)
            _, _, critic_hidden = plain_row(then["trunk"], group, y)
            values_old = now["head"](critic_hidden)[:, 0]
        rewards = [-kl * k1 for k1 in (old - ref).tolist()]
        assert y.reward is not None
        rewards[-1] += y.reward
        advantage = torch.tensor(gae(rewards, values_old.tolist(), lam=0.95))
        returns = advantage + values_old
        here, entropies, hidden = plain_row(now["policy"], group, y)
        ratio = (here - old).exp()
        losses += list(-torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage) - entropy * entropies)
        if now["trunk"] is not now["policy"]:
            _, _, hidden = plain_row(now["trunk"], group, y)
        values = now["head"](hidden)[:, 0]
        near = values_old + (values - values_old).clamp(-0.1, 0.1)
        value_losses += list(0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2))
    return torch.stack(losses).mean(), 0.25 * torch.stack(value_losses).mean()


def gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("budget", [10_000, 12])
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_and_values_are_those_of_the_literal_loss(shared: bool, budget: int) -> None:
    """At weights that have moved since the batch was prepared, so that ratios and values are clipped."""
    algorithm = build(
        "ppo", clip=0.1, lam=0.95, kl=0.05, entropy=0.02, value_coefficient=0.25, value_clip=0.1, max_kl=100.0
    )
    groups = sampled(3)
    policy = Policy(model(0), tiny_tokenizer())
    critic = critic_of(policy, shared)
    reference = Reference(Policy(model(1), tiny_tokenizer()).snapshot())
    minibatch, _ = prepare(
        collate(groups, length_limit=None),
        policy,
        reference,
        algorithm,
        {},
        tokens_per_micro=budget,
        updates=2,
        critic=critic,
    )
    nudge(dict(policy.model.named_parameters()))
    if not shared:
        nudge({n.removeprefix("trunk."): p for n, p in critic.parameters.items()})
    learner = PolicyLearner(
        policy, algorithm, STILL, total_updates=1, tokens_per_micro=budget, critic=critic if shared else None
    )
    learner.descent.abandon = lambda: None  # type: ignore[method-assign]
    metrics = learner.update(minibatch).metrics
    if not shared:
        fitting = CriticLearner(critic, algorithm, STILL, total_updates=1, tokens_per_micro=budget)
        fitting.descent.abandon = lambda: None  # type: ignore[method-assign]
        metrics |= fitting.update(minibatch).metrics
    now, trunk = model(0), model(0)
    nudge(dict(now.named_parameters()))
    nudge(dict(trunk.model.named_parameters()))
    head = torch.nn.Linear(critic.head.in_features, 1, dtype=torch.float64)
    head.load_state_dict({name: p.detach() for name, p in critic.head.state_dict().items()})
    loss, value_loss = literal_loss(
        groups,
        {"policy": now, "trunk": now if shared else trunk, "head": head},
        {"policy": model(0), "ref": model(1), "trunk": model(0)},
        kl=0.05,
        entropy=0.02,
    )
    (loss + value_loss).backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["critic/loss"] == pytest.approx(value_loss.item(), rel=1e-6)
    assert 0 < metrics["critic/clip_fraction"] < 1
    assert metrics["clip_ratio/region_mean"] > 0
    found, expected = gradients(dict(policy.model.named_parameters())), gradients(dict(now.named_parameters()))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    expected = {f"head.{name}": g for name, g in gradients(dict(head.named_parameters())).items()}
    if not shared:
        expected |= {f"trunk.{name}": g for name, g in gradients(dict(trunk.model.named_parameters())).items()}
    found = gradients(critic.parameters)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# --- in the loop -----------------------------------------------------------------------------------------------------


class Even:
    """A reward of 1 for a completion with an even first token."""

    def score(self, groups, *, step: int = 0) -> list[Group]:
        return [
            replace(g, completions=tuple(replace(c, reward=float(c.ids[0] % 2 == 0)) for c in g.completions))
            for g in groups
        ]


class Kept:
    """A recorder that only remembers."""

    ended = None

    def __init__(self) -> None:
        self.results: list[Any] = []

    def step(self, step: int, result: Any) -> None:
        self.results.append(result)

    def evaluated(self, step: int, evaluate: Any) -> None:
        """Nothing is held out."""


def trained(
    algorithm: Algorithm,
    portions: Portions,
    *,
    shared: bool = False,
    rate: float = 1e-3,
    warmup_steps: int = 0,
    recorder: Any = None,
    frozen: bool = False,
) -> tuple[Policy, Critic, Any]:
    """(policy, critic, recorder) after a run on four prompts."""
    policy = Policy(tiny_model(vocab_size=32, seed=0), tiny_tokenizer())
    critic = Critic.on(policy) if shared else Critic.beside(policy)
    optimization = Optimization(learning_rate=rate)
    settings: dict[str, Any] = {"total_updates": 100, "tokens_per_micro": 200}
    learner = PolicyLearner(policy, algorithm, optimization, critic=critic if shared else None, **settings)
    fitting = CriticLearner(critic, algorithm, Optimization(learning_rate=1e-2), **settings)
    source = Online(
        [Group(Prompt((k, k + 1), key=k), ()) for k in range(3, 7)],
        LocalEngine(policy.model),
        Even(),
        Sampling(max_new_tokens=4, stop_ids=(2,)),
        prompts_per_step=4,
        group_size=4,
    )
    learners: list[Learner] = [learner] if shared or frozen else [learner, fitting]
    recorder = recorder(policy, algorithm, portions) if recorder else Kept()
    train(
        policy,
        source,
        algorithm,
        learners,
        portions,
        recorder,
        reference=Reference(policy.snapshot()),
        critic=critic,
        warmup=Warmup(warmup_steps, (fitting,)),
    )
    return policy, critic, recorder


@pytest.mark.parametrize("shared", [False, True])
def test_everything_at_once_learns(shared: bool) -> None:
    algorithm = build("ppo", kl=0.02, kl_target=0.5, kl_horizon=100.0, entropy=0.005, value_coefficient=0.5)
    portions = Portions(steps=25, epochs=2, minibatches=2)
    _, _, kept = trained(algorithm, portions, shared=shared, rate=3e-3)

    def mean_reward(results: list[Any]) -> float:
        rows = [c.reward for r in results for g in r.minibatch.groups for c in g.completions]
        return sum(rows) / len(rows)

    assert mean_reward(kept.results[-5:]) > mean_reward(kept.results[:5]) + 0.2
    assert all(len(r.updates) == (4 if shared else 8) for r in kept.results)
    betas = [r.observed["kl_coefficient"] for r in kept.results]
    assert betas[0] == pytest.approx(0.02 * (1 - 0.2 * 16 / 100))  # a KL of 0 is below any target
    assert len(set(betas)) > 20
    for result in kept.results:  # the critic learns what the advantage was made of, under the same penalty
        batch = result.minibatch.batch
        returns_BT = (batch.values_BT + batch.advantage_BX).masked_fill(~batch.mask_BT, 0.0)
        torch.testing.assert_close(batch.returns_BT, returns_BT, atol=1e-6, rtol=0)


def test_the_passes_end_once_the_policy_has_come_too_far() -> None:
    """With large steps an update soon finds a KL above the limit: it is declined, and no other follows."""
    portions = Portions(steps=2, epochs=3, minibatches=2)
    _, _, kept = trained(build("ppo", kl=0.0, max_kl=1e-4), portions, rate=3e-3)
    for result in kept.results:
        moves = [u for u in result.updates if isinstance(u, Update)]
        assert [u.declined for u in moves] == [False] * (len(moves) - 1) + [True]
        assert len(moves) < 6
        assert "grad_norm" not in moves[-1].metrics
        assert isinstance(result.updates[-1], Update)  # the critic does not go on alone
    free = trained(build("ppo", kl=0.0, max_kl=1e4), portions, rate=3e-3)[2]
    assert [len(r.updates) for r in free.results] == [12, 12]


def test_the_penalty_follows_the_kl_after_the_last_update() -> None:
    """×2 above 1.5 times the target, ÷2 below it over 1.5, and the next step's batch carries the factor."""
    algorithm = build("ppo_penalty", target=1e-3)
    policy, _, kept = trained(algorithm, Portions(steps=3, epochs=2), rate=5e-3)
    scale = kl = 1.0
    for result in kept.results:
        assert result.minibatch.batch.scales_K == (1.0, scale)
        kl = result.observed["policy/kl"]
        scale *= 2 if kl > 1.5e-3 else 0.5 if kl < 1e-3 / 1.5 else 1
        assert result.observed["kl_scale"] == scale
    assert scale > 1
    # The last KL again, by hand, on plain rows of the policy as it is now.
    last: Minibatch = kept.results[-1].minibatch
    assert last.batch.old_BT is not None
    u = []
    for b, (_, group, y) in enumerate(rows_of(last.groups)):
        policy.model.set_attn_implementation("eager")
        now, _, _ = plain_row(policy.model, group, y)
        u.append(now.detach() - last.batch.old_BT[b, : len(y.ids)])
    u = torch.cat(u).double()
    assert kl == pytest.approx((u.exp() - 1 - u).mean().item(), rel=1e-3)


@pytest.mark.fault("M6")
def test_one_update_per_batch_has_ratio_1_and_still_adapts() -> None:
    _, _, kept = trained(build("ppo_penalty", target=10.0), Portions(steps=1))
    (update,) = (u for u in kept.results[0].updates if isinstance(u, Update))
    assert kept.results[0].minibatch.batch.old_BT is None
    assert update.metrics["ratio/min"] == update.metrics["ratio/max"] == 1.0
    assert kept.results[0].observed["policy/kl"] > 0
    assert kept.results[0].observed["kl_scale"] == 0.5


@pytest.mark.parametrize(("name", "shared"), [("ppo", False), ("ppo", True), ("awr", False), ("marwil", False)])
def test_during_the_warm_up_only_the_critic_learns(name: str, shared: bool) -> None:
    algorithm = build(name)
    start = tiny_model(vocab_size=32, seed=0)
    portions = Portions(steps=2, epochs=2)
    policy, critic, kept = trained(algorithm, portions, shared=shared, warmup_steps=2)
    for p, q in zip(policy.model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=0, rtol=0)
    assert critic.head.weight.any()
    assert all(isinstance(u, CriticUpdate) for r in kept.results for u in r.updates)
    policy, _, _ = trained(algorithm, replace(portions, steps=3), shared=shared, warmup_steps=2)
    assert any(not torch.equal(p, q) for p, q in zip(policy.model.parameters(), start.parameters(), strict=True))


def test_a_frozen_critic_stays_as_the_warm_up_left_it() -> None:
    """A-LoL: fitted first, then only read."""
    algorithm = build("a_lol")
    portions = Portions(steps=2)
    _, warmed, _ = trained(algorithm, portions, warmup_steps=2, frozen=True)
    policy, critic, kept = trained(algorithm, replace(portions, steps=4), warmup_steps=2, frozen=True)
    assert critic.head.weight.any()
    for name, p in critic.parameters.items():
        torch.testing.assert_close(p, warmed.parameters[name], atol=0, rtol=0)
    assert kept.results[-1].minibatch.batch.values_BT.any()
    assert not torch.equal(policy.model.lm_head.weight, tiny_model(vocab_size=32, seed=0).lm_head.weight)


@pytest.mark.fault("N3")
def test_sampler_and_trainer_are_compared_at_the_weights_that_sampled(tmp_path) -> None:
    """In later passes they differ because the policy has learnt."""
    found = {}
    for epochs in (1, 3):
        with Run.open(tmp_path / str(epochs), {}) as run:

            def recorder(policy: Policy, algorithm: Algorithm, portions: Portions, run: Run = run) -> Recorder:
                return Recorder(run, Progress(1), policy, algorithm, portions)

            trained(build("ppo", kl=0.0), Portions(steps=1, epochs=epochs), rate=3e-2, recorder=recorder)
            run.finish()
        with RunReader(tmp_path / str(epochs)) as reader:
            found[epochs] = {name: values[0] for name, (_, values) in reader.metrics().items()}
    gap = "sampling/sampling_logp_difference/max"
    assert found[3][gap] == found[1][gap] < 1e-4
    assert found[3]["ratio/max"] > 1.01


def test_a_run_remembers_values_returns_and_what_stopped(tmp_path) -> None:
    """Also of steps in which only the critic learnt."""
    with Run.open(tmp_path / "run", {}) as run:

        def recorder(policy: Policy, algorithm: Algorithm, portions: Portions) -> Recorder:
            return Recorder(run, Progress(3), policy, algorithm, portions)

        algorithm = build("ppo", kl=0.0, max_kl=1e-4)
        portions = Portions(steps=3, epochs=3, flat_steps=10)
        trained(algorithm, portions, rate=3e-3, warmup_steps=1, recorder=recorder)
        run.finish()
    with RunReader(tmp_path / "run") as reader:
        warm, later = reader.rollouts(1), reader.rollouts(3)
        metrics = {name: dict(zip(steps, values, strict=True)) for name, (steps, values) in reader.metrics().items()}
    assert len(warm) == len(later) == 16
    assert "logp" not in warm[0].tokens
    for record in later:
        tokens = record.tokens
        assert len(tokens["value"]) == len(record.completion_ids)
        assert tokens["return"] == pytest.approx(tokens["value"] + tokens["advantage"], abs=1e-6)
        assert record.reward in (0.0, 1.0)
    assert "loss" not in metrics or 1 not in metrics["loss"]
    assert {1, 2, 3} <= metrics["critic/loss"].keys()
    assert metrics["stopped_early"] == {2: 1.0, 3: 1.0}
    assert all(1 <= done < 3 for done in metrics["epochs_done"].values())


@pytest.mark.fault("C3")
@pytest.mark.parametrize(
    ("name", "demonstrated", "flat"),
    [
        ("ppo", False, False),
        ("grpo", False, True),
        ("gro", False, True),
        ("gro", True, False),
        ("hpt", True, False),
        ("reinforce", False, False),
        ("rft", False, False),
        ("remax", False, False),
    ],
)
@pytest.mark.fault("C3")
def test_prompts_that_differ_teach_where_they_are_compared(tmp_path, name: str, demonstrated: bool, flat: bool) -> None:
    """Every prompt's answers are equally good, but not those of different prompts; or there are demonstrations."""
    algorithm = build(name)
    rewards = (0.0, 0.0, 1.0, 1.0)
    groups = [
        Group(Prompt((5,), key=k), tuple(Completion((6,), reward=r, finish="stop") for r in rewards[2 * k : 2 * k + 2]))
        for k in range(2)
    ]
    if demonstrated:
        target = Completion((7,), role="target")
        groups = [replace(group, completions=(*group.completions, target)) for group in groups]
    policy = Policy(tiny_model(vocab_size=32, layers=1), tiny_tokenizer())
    with Run.open(tmp_path / "run", {}) as run:
        recorder = Recorder(run, Progress(1), policy, algorithm, Portions(steps=2, flat_steps=1))
        result = StepResult(collate(groups, length_limit=None), [], 0.0, 1.0)
        recorder.step(1, result)
        assert ("first such step in a row: flat_groups" in (recorder.ended or "")) == flat
        run.finish()
