"""LoRA: what an adapter computes, what stays as it was, what copies share, and what is written."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.engines.lowered import lowered
from gro.errors import GroError
from gro.policy import adapter as adapters
from gro.policy.critic import Critic
from gro.policy.policy import Layout, Policy
from gro.policy.reward_model import RewardModel
from gro.policy.spec import LoraSettings
from gro.training.trust_region import _Vector
from gro.types import Prompt, rows_of
from policy.oracle import ids, shapes, stock_logp, upcasts_to_float64, upstream
from tiny import tiny_model, tiny_tokenizer

GROUPS = shapes((9, (7, 1, 12)), (1, (5, 1)), (6, (1,)), (2, (2, 2)))
RANK_4 = LoraSettings(rank=4, alpha=6.0)


def plain(arch: str = "qwen3", **how: Any) -> Policy:
    return Policy(tiny_model(arch, **how), tiny_tokenizer(), layout="shared")


def adapted(arch: str = "qwen3", settings: LoraSettings = RANK_4, *, seed: int = 0, **how: Any) -> Policy:
    policy = plain(arch, **how)
    policy.adapt(settings, seed=seed)
    return policy


def move(policy: Policy | Critic, seed: int = 3, by: float = 0.2) -> None:
    """As training would, but at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.trained().values():
            tensor += by * torch.randn(tensor.shape, generator=generator).to(tensor)


def scores(policy: Policy) -> Tensor:
    (pack,) = policy.packs(GROUPS, 10**6)
    return policy.logp(pack).logp_RT.detach()


# --- what it computes ------------------------------------------------------------------------------------------------


class Dense:
    """The textbook: plain weights W + alpha/rank · B·A, one unpadded row at a time, full logits."""

    def __init__(self, model: PreTrainedModel, settings: LoraSettings) -> None:
        self.model, self.scale = model.requires_grad_(False), settings.alpha / settings.rank
        self.parts: dict[str, Tensor] = {}

    def take(self, trained: dict[str, Tensor]) -> None:
        self.parts = {name: t.detach().clone().requires_grad_() for name, t in trained.items()}

    def logits(self, **inputs: Any) -> Any:
        weights = {}
        for name, a_RI in self.parts.items():
            layer, found, _ = name.partition(".lora_A.")
            if found:
                delta = self.scale * self.parts[name.replace("lora_A", "lora_B")] @ a_RI
                w = self.model.get_parameter(f"{layer}.weight")
                weights[f"{layer}.weight"] = w + (
                    delta if isinstance(self.model.get_submodule(layer), nn.Linear) else delta.T
                )
        return torch.func.functional_call(self.model, weights, kwargs=inputs)


def worst_gaps(policy: Policy, dense: Dense, budget: int) -> tuple[float, float]:
    """Of log-probs, and of gradients relative to the largest."""
    rows, in_logp = rows_of(GROUPS), 0.0
    for pack in policy.packs(GROUPS, budget):
        logp_RT = policy.logp(pack).logp_RT
        push_RT = torch.zeros_like(logp_RT)
        for r, row in enumerate(pack.rows):
            _, group, completion = rows[row]
            n = len(completion.ids)
            truth = stock_logp(dense.logits, group, completion)  # type: ignore[arg-type]
            push_RT[r, :n] = upstream(row, n).to(truth)
            truth.backward(push_RT[r, :n])
            in_logp = max(in_logp, float((logp_RT[r, :n] - truth).detach().abs().max()))
        logp_RT.backward(push_RT)
    pairs = [(t.grad, dense.parts[name].grad) for name, t in policy.trained().items()]
    assert all(a is not None and b is not None for a, b in pairs)
    scale = max(float(b.abs().max()) for _, b in pairs)  # type: ignore[union-attr]
    return in_logp, max(float((a - b).abs().max()) for a, b in pairs) / scale  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arch", "layout"), [("qwen3", "shared"), ("qwen3", "rows"), ("gpt2", "shared"), ("gemma2", "shared")]
)
def test_equals_dense_weights_in_float64(arch: str, layout: Layout) -> None:
    with upcasts_to_float64():
        policy = Policy(tiny_model(arch, dtype=torch.float64), tiny_tokenizer(), layout=layout)
        policy.adapt(RANK_4)
        move(policy)
        dense = Dense(tiny_model(arch, dtype=torch.float64), RANK_4)
        dense.take(policy.trained())
        in_logp, in_gradient = worst_gaps(policy, dense, budget=40)
    assert in_logp < 1e-12
    assert in_gradient < 1e-12


