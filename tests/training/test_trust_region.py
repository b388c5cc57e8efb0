"""TRPO's step: against dense matrices, and on real models."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from gro.errors import GroError
from gro.objective import Algorithm, Anchor, Term
from gro.objective.credit import GroupZScore
from gro.objective.estimator import TrustRegion
from gro.objective.weights import Ratio
from gro.policy.policy import Policy
from gro.training import trust_region
from gro.training.batching import Minibatch, collate
from gro.training.prepare import prepare
from gro.training.processes import ALONE, Processes
from gro.training.trust_region import TrustRegionLearner
from gro.types import Completion, Group, Prompt, rows_of
from tiny import tiny_model, tiny_tokenizer

VOCABULARY = 16
RATIO = Term(anchor=Anchor("old"), weight=Ratio())


def trpo(*, terms: tuple[Term, ...] = (RATIO,), **region) -> Algorithm:
    return Algorithm("trpo", GroupZScore(), terms, step=TrustRegion(**region))


def sampled(seed: int, groups: int = 3, size: int = 3) -> list[Group]:
    """Rollouts with tokens that are not trained and rows at another temperature."""
    rng = random.Random(seed)

    def completion(i: int) -> Completion:
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 4)))
        trained = (False, *[True] * (len(ids) - 1)) if i == 1 and len(ids) > 1 else None
        return Completion(ids, trained=trained, reward=rng.random(), temperature=0.7 if i == 2 else 1.0)

    return [
        Group(
            Prompt(tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 4))), key=k),
            tuple(completion(i) for i in range(size)),
        )
        for k in range(groups)
    ]


def tiny_policy(arch: str = "gpt2", **how) -> Policy:
    return Policy(tiny_model(arch, **how), tiny_tokenizer())


def prepared(policy: Policy, algorithm: Algorithm, groups: list[Group]) -> Minibatch:
    minibatch, _ = prepare(collate(groups, length_limit=8), policy, None, algorithm, {}, tokens_per_micro=64, updates=1)
    return minibatch


def weights(policy: Policy) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy.model.parameters() if p.requires_grad]).clone()


# --- against dense matrices ------------------------------------------------------------------------------------------


class Dense:
    """The same step from the textbook: one row at a time, a Jacobian per token, F as a matrix."""

    def __init__(self, policy: Policy, minibatch: Minibatch) -> None:
        self.policy = policy
        self.model = tiny_model("gpt2", **SMALL)
        self.model.load_state_dict(policy.model.state_dict())
        self.parameters = [
            p for p, q in zip(self.model.parameters(), policy.model.parameters(), strict=True) if q.requires_grad
        ]
        self.rows = rows_of(minibatch.groups)
        assert minibatch.batch.advantage_BX is not None
        self.advantage = minibatch.batch.advantage_BX[:, 0].double().tolist()

    def logits(self):
        """(row, role, token, [V] logits over the temperature) of every trained token."""
        for b, (_, group, y) in enumerate(self.rows):
            z = self.model(torch.tensor([group.prompt.ids + y.ids]), use_cache=False).logits[0] / y.temperature
            for t, token in enumerate(y.ids):
                if y.trained is None or y.trained[t]:
                    yield b, y.role, token, z[len(group.prompt.ids) - 1 + t]

    def log_probs(self) -> list[Tensor]:
        return [z.detach().log_softmax(-1) for _, role, _, z in self.logits() if role == "sample"]

    def loss(self, old: list[Tensor]) -> Tensor:
        """−mean of r·A over the samples' tokens."""
        samples = [(b, token, z) for b, role, token, z in self.logits() if role == "sample"]
        ratios = [(z.log_softmax(-1)[t] - o[t]).exp() for (_, t, z), o in zip(samples, old, strict=True)]
        return -sum(r * self.advantage[b] for r, (b, _, _) in zip(ratios, samples, strict=True)) / len(samples)  # type: ignore[return-value]

    def gradient(self, of: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(of, self.parameters, retain_graph=True)])

    def fisher(self) -> Tensor:
        total, number = 0, 0
        for _, role, _, z in self.logits():
            if role == "sample":
                jacobian = torch.stack([self.gradient(of) for of in z])
                p = z.detach().softmax(-1)
                total = total + jacobian.T @ (p.diag() - p[:, None] * p[None, :]) @ jacobian
                number += 1
        assert isinstance(total, Tensor)
        return total / number

    def move(self, step: Tensor) -> None:
        with torch.no_grad():
            for p, s in zip(self.parameters, step.split([p.numel() for p in self.parameters]), strict=True):
                p += s.view_as(p)


SMALL = {"vocab_size": VOCABULARY, "hidden": 8, "layers": 1, "n_positions": 16, "dtype": torch.float64}


