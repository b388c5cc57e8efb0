"""NaN and infinity at every place of every trainer stop the run before the update, named by step, rows and tensor.

The first step is sound, and its state is saved.  In the second something is made not finite: the weights stay as they
were to the bit, nothing of the step is recorded, and the state on disk is that of the first step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gro.training.learner as learning
import gro.training.prepare as preparing
from gro.algorithms import build
from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy.critic import Critic
from gro.policy.packing import Pack
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.policy.scoring import Scored
from gro.runs.progress import Progress
from gro.runs.reader import RunReader
from gro.runs.store import Run
from gro.training.checkpoint import Carried, Keeper, newest
from gro.training.critic import CriticLearner
from gro.training.descent import Descent
from gro.training.learner import PolicyLearner
from gro.training.loop import train
from gro.training.prepare import Reference
from gro.training.recording import Recorder
from gro.training.settings import Optimization, Portions
from gro.types import Completion, Group, Prompt
from tiny import tiny_model, tiny_tokenizer

TRAINERS = ("sft", "dpo", "grpo", "ppo", "reward model")
VOCABULARY, UNUSED = 320, 319
BAD = 3
"""The row whose numbers are made not finite: the second completion of its step's second prompt, key 11."""


@dataclass
class Steps:
    """A source of two steps, which makes something not finite as it gives the second."""

    steps: list[list[Group]]
    arm: Callable[[], None]
    observed: Mapping[str, float] = field(default_factory=dict)

    def take(self, step: int) -> list[Group]:
        if step == 1:
            self.arm()
        return self.steps[step]

    def receive(self, policy: Policy, step: int) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Trainer:
    """All that a trainer consists of."""

    name: str
    policy: Policy
    algorithm: Algorithm
    portions: Portions
    steps: list[list[Group]]
    learners: list[Any]
    descents: dict[str, Descent]
    reference: Reference | None = None
    critic: Critic | None = None
    hooks: list[Any] = field(default_factory=list)
    """To be removed."""
    before: dict[str, Tensor] = field(default_factory=dict)
    """All weights as the second step found them."""

    def weights(self) -> dict[str, Tensor]:
        """Copies of all that is trained."""
        found = {name: p.detach().clone() for name, p in self.policy.model.named_parameters()}
        own = self.critic.parameters if self.critic is not None else {}
        return found | {f"critic.{name}": p.detach().clone() for name, p in own.items()}


def rows(step: int, trainer: str) -> list[Group]:
    """Two prompts with two completions, or three with one demonstration each."""

    def completion(key: int, i: int) -> Completion:
        ids = tuple(5 + (7 * key + 3 * i + t) % 300 for t in range(3 + i))
        reward = {"dpo": 1.0 - 2 * i, "reward model": 1.0 - 2 * i}.get(trainer, float(i == key % 2))
        drawn: dict[str, Any] = {"finish": "stop", "logp": (-5.0,) * len(ids)} if trainer in ("grpo", "ppo") else {}
        return Completion(ids, reward=reward, version=step, **drawn)

    keys = [10 * step, 10 * step + 1]
    if trainer == "sft":
        keys = [10 * step, 10 * step, 10 * step, 10 * step + 1]
        targets = [replace(completion(k, i), role="target", reward=None) for i, k in enumerate(keys)]
        return [
            Group(Prompt((3, 4 + k, 5 + i), key=k), (t,)) for i, (k, t) in enumerate(zip(keys, targets, strict=True))
        ]
    groups = [Group(Prompt((3, 4 + k), key=k), (completion(k, 0), completion(k, 1))) for k in keys]
    return [judged(g) for g in groups] if trainer == "reward model" else groups


@cache
def parts(trainer: str) -> tuple[Policy, Reference | None, Critic | None]:
    """Models, made once: making one probes it."""
    policy = Policy(tiny_model(layers=1), tiny_tokenizer())
    if trainer == "reward model":
        model = RewardModel.beside(policy)
        with torch.no_grad():
            model.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        return model, None, None
    reference = Reference(policy.snapshot()) if trainer in ("dpo", "grpo", "ppo") else None
    return policy, reference, Critic.beside(policy) if trainer == "ppo" else None