@pytest.mark.parametrize(
    ("targets", "checkpointed"), [("all-linear", False), ("all-linear", True), (("q_proj", "down_proj"), False)]
)
def test_equals_dense_weights_in_float32(targets: Any, checkpointed: bool) -> None:
    settings = LoraSettings(rank=2, alpha=1.0, targets=targets)
    policy = plain("llama", initializer_range=0.1)
    if checkpointed:
        policy.checkpoint_activations()
    policy.adapt(settings)
    move(policy, by=0.1)
    dense = Dense(tiny_model("llama", initializer_range=0.1), settings)
    dense.take(policy.trained())
    in_logp, in_gradient = worst_gaps(policy, dense, budget=10**6)
    assert in_logp < 2e-6
    assert in_gradient < 2e-6
    layers = {name.split(".")[-4] for name in policy.trained()}
    assert layers == ({"q_proj", "down_proj"} if targets != "all-linear" else set(PROJECTIONS))


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_beside_half_precision_weights_it_is_float32() -> None:
    policy = adapted(dtype=torch.bfloat16)
    assert {t.dtype for t in policy.trained().values()} == {torch.float32}
    move(policy, by=0.05)
    wide = adapted(dtype=torch.float32)
    wide.follow(policy)
    wide.model.load_state_dict(policy.model.state_dict())
    assert 0 < float((scores(policy) - scores(wide)).abs().max()) < 0.5
    (pack,) = policy.packs(GROUPS, 10**6)
    policy.logp(pack).logp_RT.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in policy.trained().values())


def test_first_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = adapted(seed=5).trained()
    model = tiny_model()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    again = Policy(model, tiny_tokenizer(), layout="shared")
    again.adapt(RANK_4, seed=5)
    assert torch.equal(torch.rand(3), expected), "torch's own generator was used"
    other = adapted(seed=6).trained()
    for name, tensor in first.items():
        assert torch.equal(tensor, again.trained()[name])
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < float(tensor.detach().abs().max()) <= bound
    a = [
        t
        for name, t in first.items()
        if name.endswith(("q_proj.lora_A.default.weight", "k_proj.lora_A.default.weight"))
    ]
    assert not torch.equal(a[0], a[1]), "layers begin alike"


# --- what stays, and what copies share -------------------------------------------------------------------------------


def test_only_the_adapter_trains() -> None:
    policy = adapted()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    trained = policy.trained()
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == trained.keys()
    assert list(_Vector(policy.model).named) == list(trained)
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        (pack,) = policy.packs(GROUPS, 10**6)
        policy.logp(pack).logp_RT.sum().neg().backward()
        optimizer.step()
    for name, p in policy.model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in trained), name


def test_a_snapshot_of_a_new_adapter_is_the_start() -> None:
    start = scores(plain())
    policy = adapted()
    reference = policy.snapshot()
    assert torch.equal(scores(policy), start)
    for _ in range(2):
        assert torch.equal(scores(reference), start)
        move(policy)
    assert float((scores(policy) - start).abs().max()) > 0.1
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert all(t.requires_grad for t in policy.trained().values())

    calls: list[int] = []
    for module in reference.model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
    scores(reference)
    assert not calls, "what changes nothing is computed"


def test_copies_share_what_does_not_train() -> None:
    policy = adapted()
    move(policy)
    places = {p.data_ptr() for p in policy.model.parameters()}
    own = sum(t.numel() for t in policy.trained().values())
    for other in (policy.snapshot(), policy.twin(), Critic.beside(policy).trunk, RewardModel.beside(policy)):
        extra = sum(p.numel() for p in other.model.parameters() if p.data_ptr() not in places)
        assert extra == own + (policy.model.config.hidden_size if isinstance(other, RewardModel) else 0)


