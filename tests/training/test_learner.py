"""One update: its gradient is that of the paper's loss on plain rows, whatever the micro-batch budget."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gro.algorithms import build
from gro.errors import GroError
from gro.policy.policy import Policy
from gro.training.batching import collate
from gro.training.learner import PolicyLearner
from gro.training.prepare import Reference, prepare, score
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt, rows_of
from tiny import tiny_model, tiny_tokenizer

VOCABULARY = 320


def policy(seed: int = 0) -> Policy:
    return Policy(tiny_model("qwen3", seed=seed), tiny_tokenizer())


def ids(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(n))


def sampled(seed: int, groups: int = 4, size: int = 3) -> list[Group]:
    rng = random.Random(seed)
    return [
        Group(
            Prompt(ids(rng, rng.randint(1, 6)), key=k),
            tuple(Completion(ids(rng, rng.randint(1, 5)), reward=rng.random()) for _ in range(size)),
        )
        for k in range(groups)
    ]


def pairs(seed: int) -> list[Group]:
    return [
        replace(g, completions=(replace(g.completions[0], reward=1.0), replace(g.completions[1], reward=-1.0)))
        for g in sampled(seed, size=2)
    ]


def demonstrations(seed: int) -> list[Group]:
    return [replace(g, completions=(Completion(g.completions[0].ids, role="target"),)) for g in sampled(seed)]


def logp(model, group: Group, completion: Completion) -> Tensor:
    """[T] log-probs of one plain row by the stock model."""
    row = torch.tensor([group.prompt.ids + completion.ids])
    everything = model(row, use_cache=False).logits.log_softmax(-1)[0]
    n = len(group.prompt.ids)
    return everything[torch.arange(n - 1, n - 1 + len(completion.ids)), torch.tensor(completion.ids)]


def sft_loss(model, reference, groups):
    tokens = torch.cat([logp(model, g, c) for _, g, c in rows_of(groups)])
    return -tokens.mean()


def dpo_loss(model, reference, groups):
    losses = []
    for g in groups:
        chosen, rejected = (logp(model, g, c).sum() - logp(reference, g, c).sum().detach() for c in g.completions)
        losses.append(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)))
    return torch.stack(losses).mean()


def grpo_loss(model, reference, groups):
    losses = []
    for g in groups:
        rewards = torch.tensor([c.reward for c in g.completions])
        z = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
        for a, c in zip(z, g.completions, strict=True):
            here = logp(model, g, c)
            ratio = (here - here.detach()).exp()
            u = here - logp(reference, g, c).detach()
            losses.append((-ratio * a + 0.04 * ((-u).exp() - 1 + u)).mean())
    return torch.stack(losses).mean()


def rloo_loss(model, reference, groups):
    losses = []
    for g in groups:
        penalised = torch.tensor(
            [
                c.reward - 0.05 * (logp(model, g, c) - logp(reference, g, c)).sum().item()
                for c in g.completions
                if c.reward is not None
            ]
        )
        others = (penalised.sum() - penalised) / (len(penalised) - 1)
        losses += [-a * logp(model, g, c).sum() for a, c in zip(penalised - others, g.completions, strict=True)]
    return torch.stack(losses).mean()


def gro_loss(model, reference, groups):
    """Pairwise separation in average log-likelihood with its gradient taken through that same average."""
    losses = []
    for g in groups:
        rewards = torch.tensor([c.reward for c in g.completions])
        a = len(rewards) * rewards.softmax(0) - 1
        phi = torch.stack([logp(model, g, c).mean() for c in g.completions])
        up, down = (a > 0).nonzero()[:, 0].tolist(), (a < 0).nonzero()[:, 0].tolist()
        total = a[up].sum()
        losses.append(
            sum(
                -(2 / 10) * a[i] * a[j].abs() / total * torch.nn.functional.logsigmoid(10 * (phi[i] - phi[j]))
                for i in up
                for j in down
            )
        )
    return torch.stack(losses).sum() / sum(len(g.completions) for g in groups)


CASES = {
    "sft": (build("sft"), demonstrations, sft_loss),
    "dpo": (build("dpo"), pairs, dpo_loss),
    "grpo": (build("grpo"), sampled, grpo_loss),
    "rloo": (build("rloo"), sampled, rloo_loss),
    "gro": (build("gro", unit="average", share="per_sequence", target_weight=0.0), sampled, gro_loss),
}


def gradients(algorithm, groups, budget: int) -> tuple[dict[str, Tensor], float]:
    """(gradient by parameter, reported loss) of one update, before any clipping."""
    trained, reference = policy(0), Reference(policy(1).snapshot())
    learner = PolicyLearner(
        trained,
        algorithm,
        Optimization(learning_rate=1e-12, max_grad_norm=0.0),
        total_updates=1,
        tokens_per_micro=budget,
    )
    learner.descent.abandon = lambda: None  # type: ignore[method-assign]
    minibatch, _ = prepare(
        collate(groups, length_limit=8), trained, reference, algorithm, {}, tokens_per_micro=budget, updates=1
    )
    update = learner.update(minibatch)
    named = trained.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None}, update.metrics["loss"]


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_loss_are_the_papers(name):
    algorithm, make, literal = CASES[name]
    groups = make(3)
    found, loss = gradients(algorithm, groups, budget=10_000)
    model, reference = tiny_model("qwen3", seed=0), tiny_model("qwen3", seed=1)
    expected = literal(model, reference, groups)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None
        torch.testing.assert_close(found[parameter], tensor.grad, atol=2e-5, rtol=2e-4, msg=lambda m, p=parameter: p)


@pytest.mark.fault("N2")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("budget", [1, 12, 25])
def test_budget_does_not_change_the_update(name, budget):
    """Down to one row per pack, which splits every group and so needs the first pass without gradient."""
    algorithm, make, _ = CASES[name]
    groups = make(5)
    whole, loss = gradients(algorithm, groups, budget=10_000)
    parts, again = gradients(algorithm, groups, budget=budget)
    assert again == pytest.approx(loss, rel=1e-5, abs=1e-6)
    for parameter, tensor in whole.items():
        torch.testing.assert_close(parts[parameter], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, p=parameter: p)


@pytest.mark.fault("M6")
def test_first_update_has_ratio_one_and_kl_zero():
    trained = policy(0)
    reference = Reference(trained.snapshot())
    algorithm = build("grpo")
    learner = PolicyLearner(trained, algorithm, Optimization(), total_updates=1, tokens_per_micro=64)
    minibatch, _ = prepare(
        collate(sampled(1), length_limit=8), trained, reference, algorithm, {}, tokens_per_micro=64, updates=1
    )
    metrics = learner.update(minibatch).metrics
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1.0
    assert metrics["kl"] == 0.0


@pytest.mark.parametrize(("name", "told"), [("grpo", True), ("rest", False)])
def test_ratios_to_the_old_policy_are_told_where_it_is_known(name: str, told: bool):
    """In the second pass the policy has moved; of what does not read the old policy, nothing was scored beforehand."""
    trained = policy(0)
    algorithm = build(name)
    settings = Optimization(learning_rate=1e-2)
    learner = PolicyLearner(trained, algorithm, settings, total_updates=2, tokens_per_micro=64)
    minibatch, _ = prepare(
        collate(sampled(1), length_limit=8),
        trained,
        Reference(trained.snapshot()),
        algorithm,
        {},
        tokens_per_micro=64,
        updates=2,
    )
    first, second = (learner.update(minibatch).metrics for _ in range(2))
    for name in ("ratio/min", "ratio/max", "policy/approxkl_avg"):
        assert (name in first) == (name in second) == told
    if told:
        assert first["policy/approxkl_avg"] < 1e-9 < second["policy/approxkl_avg"]


@pytest.mark.fault("N1")
def test_non_finite_weights_stop_before_the_update():
    trained = policy(0)
    algorithm = build("sft")
    learner = PolicyLearner(trained, algorithm, Optimization(), total_updates=1, tokens_per_micro=64)
    minibatch, _ = prepare(
        collate(demonstrations(1), length_limit=8), trained, None, algorithm, {}, tokens_per_micro=64, updates=1
    )
    with torch.no_grad():
        trained.model.lm_head.weight[5] = math.nan
    before = [p.clone() for p in trained.model.parameters()]
    # A part of a shuffled minibatch: its group numbers have gaps, and the prompt named is still one of its own.
    part = list(minibatch.epoch(0, 2, seed=0, step=0))[1]
    with pytest.raises(GroError, match=rf"prompt {part.groups[0].prompt.key}\) are not finite"):
        learner.update(part)
    for old, new in zip(before, trained.model.parameters(), strict=True):
        torch.testing.assert_close(old, new, equal_nan=True, rtol=0, atol=0)


def test_reference_scores_given_completions_once_and_samples_each_time():
    class Counting(Policy):
        calls = 0

        def logp(self, pack, *, entropy=False):
            Counting.calls += len(pack.rows)
            return super().logp(pack, entropy=entropy)

    counting = Counting(tiny_model("qwen3"), tiny_tokenizer())
    reference = Reference(counting)
    given = sampled(2)
    drawn = [replace(g, completions=tuple(replace(c, finish="stop") for c in g.completions)) for g in sampled(9)]
    first = reference.score([*given, *drawn], 64)
    assert Counting.calls == 24
    again = reference.score([*given, *drawn], 64)
    assert Counting.calls == 36
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(first, score(counting, [*given, *drawn], 10_000))


def test_learning_rate_is_a_pure_function_of_the_update():
    optimization = Optimization(warmup_steps=4, schedule="linear")
    factors = [optimization.factor(u, 12) for u in range(13)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    assert Optimization(schedule="cosine").factor(5, 10) == pytest.approx(0.5)


@pytest.mark.fault("N2")
def test_a_minibatch_without_the_batch_s_longest_row():
    """Its tensors keep the width of the batch."""
    algorithm, groups, trained = build("sft"), demonstrations(3), policy(0)
    whole, _ = prepare(
        collate(groups, length_limit=8), trained, None, algorithm, {}, tokens_per_micro=64, updates=len(groups)
    )
    width = max(len(c.ids) for _, _, c in rows_of(groups))
    assert min(len(c.ids) for _, _, c in rows_of(groups)) < width
    learner = PolicyLearner(trained, algorithm, Optimization(), total_updates=len(groups), tokens_per_micro=64)
    for minibatch in whole.epoch(0, parts=len(groups), seed=0, step=0):
        assert learner.update(minibatch).logp_BT.shape == (1, width)