@cache
def start_of(trainer: str) -> dict[str, Tensor]:
    """The models' first weights."""
    policy, _, critic = parts(trainer)
    modules: dict[str, Any] = {"": policy.model} | ({"critic": critic.trunk.model} if critic is not None else {})
    found = {f"{of}/{name}": p.detach().clone() for of, m in modules.items() for name, p in m.named_parameters()}
    return found | ({"head": critic.head.weight.detach().clone()} if critic is not None else {})


def made(name: str) -> Trainer:
    """A trainer at its first weights."""
    policy, reference, critic = parts(name)
    start = start_of(name)
    with torch.no_grad():
        for key, p in policy.model.named_parameters():
            p.copy_(start[f"/{key}"])
            p.grad = None
        if critic is not None:
            for key, p in critic.trunk.model.named_parameters():
                p.copy_(start[f"critic/{key}"])
                p.grad = None
            critic.head.weight.copy_(start["head"])
    if reference is not None:
        reference._known.clear()
    algorithm = {
        "sft": lambda: build("sft"),
        "dpo": lambda: build("dpo"),
        "grpo": lambda: build("grpo"),
        "ppo": lambda: build("ppo", kl=0.05),
        "reward model": lambda: build("bradley_terry"),
    }[name]()
    portions = Portions(steps=2, epochs=2 if name in ("grpo", "ppo") else 1, flat_steps=9, kl_every=0)
    optimization, total = Optimization(learning_rate=1e-3), 2 * portions.updates_per_step
    mover = PolicyLearner(
        policy,
        algorithm,
        optimization,
        total_updates=total,
        tokens_per_micro=1000,
        entropy=name != "reward model",
    )
    learners: list[Any] = [mover]
    descents = {"policy": mover.descent}
    if critic is not None:
        other = CriticLearner(critic, algorithm, optimization, total_updates=total, tokens_per_micro=1000)
        learners.append(other)
        descents["critic"] = other.descent
    steps = [rows(0, name), rows(1, name)]
    return Trainer(name, policy, algorithm, portions, steps, learners, descents, reference, critic)


# --- the places -------------------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch
Inject = Callable[[Trainer, float, Patch], None]


def spoilt(tensor: Tensor, value: float, row: int = BAD) -> Tensor:
    """The tensor with one bad number in this row."""
    tensor = tensor.clone()
    tensor[row, 0] = value
    return tensor


def logits(trainer: Trainer, value: float, patch: Patch) -> None:
    """Of the last hidden states, from which logits and scores are computed."""
    trainer.hooks.append(trainer.policy.model.model.norm.register_forward_hook(lambda *args: args[2] + value))


def log_probs(trainer: Trainer, value: float, patch: Patch) -> None:
    """In the update's own pass only."""
    logp = trainer.policy.logp

    def wrong(pack: Pack, **how: Any) -> Scored:
        scored = logp(pack, **how)
        if not torch.is_grad_enabled() or BAD not in pack.rows:
            return scored
        bad_RT = torch.zeros_like(scored.logp_RT)
        bad_RT[list(pack.rows).index(BAD), 0] = value
        return replace(scored, logp_RT=scored.logp_RT + bad_RT)

    patch.setattr(trainer.policy, "logp", wrong)


def coefficients(trainer: Trainer, value: float, patch: Patch) -> None:
    right = learning.coefficients
    patch.setattr(learning, "coefficients", lambda *args: spoilt(right(*args), value))


def loss(trainer: Trainer, value: float, patch: Patch) -> None:
    patch.setattr(learning, "loss_value", lambda *args: torch.tensor(value))


def gradient(trainer: Trainer, value: float, patch: Patch) -> None:
    weight = trainer.descents["policy"].parameters["model.layers.0.mlp.up_proj.weight"]
    at = torch.tensor([1]), torch.tensor([2])
    trainer.hooks.append(weight.register_hook(lambda grad: grad.index_put(at, torch.tensor(value))))