def test_several_snapshots_at_once() -> None:
    policy = adapted()
    move(policy, seed=1)
    first, was = policy.snapshot(), scores(policy)
    move(policy, seed=2)
    second, then = policy.snapshot(), scores(policy)
    move(policy, seed=3)
    now = scores(policy)
    assert torch.equal(scores(first), was)
    assert torch.equal(scores(second), then)
    assert torch.equal(scores(policy), now)
    assert len({float(x.sum()) for x in (was, then, now)}) == 3
    first.follow(policy)
    assert torch.equal(scores(first), now)
    assert torch.equal(scores(second), then)
    assert not any(p.requires_grad for p in first.model.parameters())


def test_a_snapshot_that_was_at_rest_follows() -> None:
    policy = adapted()
    reference, start = policy.snapshot(), scores(policy)
    empty = {name: t.clone() for name, t in policy.trained().items()}
    move(policy)
    reference.follow(policy)
    assert torch.equal(scores(reference), scores(policy))
    reference.load_trained(empty)
    assert torch.equal(scores(reference), start)


def test_follow_without_an_adapter() -> None:
    policy = plain()
    reference, start = policy.snapshot(), scores(policy)
    move(policy)
    assert torch.equal(scores(reference), start)
    reference.follow(policy)
    assert torch.equal(scores(reference), scores(policy))
    assert not any(p.requires_grad for p in reference.model.parameters())