@pytest.mark.parametrize("budget", [12, 1000])
def test_the_step_is_that_of_dense_matrices(budget):
    """A small model in float64, some of it frozen; a demonstration in the batch is no state of the Fisher matrix."""
    policy, algorithm = tiny_policy(**SMALL), trpo(cg_steps=400, delta=0.03)
    for name, p in policy.model.named_parameters():
        p.requires_grad_("mlp" not in name)
    given = Group(Prompt((3, 1)), (Completion((5, 9, 2), role="target"),))
    minibatch = prepared(policy, algorithm, [*sampled(0), given])
    dense = Dense(policy, minibatch)
    old = dense.log_probs()
    loss = dense.loss(old)
    g, fisher = -dense.gradient(loss), dense.fisher()
    assert 100 < len(g) < 800
    x = torch.linalg.solve(fisher + 0.1 * torch.eye(len(g)), g)
    expected = x * (2 * 0.03 / (x @ fisher @ x)).sqrt()

    before = weights(policy)
    metrics = TrustRegionLearner(policy, algorithm, tokens_per_micro=budget).update(minibatch).metrics
    scale = 0.8 ** metrics["trust_region/backtracks"]
    assert metrics["trust_region/accepted"] == 1
    assert metrics["trust_region/cg_residual"] < 1e-6
    assert metrics["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
    torch.testing.assert_close(weights(policy) - before, scale * expected, rtol=1e-4, atol=1e-6)
    # The scale is the first at which the step is inside.
    distance, improvement = torch.tensor(0.0), 0.0
    for trial in (0.8**j for j in range(int(metrics["trust_region/backtracks"]) + 1)):
        dense.move(trial * expected)
        distance = torch.stack([(o.exp() * (o - n)).sum() for o, n in zip(old, dense.log_probs(), strict=True)]).mean()
        improvement = loss.item() - dense.loss(old).item()
        dense.move(-trial * expected)
        assert (trial == scale) == (distance.item() <= 0.03 and improvement > 0)
    assert metrics["trust_region/kl"] == pytest.approx(distance.item(), rel=1e-4)
    assert metrics["trust_region/improvement"] == pytest.approx(improvement, rel=1e-4)


# --- on models -------------------------------------------------------------------------------------------------------


def exact_kl(old: Policy, new: Policy, groups: list[Group]) -> float:
    """Mean KL(old‖new) over trained tokens, row by row, by the textbook."""
    found = []
    for _, group, y in rows_of(groups):
        n = len(group.prompt.ids)
        row = torch.tensor([group.prompt.ids + y.ids])
        p, q = (
            (policy.model(row, use_cache=False).logits[0].double() / y.temperature).log_softmax(-1)[n - 1 : -1]
            for policy in (old, new)
        )
        trained = torch.tensor(y.trained or [True] * len(y.ids))
        found.append((p.exp() * (p - q)).sum(-1)[trained])
    return torch.cat(found).mean().item()


@pytest.mark.parametrize(
    ("arch", "dtype"), [("qwen3", torch.float32), ("gemma2", torch.float32), ("qwen3", torch.bfloat16)]
)
def test_every_step_stays_inside_and_improves(arch, dtype):
    policy, algorithm = tiny_policy(arch, vocab_size=VOCABULARY, dtype=dtype), trpo(delta=0.02)
    learner = TrustRegionLearner(policy, algorithm, tokens_per_micro=40)
    for seed in range(3):
        groups, old = sampled(seed), policy.snapshot()
        metrics = learner.update(prepared(policy, algorithm, groups)).metrics
        assert metrics["trust_region/accepted"] == 1
        assert 0.001 < metrics["trust_region/kl"] <= 0.02
        assert metrics["trust_region/improvement"] > 0.01
        assert metrics["ratio/min"] == metrics["ratio/max"] == 1
        for each in (old, new := policy.snapshot()):
            each.model.set_attn_implementation("eager")
        assert exact_kl(old, new, groups) == pytest.approx(
            metrics["trust_region/kl"], rel=1e-2 if dtype.itemsize == 4 else 0.3
        )


def test_a_rejected_step_leaves_the_weights_as_they_were():
    """A step that lands outside if it is not shortened."""
    shortened = TrustRegionLearner(policy := tiny_policy("qwen3", vocab_size=VOCABULARY), trpo(), tokens_per_micro=64)
    assert shortened.update(prepared(policy, trpo(), sampled(1))).metrics["trust_region/backtracks"] > 0
    policy, algorithm = tiny_policy("qwen3", vocab_size=VOCABULARY), trpo(backtracks=1)
    before = weights(policy)
    metrics = (
        TrustRegionLearner(policy, algorithm, tokens_per_micro=64)
        .update(prepared(policy, algorithm, sampled(1)))
        .metrics
    )
    assert (metrics["trust_region/accepted"], metrics["trust_region/backtracks"]) == (0, 1)
    assert metrics["trust_region/kl"] == metrics["trust_region/improvement"] == 0
    assert metrics["grad_norm"] > 0
    assert torch.equal(weights(policy), before)


def test_equal_rewards_ask_for_no_step():
    policy, algorithm = tiny_policy(**SMALL), trpo()
    groups = [replace(g, completions=tuple(replace(c, reward=1.0) for c in g.completions)) for g in sampled(2)]
    before = weights(policy)
    metrics = (
        TrustRegionLearner(policy, algorithm, tokens_per_micro=64).update(prepared(policy, algorithm, groups)).metrics
    )
    assert metrics["grad_norm"] == metrics["trust_region/accepted"] == metrics["trust_region/backtracks"] == 0
    assert torch.equal(weights(policy), before)


@pytest.mark.parametrize("what", ["weights", "gradient"])
def test_non_finite_numbers_stop_before_the_step(what, monkeypatch):
    policy, algorithm = tiny_policy(**SMALL), trpo()
    learner = TrustRegionLearner(policy, algorithm, tokens_per_micro=64)
    minibatch = prepared(policy, algorithm, sampled(1))
    if what == "weights":
        with torch.no_grad():
            policy.model.get_input_embeddings().weight[5] = math.nan  # type: ignore[index]
        expected = "log-probs of row .* are not finite"
    else:
        policy.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient / 0)  # type: ignore[union-attr]
        expected = r"the gradient is not finite \(first in 'transformer.wte.weight'\); no weight was changed"
    before = weights(policy)
    with pytest.raises(GroError, match=expected):
        learner.update(minibatch)
    torch.testing.assert_close(weights(policy), before, equal_nan=True, rtol=0, atol=0)
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_gradient_outside_the_samples_distributions_has_no_length():
    policy, algorithm = tiny_policy(**SMALL), trpo(terms=(Term(rows="targets", value=lambda a: a + 1),))  # type: ignore[arg-type]
    given = [Group(Prompt((3, 1)), (Completion((5, 9, 2), role="target"),))]
    with pytest.raises(GroError, match="sets no length: xᵀFx is 0"):
        TrustRegionLearner(policy, algorithm, tokens_per_micro=64).update(prepared(policy, algorithm, given))