def reward(trainer: Trainer, value: float, patch: Patch) -> None:
    """Past the checks of the rewards' own processes."""
    groups = trainer.steps[1]
    g, i = (3, 0) if trainer.name == "sft" else (1, 1)
    completions = list(groups[g].completions)
    completions[i] = replace(completions[i], reward=value)
    groups[g] = replace(groups[g], completions=tuple(completions))


def advantage(trainer: Trainer, value: float, patch: Patch) -> None:
    kind = type(trainer.algorithm.credit)
    credit = kind.__call__

    def wrong(self: Any, batch: Any, state: Any) -> Any:
        found_BX, after = credit(self, batch, state)
        return spoilt(found_BX, value), after

    patch.setattr(kind, "__call__", wrong)


def memory(what: str, who: str = "policy") -> Inject:
    def inject(trainer: Trainer, value: float, patch: Patch) -> None:
        descent = trainer.descents[who]
        name = next(n for n in descent.parameters if n.endswith("down_proj.weight"))
        descent.optimizer.state[descent.parameters[name]][what].view(-1)[5] = value

    return inject


def weight(name: str, row: int) -> Inject:
    def inject(trainer: Trainer, value: float, patch: Patch) -> None:
        with torch.no_grad():
            trainer.descents["policy"].parameters[name].view(-1, 32)[row, 0] = value

    return inject


def reference_log_probs(trainer: Trainer, value: float, patch: Patch) -> None:
    assert trainer.reference is not None
    right = trainer.reference.score
    patch.setattr(trainer.reference, "score", lambda *args: spoilt(right(*args), value))


def old_log_probs(trainer: Trainer, value: float, patch: Patch) -> None:
    right, policy = preparing.score, trainer.policy

    def wrong(of: Policy, *args: Any, **how: Any) -> Tensor:
        return spoilt(right(of, *args, **how), value) if of is policy else right(of, *args, **how)

    patch.setattr(preparing, "score", wrong)


def values(trainer: Trainer, value: float, patch: Patch) -> None:
    right = preparing.value
    patch.setattr(preparing, "value", lambda *args, **how: spoilt(right(*args, **how), value))


def values_in_the_update(trainer: Trainer, value: float, patch: Patch) -> None:
    assert trainer.critic is not None
    right = trainer.critic.values

    def wrong(pack: Pack) -> Tensor:
        found_RT = right(pack)
        if not torch.is_grad_enabled():
            return found_RT
        bad_RT = torch.zeros_like(found_RT)
        bad_RT[list(pack.rows).index(BAD), 0] = value
        return found_RT + bad_RT

    patch.setattr(trainer.critic, "values", wrong)


def returns(trainer: Trainer, value: float, patch: Patch) -> None:
    kind: Any = type(trainer.algorithm.credit)
    right = kind.returns
    patch.setattr(kind, "returns", lambda self, batch, state: spoilt(right(self, batch, state), value))


def critic_gradient(trainer: Trainer, value: float, patch: Patch) -> None:
    descent = trainer.descents["critic"]
    name = next(n for n in descent.parameters if n.endswith("up_proj.weight"))
    trainer.hooks.append(descent.parameters[name].register_hook(lambda grad: grad * value))