def test_a_snapshot_scored_between_forward_and_backward_disturbs_nothing() -> None:
    gradients = []
    for disturbed in (False, True):
        policy = adapted()
        policy.checkpoint_activations()
        move(policy, seed=1)
        reference = policy.snapshot()
        move(policy, seed=2)
        (pack,) = policy.packs(GROUPS, 10**6)
        logp_RT = policy.logp(pack).logp_RT
        if disturbed:
            scores(reference)
            with pytest.raises(AttributeError):
                reference.logp(None)  # type: ignore[arg-type]
        logp_RT.sum().backward()
        gradients.append([t.grad for t in policy.trained().values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_trains_can_be_taken_elsewhere() -> None:
    policy = adapted()
    move(policy)
    kept = {name: t.clone() for name, t in policy.trained().items()}
    again = adapted(seed=9)
    again.load_trained(kept)
    assert torch.equal(scores(again), scores(policy))
    with pytest.raises(GroError, match=r"lora_A.*shape"):
        adapted(settings=LoraSettings(rank=5)).load_trained(kept)
    with pytest.raises(GroError, match="missing, unknown"):
        plain().load_trained(kept)


# --- critics and reward models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_critic_keeps_what_it_learns(shared: bool, tmp_path: Path) -> None:
    policy = adapted()
    critic = Critic.on(policy) if shared else Critic.beside(policy)
    base = {n: p.clone() for n, p in policy.model.named_parameters()}
    assert critic.parameters.keys() == critic.trained().keys()
    assert all("lora" in name or name.startswith("head.") for name in critic.trained())
    assert len(critic.trained()) == 2 + (0 if shared else len(policy.trained()))
    move(critic)
    assert all(torch.equal(p, base[n]) for n, p in policy.model.named_parameters())
    critic.save(tmp_path)
    assert load_file(tmp_path / "critic.safetensors").keys() == critic.trained().keys()
    again = Critic.on(policy) if shared else Critic.beside(policy)
    again.restore(tmp_path)
    (pack,) = policy.packs(GROUPS, 10**6)
    assert torch.equal(again.values(pack), critic.values(pack))
    assert critic.values(pack).any()


def test_a_critic_with_an_adapter_of_its_own() -> None:
    policy = adapted()
    places = {p.data_ptr() for p in policy.model.parameters()}
    critic = Critic.beside(policy, lora=LoraSettings(rank=2, targets=("q_proj",)))
    names = [name for name in critic.trained() if "lora" in name]
    assert len(names) == 2 * 2
    assert all("q_proj" in name for name in names)
    bases = [p for n, p in critic.trunk.model.named_parameters() if ".lora_" not in n]
    assert all(p.data_ptr() in places for p in bases)
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == policy.trained().keys()
    move(policy)
    with pytest.raises(GroError, match=r"critic\.lora: given, but the policy starts with an adapter"):
        Critic.beside(policy, lora=LoraSettings(rank=2))


def test_a_critic_with_an_adapter_beside_a_policy_without() -> None:
    policy = plain()
    critic = Critic.beside(policy, lora=RANK_4)
    assert all("lora" in name or name.startswith("head.") for name in critic.parameters)
    assert all(p.requires_grad for p in policy.model.parameters()), "the policy is trained in full"
    (pack,) = policy.packs(GROUPS, 10**6)
    hidden = critic.trunk.hidden(pack).detach()
    move(policy)
    assert torch.equal(critic.trunk.hidden(pack), hidden), "it follows the policy"


def test_a_loaded_critic_has_an_adapter_as_the_policy(tmp_path: Path) -> None:
    plain(seed=4).save(tmp_path)
    critic = Critic.load(tmp_path, adapted(settings=LoraSettings(rank=3)))
    assert {t.shape[0] for n, t in critic.trained().items() if "lora_A" in n} == {3}
    assert "trunk.embed_tokens.weight" not in critic.parameters
    full = Critic.load(tmp_path, plain())
    assert "trunk.embed_tokens.weight" in full.parameters


def test_a_reward_model_is_exported_whole_and_apart(tmp_path: Path) -> None:
    from peft import PeftModel

    plain().save(tmp_path / "base")
    model = RewardModel.beside(Policy.load(tmp_path / "base", device="cpu", lora=RANK_4))
    assert {n for n, p in model.model.named_parameters() if p.requires_grad} == model.trained().keys()
    move(model)
    expected = model.scores(GROUPS, 10**6)
    twin = model.copy()
    move(twin)
    assert torch.equal(model.scores(GROUPS, 10**6), expected)
    assert not torch.equal(twin.scores(GROUPS, 10**6), expected)
    model.save(tmp_path / "scores")
    again = RewardModel.read(tmp_path / "scores", device="cpu")
    torch.testing.assert_close(again.scores(GROUPS, 10**6), expected, atol=1e-5, rtol=1e-5)

    start: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    theirs: Any = PeftModel.from_pretrained(start, str(tmp_path / "scores" / "adapter")).eval()
    for score, (_, group, completion) in zip(expected, rows_of(GROUPS), strict=True):
        row = torch.tensor([[*group.prompt.ids, *completion.ids]])
        hidden = theirs.base_model.model.model(input_ids=row).last_hidden_state[0, -1]
        torch.testing.assert_close(theirs.base_model.model.score(hidden)[0], score, atol=1e-5, rtol=1e-5)

    more = RewardModel.read(tmp_path / "scores", device="cpu", lora=RANK_4)
    assert len(more.trained()) == len(model.trained())
    assert {n for n, p in more.model.named_parameters() if p.requires_grad} == more.trained().keys()
    assert torch.equal(more.scores(GROUPS, 10**6), again.scores(GROUPS, 10**6))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "tied"), [("qwen3", False), ("llama", True), ("gpt2", True)])