def test_memory_is_bounded_by_the_bytes_of_logits(monkeypatch):
    """Packs of one row each, where the logits of two would be too many; the same step."""
    algorithm, steps, packs = trpo(), [], []
    for limit in (1 << 20, VOCABULARY * 8 * 3):
        policy = tiny_policy(**SMALL)
        monkeypatch.setattr(trust_region, "LOGIT_BYTES", limit)
        monkeypatch.setattr(
            trust_region._Distributions,
            "logits",
            lambda self, pack, at, inner=trust_region._Distributions.logits: (
                packs.append(len(pack.rows)),
                inner(self, pack, at),
            )[1],
        )
        packs.clear()
        TrustRegionLearner(policy, algorithm, tokens_per_micro=1000).update(prepared(policy, algorithm, sampled(4)))
        steps.append((max(packs), weights(policy)))
    assert [most for most, _ in steps] == [9, 1]
    torch.testing.assert_close(steps[0][1], steps[1][1])


def test_the_policy_scores_as_before():
    """Attention, checkpointing and padding are put back, though the step runs without them."""
    policy, algorithm = tiny_policy("gemma2", vocab_size=VOCABULARY), trpo()
    policy.checkpoint_activations()
    padding = policy.model.get_input_embeddings().padding_idx  # type: ignore[union-attr]
    assert padding is not None
    flags = [m.training for m in policy.model.modules()]
    assert any(flags)
    TrustRegionLearner(policy, algorithm, tokens_per_micro=64).update(prepared(policy, algorithm, sampled(0)))
    assert [m.training for m in policy.model.modules()] == flags
    assert policy.model.config._attn_implementation == "gro"
    assert policy.model.get_input_embeddings().padding_idx == padding  # type: ignore[union-attr]


# --- over processes --------------------------------------------------------------------------------------------------


def stepped(groups: list[Group], processes: Processes) -> tuple[Tensor, dict[str, float]]:
    """(weights after a step, its metrics)."""
    policy, algorithm = tiny_policy(**SMALL), trpo()
    minibatch, _ = prepare(
        collate(groups, length_limit=8),
        policy,
        None,
        algorithm,
        {},
        tokens_per_micro=64,
        updates=1,
        processes=processes,
    )
    learner = TrustRegionLearner(policy, algorithm, tokens_per_micro=64, processes=processes)
    metrics = learner.update(minibatch).metrics
    return weights(policy), metrics


def worker(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(stepped(sampled(5, groups=4), Processes.current()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path):
    spawn(worker, args=(str(tmp_path),), nprocs=2)
    expected, metrics = stepped(sampled(5, groups=4), ALONE)
    assert metrics["trust_region/accepted"] == 1
    for rank in range(2):
        found, same = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        for name in ("loss", "grad_norm", *(n for n in metrics if n.startswith("trust_region/"))):
            assert same[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-9)
