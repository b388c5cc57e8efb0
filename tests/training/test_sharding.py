"""Weights that are cut over processes: gradients, steps, copies, states and samples are those of one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from test_processes import CASES, VOCABULARY, check_same, groups_for, learnt
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from transformers import AutoModelForCausalLM

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.policy.sharding import mesh_of, whole_tensor
from gro.policy.spec import LoraSettings
from gro.runs import files
from gro.training.batching import collate
from gro.training.checkpoint import Carried, Keeper, export, newest
from gro.training.critic import CriticLearner
from gro.training.learner import PolicyLearner
from gro.training.prepare import Reference, prepare
from gro.training.processes import Processes
from gro.training.settings import Optimization
from gro.training.shared import SharedEngine
from gro.types import Prompt
from tiny import tiny_model, tiny_tokenizer

GRADIENTS = ("sft", "dpo", "grpo", "ppo", "ppo, shared trunk")
KINDS = ("plain", "untied", "checkpointing", "lora", "reward model", "bf16", "offload")
SHARDS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "2 of 2": (2, 0, KINDS),
    "2 × 2 of 4": (4, 2, ("plain",)),
    "4 of 4": (4, 0, ()),
}
"""How many processes, over how many of them weights are cut, and what is trained there besides one gradient."""
STEPS = Optimization(learning_rate=3e-3, weight_decay=0.1, max_grad_norm=0.5)
PROMPTS = [Prompt((3 + i, 5, 7 + i), key=i) for i in range(5)]


# --- what is compared ------------------------------------------------------------------------------------------------


def policy_of(kind: str = "plain") -> Policy:
    """Small, but with everything that can go wrong: sizes that nothing divides, tied weights, several layers."""
    model = tiny_model(
        vocab_size=VOCABULARY + 1,
        hidden=16,
        layers=2,
        dtype=torch.float32 if kind == "bf16" else torch.float64,
        tie_word_embeddings=kind != "untied",
    )
    policy = Policy(model, tiny_tokenizer(), layout="shared", autocast="bfloat16" if kind == "bf16" else None)
    if kind == "lora":
        policy.adapt(LoraSettings(rank=3))
    if kind == "checkpointing":
        policy.checkpoint_activations()
    return policy


class Trained:
    """A policy with a critic of its own, or a reward model, some steps of training at a time."""

    def __init__(self, kind: str, processes: Processes, cut: Callable[[Any], object] = lambda model: None) -> None:
        self.processes = processes
        self.algorithm: Algorithm = build("bradley_terry" if kind == "reward model" else "ppo")
        self.policy = policy_of(kind)
        self.critic: Critic | None = None
        if kind == "reward model":
            self.policy = RewardModel.beside(self.policy)
        cut(self.policy)
        how: dict[str, Any] = {"total_updates": 8, "tokens_per_micro": 20, "processes": processes}
        self.learners: list[Any] = [PolicyLearner(self.policy, self.algorithm, STEPS, entropy=False, **how)]
        if kind != "reward model":
            self.critic = Critic.beside(self.policy)
            self.learners.append(CriticLearner(self.critic, self.algorithm, STEPS, **how))
        self.reference = Reference(self.policy.snapshot(), processes)
        groups = groups_for(self.algorithm)
        self.groups = [judged(g) for g in groups] if kind == "reward model" else groups
        self.state: dict[str, float] = {}

    def step(self) -> None:
        """On the same groups each time."""
        minibatch, self.state = prepare(
            collate(self.groups, length_limit=8),
            self.policy,
            self.reference,
            self.algorithm,
            self.state,
            tokens_per_micro=20,
            updates=1,
            critic=self.critic,
            processes=self.processes,
        )
        for learner in self.learners:
            learner.update(minibatch)

    @property
    def descents(self) -> dict[str, Any]:
        return dict(zip(("policy", "critic"), (learner.descent for learner in self.learners), strict=False))

    def weights(self) -> dict[str, Tensor]:
        """Whole."""
        models = {"policy": self.policy.trained()} | ({"critic": self.critic.trained()} if self.critic else {})
        return {f"{m} {n}": whole_tensor(t).clone() for m, tensors in models.items() for n, t in tensors.items()}


@cache
def alone(kind: str) -> dict[str, Tensor]:
    """The weights after three steps of one process."""
    trained = Trained(kind, Processes())
    for _ in range(3):
        trained.step()
    return trained.weights()


def carried_of(trained: Trained, *, elastic: bool = False, events: list[str] | None = None) -> Carried:
    run = SimpleNamespace(event=lambda level, message: (events if events is not None else []).append(message))
    source: Any = SimpleNamespace(state=dict, load=lambda state: None)
    recorder: Any = SimpleNamespace(ended=None, state=dict, load=lambda state: None, run=run)
    references = {"reference": trained.reference}
    processes, critic = trained.processes, trained.critic
    return Carried(trained.policy, source, recorder, trained.descents, critic, references, processes, elastic=elastic)


def gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[n] - t).abs().max().item() for n, t in expected.items())


# --- what each of the processes does ---------------------------------------------------------------------------------


def worker(rank: int, size: int, shard: int, folder: str, names: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh: Any = mesh_of(shard, "cpu")
    processes = Processes.current(lockstep=True)
    found: dict[str, Any] = {name: learnt(name, processes, cut=lambda model: model.shard(mesh)) for name in names}
    for kind in kinds:
        trained = Trained(kind, processes, lambda model, k=kind: model.shard(mesh, offload=k == "offload"))
        for _ in range(3):
            trained.step()
        found[kind] = trained.weights()
        if kind == "plain":
            found |= copies(trained, folder) | samples(trained)
            found |= nothing_asked(mesh, processes) | resumed(mesh, processes, Path(folder))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def copies(trained: Trained, folder: str) -> dict[str, Any]:
    """Of a policy whose weights are cut: parts, a snapshot that stays as it was, a whole one, an exported one."""
    policy, before = trained.policy, trained.weights()
    local = sum(t.to_local().numel() for t in policy.trained().values() if isinstance(t, DTensor))
    numbers = sum(t.numel() for t in policy.trained().values())
    (pack,) = policy.packs(trained.groups, 10**6)
    with torch.no_grad():
        logp = policy.logp(pack).logp_RT
        snapshot = policy.snapshot()
        known = policy.whole().logp(pack).logp_RT - logp
    trained.step()
    with torch.no_grad():
        moved = policy.logp(pack).logp_RT - logp
        still = snapshot.logp(pack).logp_RT - logp
        policy.follow(snapshot)
        back = policy.logp(pack).logp_RT - logp
    export(snapshot, Path(folder) / "model", trained.processes)
    return {
        "share": local / numbers,
        "exported": {n: t for n, t in before.items() if n.startswith("policy")},
        "cut": all(isinstance(t, DTensor) for t in snapshot.trained().values()),
        "gaps": [float(t.abs().max()) for t in (known, still, back)],
        "moved": float(moved.abs().max()),
    }


def samples(trained: Trained) -> dict[str, Any]:
    """What is sampled from the weights after three steps; of five prompts, four processes have one each or two."""
    engine = SharedEngine(LocalEngine.of(trained.policy), trained.processes)
    return {"samples": drawn(engine, 5), "sample of one": drawn(engine, 1)}


def drawn(engine: Any, prompts: int) -> list[list[tuple[int, ...]]]:
    sampling = Sampling(max_new_tokens=6, temperature=0.8)
    answers = engine.generate(PROMPTS[:prompts], 3, sampling, seed=1, step=2)
    return [[c.ids for c in completions] for completions in answers]


def nothing_asked(mesh: Any, processes: Processes) -> dict[str, Any]:
    """A step on groups whose rewards are all equal, after one on others: no weight may move."""
    trained = Trained("plain", processes, lambda model: model.shard(mesh))
    trained.algorithm = trained.learners[0].algorithm = build("dr_grpo")
    trained.learners = trained.learners[:1]
    trained.step()
    before = trained.weights()
    same = [replace(g, completions=tuple(replace(c, reward=0.5) for c in g.completions)) for g in trained.groups]
    trained.groups = same
    trained.step()
    return {"moved by nothing": gap(trained.weights(), before)}


def resumed(mesh: Any, processes: Processes, folder: Path) -> dict[str, Any]:
    """A state after one step, written while the next one is made, and gone on from."""
    trained = Trained("plain", processes, lambda model: model.shard(mesh))
    trained.step()
    trained.reference.refresh(trained.policy)
    keeper = Keeper(folder, carried_of(trained), every=1)
    keeper(1, {"number": 0.1})
    trained.step()  # it is being written meanwhile
    keeper(2, {})
    keeper.finish()
    trained.step()
    assert newest(folder) == (folder / "state" / "step-2", [])
    found: dict[str, Any] = {"went on": trained.weights()}
    again = Trained("plain", processes, lambda model: model.shard(mesh))
    at = carried_of(again).load(folder / "state" / "step-1")
    found["step"], found["state"] = at.steps, dict(at.state)
    again.step()
    again.step()
    found["resumed"] = again.weights()
    if processes.first:
        blocked = folder / "state" / "step-9"
        blocked.mkdir()
        (blocked / "full").touch()
    dist.barrier()
    keeper(9, {})  # the failure shows at the next
    with pytest.raises(GroError, match="step-9 was not written"):
        keeper.finish()
    return found


def continued(rank: int, size: int, shard: int, folder: str, state: str) -> None:
    """On another number of processes than the state is of."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh = mesh_of(shard, "cpu")
    processes = Processes.current(lockstep=mesh is not None)
    trained = Trained("plain", processes, lambda model: None if mesh is None else model.shard(mesh))
    with pytest.raises(GroError, match=r"2 processes, its weights cut over 2; here are 4, .*elastic: true"):
        carried_of(trained).load(Path(state))
    events: list[str] = []
    carried_of(trained, elastic=True, events=events).load(Path(state))
    trained.step()
    trained.step()
    torch.save({"weights": trained.weights(), "events": events}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*list(SHARDS)[:2], pytest.param("4 of 4", marks=pytest.mark.slow)])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of the processes found, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("cut")
    size, shard, kinds = SHARDS[request.param]
    spawn(worker, args=(size, shard, str(folder), GRADIENTS, kinds), nprocs=size)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def trained_there(each: tuple[Path, list[dict[str, Any]]], kind: str = "plain") -> list[dict[str, Any]]:
    if kind not in each[1][0]:
        pytest.skip(f"{kind} is not trained on these processes")
    return each[1]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_one_process(each: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    for found in each[1]:
        check_same(found[name], learnt(name, Processes()))


@pytest.mark.parametrize("kind", ["plain", "untied", "checkpointing", "lora", "reward model"])
def test_steps_are_those_of_one_process(each: tuple[Path, list[dict[str, Any]]], kind: str) -> None:
    start = Trained(kind, Processes()).weights()
    for found in trained_there(each, kind):
        assert gap(found[kind], start) > 1e-3
        assert gap(found[kind], alone(kind)) < 1e-9


def test_offloading_to_the_processor_changes_nothing(each: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in trained_there(each, "offload"):
        assert gap(found["offload"], found["plain"]) == 0


def test_bf16_layers_keep_master_weights_and_sums_in_float32(each: tuple[Path, list[dict[str, Any]]]) -> None:
    """One process runs the same layers under autocast; only the norms' weights are rounded here and not there.

    The bound is a tenth of the way that three steps go (measured: 0.04).
    """
    start = Trained("bf16", Processes()).weights()
    for found in trained_there(each, "bf16"):
        assert {t.dtype for t in found["bf16"].values()} == {torch.float32}
        difference = torch.cat([(found["bf16"][n] - t).flatten() for n, t in alone("bf16").items()])
        moved = torch.cat([(t - start[n]).flatten() for n, t in alone("bf16").items()])
        assert difference.norm() < 0.1 * moved.norm()


def test_copies_and_exports_are_equal_to_the_bit(each: tuple[Path, list[dict[str, Any]]]) -> None:
    parts = [found["share"] for found in trained_there(each)]
    assert max(parts) < 0.6  # about a half each, of sizes that two does not divide
    for found in each[1]:
        assert found["cut"]
        assert found["gaps"][1:] == [0.0, 0.0]
        assert found["gaps"][0] < 1e-12
        assert found["moved"] > 1e-3
    files.verify_directory(each[0] / "model")
    exported = load_file(each[0] / "model" / "model.safetensors")
    expected = each[1][0]["exported"]
    assert {f"policy {name}" for name in exported} == expected.keys()
    assert all(torch.equal(tensor, expected[f"policy {name}"]) for name, tensor in exported.items())
    assert json.loads((each[0] / "model" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    plain = AutoModelForCausalLM.from_pretrained(each[0] / "model", dtype=torch.float64)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert torch.equal(plain.lm_head.weight, expected["policy model.embed_tokens.weight"])


def test_samples_are_those_of_one_process(each: tuple[Path, list[dict[str, Any]]]) -> None:
    policy = policy_of()
    policy.load_trained({n.removeprefix("policy "): t for n, t in alone("plain").items() if n.startswith("policy")})
    engine = LocalEngine(policy.model)
    for found in trained_there(each):
        assert found["samples"] == drawn(engine, 5)
        assert found["sample of one"] == drawn(engine, 1)


def test_no_weight_moves_where_nothing_can_be_learnt(each: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["moved by nothing"] for found in trained_there(each)] == [0.0] * len(each[1])


@pytest.mark.fault("X4", "N6")
def test_a_state_is_gone_on_from_to_the_bit(each: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in trained_there(each):
        assert (found["step"], found["state"]) == (1, {"number": 0.1})
        assert gap(found["went on"], found["resumed"]) == 0


@pytest.mark.fault("X4")
@pytest.mark.slow
@pytest.mark.timeout(1200)  # fourteen processes import torch, one after the other on a busy machine
def test_on_other_processes_a_state_is_refused_or_asked_for(tmp_path: Path) -> None:
    """Of two processes, then on four, on groups of two among four, on four with all weights each, and on one."""
    (tmp_path / "two").mkdir()
    spawn(worker, args=(2, 0, str(tmp_path / "two"), (), ("plain",)), nprocs=2)
    state = tmp_path / "two" / "state" / "step-1"
    expected = torch.load(tmp_path / "two" / "0.pt")["resumed"]
    for number, shard in enumerate((0, 2, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        spawn(continued, args=(4, shard, str(folder), str(state)), nprocs=4)
        for rank in range(4):
            found = torch.load(folder / f"{rank}.pt")
            assert gap(found["weights"], expected) < 1e-9
            assert ["rounding differs" in event for event in found["events"]] == [True]
    trained = Trained("plain", Processes())
    with pytest.raises(GroError, match=r"2 processes, its weights cut over 2; here are 1, cut over 1"):
        carried_of(trained).load(state)
    carried_of(trained, elastic=True).load(state)
    trained.step()
    trained.step()
    assert gap(trained.weights(), expected) < 1e-9


@pytest.mark.slow
def test_every_algorithm_has_the_gradient_of_one_process(tmp_path: Path) -> None:
    spawn(worker, args=(2, 0, str(tmp_path), tuple(CASES), ()), nprocs=2)
    for found in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        for name in CASES:
            check_same(found[name], learnt(name, Processes()))


def test_processes_that_cannot_be_grouped_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mesh_of(0, "cpu") is None
    assert mesh_of(1, "cpu") is None
    with pytest.raises(GroError, match=r"distributed.shard: 3, but 1 processes were started"):
        mesh_of(3, "cpu")