def test_export(arch: str, tied: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    plain(arch, tie_word_embeddings=tied).save(tmp_path / "base")
    policy = Policy.load(tmp_path / "base", device="cpu", lora=RANK_4)
    move(policy, by=0.1)
    expected = scores(policy)
    policy.save(tmp_path / "out")
    assert torch.equal(scores(policy), expected), "saving changes it"

    merged = Policy.load(tmp_path / "out", device="cpu")
    torch.testing.assert_close(scores(merged), expected, atol=2e-5, rtol=0)
    was, now = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert was.keys() == now.keys()
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    assert len(changed) == len(policy.trained()) // 2
    assert not any("embed" in name or "wte" in name or "norm" in name for name in changed)

    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    start: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(start, str(tmp_path / "out" / "adapter"))
    row = torch.tensor([ids(9, 1)])
    torch.testing.assert_close(theirs(input_ids=row).logits, stock(input_ids=row).logits, atol=5e-5, rtol=1e-5)
    assert theirs.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")

    # The adapter's folder stands for the model: whole, or to be trained on.
    whole = Policy.load(tmp_path / "out" / "adapter", device="cpu")
    assert torch.equal(scores(whole), scores(merged))
    assert whole.trained().keys() == Policy.load(tmp_path / "base", device="cpu").trained().keys()
    assert all(p.requires_grad for p in whole.model.parameters())
    assert not adapters.layers_of(whole.model)
    on = Policy.load(tmp_path / "out" / "adapter", device="cpu", lora=RANK_4)
    assert torch.equal(scores(on), expected)
    assert all(torch.equal(t, policy.trained()[name]) for name, t in on.trained().items())
    assert {n for n, p in on.model.named_parameters() if p.requires_grad} == on.trained().keys()

    # Its reference is the start with that adapter, and not the base.
    reference = on.snapshot()
    move(on)
    assert torch.equal(scores(reference), expected)


def test_what_is_written_does_not_depend_on_the_order_of_a_set(tmp_path: Path) -> None:
    """peft keeps targets in a set, which every process orders otherwise; a run knows its start by the file's hash."""
    adapted(settings=LoraSettings(rank=2)).save(tmp_path)
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 7
    assert targets == sorted(targets)


def test_export_rounds_once_to_the_type_of_the_weights(tmp_path: Path) -> None:
    policy = adapted(dtype=torch.bfloat16)
    move(policy, by=0.1)
    policy.save(tmp_path)
    name = "model.layers.1.mlp.up_proj"
    trained = policy.trained()
    a, b = (trained[f"{name}.{part}.default.weight"] for part in ("lora_A", "lora_B"))
    base = tiny_model(dtype=torch.bfloat16).get_parameter(f"{name}.weight")
    exact = base.double() + 1.5 * b.double() @ a.double()
    written = load_file(tmp_path / "model.safetensors")[f"{name}.weight"]
    assert written.dtype == torch.bfloat16
    spacing = exact.abs().clamp_min(1e-3) * 2**-8
    assert bool(((written.double() - exact).abs() <= spacing * 1.001).all())
    assert not torch.equal(written, base)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a model trained from it with its adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    plain().save(folder / "base")
    policy = Policy.load(folder / "base", device="cpu", lora=RANK_4)
    move(policy)
    policy.save(folder / "out")
    return folder


def test_a_moved_run_finds_its_base(made: Path, tmp_path: Path) -> None:
    expected = scores(Policy.load(made / "out" / "adapter", device="cpu"))
    shutil.copytree(made, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    adapter = tmp_path / "second" / "out" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    assert torch.equal(scores(Policy.load(adapter, device="cpu")), expected)
    shutil.rmtree(tmp_path / "second" / "base")
    with pytest.raises(GroError, match=r"the adapter's base model is not there"):
        Policy.load(adapter, device="cpu")


def test_another_base_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    base, adapter = tmp_path / "copy" / "base", tmp_path / "copy" / "out" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    Policy.load(adapter, device="cpu")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GroError, match=r"trained on other weights than those in .*base: their hash was \w{12}, found"):
        Policy.load(adapter, device="cpu")


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def wrong(adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors")

    return wrong


A0 = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "kind": (_config(peft_type="IA3"), r"peft_type is 'IA3'; only LORA"),
    "dora": (_config(use_dora=True), r"use_dora is True, which is not supported"),
    "whole layers": (_config(modules_to_save=["score"]), r"modules_to_save is \['score'\]: .*in which it is merged"),
    "base changed": (_config(init_lora_weights="pissa"), r"init_lora_weights is 'pissa', which changes the base"),
    "head": (_config(target_modules=["lm_head"]), r"'lm_head' is the output embedding"),
    "pattern": (_config(target_modules="(a+)+$"), r"target_modules is '\(a\+\)\+\$'; expected a list"),
    "rank": (_config(r=3), r"lora_A.weight has shape \[4, 32\]; expected \[3, 32\]"),
    "no rank": (_config(r=-1), r"r is -1; expected a number above 0"),
    "fewer targets": (_config(target_modules=["q_proj"]), r"not an adapter for Qwen3ForCausalLM as configured"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json is not valid JSON"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"holds no adapter_model\.safetensors"),
    "truncated": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]),
        r"adapter_model\.safetensors is corrupt",
    ),
    "missing": (_tensors(lambda t: t.pop(A0)), rf"{A0}: it is not among its 27 tensors"),
    "not finite": (_tensors(lambda t: t[A0].fill_(float("nan"))), rf"tensor {A0} has values that are not finite"),
}