ROW = r" of row 3 \(prompt 11\) are not finite"
KEYS = r"prompts 10, (10, 10, )?11\)"
EVERYWHERE: dict[str, tuple[Inject, str]] = {
    "logits": (logits, r"(log-probs|the old policy's log-probs) of row 0 \(prompt 10\) are not finite"),
    "log-probs": (log_probs, "log-probs" + ROW),
    "coefficients": (coefficients, "coefficients" + ROW),
    "loss": (loss, f"the loss is not finite.*{KEYS}"),
    "gradient": (gradient, rf"the gradient is not finite \(first in 'model.layers.0.mlp.up_proj.weight'\).*{KEYS}"),
    "reward": (reward, "rewards" + ROW),
    "advantage": (advantage, "advantages" + ROW),
    "exp_avg": (memory("exp_avg"), rf"the optimizer's exp_avg of 'model.*down_proj.weight' is not finite.*{KEYS}"),
    "exp_avg_sq": (memory("exp_avg_sq"), rf"the optimizer's exp_avg_sq of 'model.*' is not finite.*{KEYS}"),
    "weight in use": (
        weight("model.layers.0.mlp.down_proj.weight", 0),
        r"log-probs of row 0 \(prompt 10\) are not finite.*the weight 'model.layers.0.mlp.down_proj.weight' is not",
    ),
    "last weight": (weight("model.norm.weight", 0), "the weight 'model.norm.weight' is not finite"),
    "weight not in use": (
        weight("model.embed_tokens.weight", UNUSED),
        f"the weight 'model.embed_tokens.weight' is not finite.*{KEYS}",
    ),
}
"""What can be made not finite in every trainer, and what is then said."""
SOMEWHERE: dict[tuple[str, str], tuple[Inject, str]] = {
    **{(t, "reference"): (reference_log_probs, "the reference's log-probs" + ROW) for t in ("dpo", "grpo", "ppo")},
    **{(t, "old"): (old_log_probs, "the old policy's log-probs" + ROW) for t in ("grpo", "ppo")},
    ("ppo", "values"): (values, "the critic's values" + ROW),
    ("ppo", "values in the update"): (values_in_the_update, "the critic's values" + ROW),
    ("ppo", "returns"): (returns, "returns" + ROW),
    ("ppo", "critic's gradient"): (critic_gradient, rf"the gradient is not finite \(first in '.*up_proj.*{KEYS}"),
    ("ppo", "critic's exp_avg"): (memory("exp_avg", "critic"), rf"the optimizer's exp_avg of '.*' is not.*{KEYS}"),
}
"""What only some of them have."""
CASES = {(trainer, place): how for place, how in EVERYWHERE.items() for trainer in TRAINERS} | SOMEWHERE
VALUES = (math.nan, math.inf, -math.inf)


def test_there_are_twelve_places_in_five_trainers() -> None:
    assert len(EVERYWHERE) * len(TRAINERS) == 60
    assert len(CASES) == 60 + len(SOMEWHERE)


@pytest.mark.fault("N1")
@pytest.mark.parametrize(
    ("number", "case"), enumerate(CASES), ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_it_stops_before_the_update(
    tmp_path: Path, monkeypatch: Patch, request: pytest.FixtureRequest, number: int, case: tuple[str, str]
) -> None:
    inject, said = CASES[case]
    trainer = made(case[0])
    request.addfinalizer(lambda: [hook.remove() for hook in trainer.hooks])
    critics = case[1].startswith("critic") or case[1] == "values in the update"
    sound: dict[str, Tensor] = {}

    def arm() -> None:
        sound.update(trainer.weights())
        inject(trainer, VALUES[number % 3], monkeypatch)
        trainer.before |= trainer.weights()

    with Run.open(tmp_path / "run", {}) as run:
        recorder = Recorder(run, Progress(2), trainer.policy, trainer.algorithm, trainer.portions)
        source = Steps(trainer.steps, arm)
        references = {"reference": trainer.reference} if trainer.reference is not None else {}
        carried = Carried(trainer.policy, source, recorder, trainer.descents, trainer.critic, references)
        with pytest.raises(GroError) as caught:
            train(
                trainer.policy,
                source,
                trainer.algorithm,
                trainer.learners,
                trainer.portions,
                recorder,
                reference=trainer.reference,
                critic=trainer.critic,
                length_limit=8,
                keep=Keeper(run.path, carried, every=1),
            )
    message = str(caught.value)
    assert message.startswith("step 2: "), message
    assert re.search(said, message), message
    assert "no weight was changed" in message
    for name, weight in trainer.weights().items():
        if not critics or name.startswith("critic."):  # the policy was moved by its own sound update before
            assert torch.equal(weight.view(torch.int32), trainer.before[name].view(torch.int32)), name
    assert all(p.grad is None for descent in trainer.descents.values() for p in descent.parameters.values())
    with RunReader(tmp_path / "run") as reader:
        assert max(reader.metrics()["loss"][0]) == 1, "nothing of the second step is recorded"
    kept, damaged = newest(tmp_path / "run")
    assert kept is not None
    assert (kept.name, damaged) == ("step-1", [])
    for file in kept.glob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point())
    for name, t in load_file(kept / "weights.safetensors").items():
        assert torch.equal(t, sound[name]), name