@pytest.mark.fault("M1")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_adapter_is_named(name: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out" / "adapter", tmp_path / "adapter")
    spoil, expected = WRONG[name]
    spoil(tmp_path / "adapter")
    with pytest.raises(GroError, match=expected) as refused:
        Policy.load(tmp_path / "adapter", device="cpu")
    assert str(tmp_path) in str(refused.value) or "lora.targets" in str(refused.value)


def test_a_start_with_other_settings_is_refused(made: Path) -> None:
    wanted = LoraSettings(rank=8, alpha=6.0, targets=("q_proj",))
    with pytest.raises(GroError, match=r"rank: 4 there, 8 in the recipe; targets: down_proj, .* there, q_proj in"):
        Policy.load(made / "out" / "adapter", device="cpu", lora=wanted)
    same = LoraSettings(rank=4, alpha=6.0, targets=PROJECTIONS)
    Policy.load(made / "out" / "adapter", device="cpu", lora=same)


@pytest.mark.parametrize(
    ("arch", "targets", "expected"),
    [
        ("qwen3", ("q_porj",), r"Qwen3ForCausalLM has no layer 'q_porj', did you mean 'q_proj'\?"),
        ("qwen3", ("q_proj", "lm_head"), r"'lm_head' is the output embedding of Qwen3ForCausalLM"),
        ("gpt2", ("lm_head",), r"'lm_head' is the output embedding of GPT2LMHeadModel"),
        ("gpt2", ("wte",), r"'wte' is the input embedding"),
        ("qwen3", ("input_layernorm",), r"'input_layernorm' is no linear layer .* but a Qwen3RMSNorm"),
    ],
)
def test_targets_that_cannot_be(
    arch: str, targets: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GroError, match=expected):
        plain(arch).adapt(LoraSettings(targets=targets))
    plain(arch).save(tmp_path)
    monkeypatch.setattr("gro.policy.policy.load", lambda *_, **__: pytest.fail("weights are read first"))
    with pytest.raises(GroError, match=expected):
        Policy.load(tmp_path, device="cpu", lora=LoraSettings(targets=targets))


def test_without_peft(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "peft" else pytest.fail(name))
    for start in ("base", "out/adapter"):
        with pytest.raises(GroError, match=r"pip install 'gro\[lora\]'"):
            Policy.load(made / start, device="cpu", lora=RANK_4)
    Policy.load(made / "out", device="cpu")


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("low", [False, True])
def test_greedy_decoding_is_that_of_transformers(arch: str, low: bool) -> None:
    policy = adapted(arch, dtype=torch.float64)
    engine = LocalEngine(policy.model, compute_dtype=torch.float32 if low else None)
    prompts = [Prompt(ids(n, n), key=n) for n in (7, 3)]
    sampling = Sampling(greedy=True, max_new_tokens=8)
    before = [group[0].ids for group in engine.generate(prompts, 1, sampling, seed=0, step=0)]
    move(policy)
    found = [group[0].ids for group in engine.generate(prompts, 1, sampling, seed=0, step=1)]
    assert found != before, "the engine has not seen the update"
    stock: Any = lowered(policy.model, torch.float32) if low else copy.deepcopy(policy.model)
    stock.set_attn_implementation("eager")
    for prompt, answer in zip(prompts, found, strict=True):
        truth = stock.generate(
            torch.tensor([prompt.ids]), max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert tuple(truth[0, len(prompt.ids) :].tolist()) == answer
