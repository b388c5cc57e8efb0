"""Values: a linear head on the hidden state that predicts each token, whoever owns the trunk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from gro.errors import GroError
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.types import Completion, Group, rows_of
from policy.oracle import shapes
from tiny import tiny_model, tiny_tokenizer

GROUPS = shapes((5, (3, 1, 4)), (1, (2,)), (7, (6, 6)))


def policy(arch: str = "qwen3", seed: int = 0) -> Policy:
    return Policy(tiny_model(arch, seed=seed), tiny_tokenizer())


def lively(critic: Critic) -> Critic:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        critic.head.weight.copy_(torch.randn(critic.head.weight.shape, generator=generator))
        critic.head.bias.fill_(0.25)
    return critic


def by_the_book(model: PreTrainedModel, critic: Critic, group: Group, completion: Completion) -> Tensor:
    """[tokens] values of one plain row, by the stock model's hidden states."""
    row = torch.tensor([[*group.prompt.ids, *completion.ids]])
    hidden_NH = model(input_ids=row, use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    return hidden_NH[len(group.prompt.ids) - 1 : -1] @ critic.head.weight[0] + critic.head.bias


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("budget", [10**6, 9])
def test_values_are_of_the_state_before_each_token(arch: str, shared: bool, budget: int) -> None:
    trained = policy(arch)
    critic = lively(Critic.on(trained) if shared else Critic.beside(trained))
    rows = rows_of(GROUPS)
    for pack in critic.trunk.packs(GROUPS, budget, width=6):
        values_RT = critic.values(pack)
        for r, row in enumerate(pack.rows):
            _, group, completion = rows[row]
            expected_T = by_the_book(tiny_model(arch), critic, group, completion)
            torch.testing.assert_close(values_RT[r, : len(completion.ids)], expected_T, atol=2e-5, rtol=1e-4)
            assert not values_RT[r, len(completion.ids) :].any()


def test_every_value_is_0_at_first() -> None:
    trained = policy()
    for critic in (Critic.on(trained), Critic.beside(trained)):
        (pack,) = critic.trunk.packs(GROUPS, 10**6)
        assert not critic.values(pack).any()


@pytest.mark.parametrize("shared", [False, True])
def test_whose_weights_values_move(shared: bool) -> None:
    """A critic of its own moves its copy; a shared one only its head, unless it is read in the policy's own pass."""
    trained = policy()
    critic = lively(Critic.on(trained) if shared else Critic.beside(trained))
    (pack,) = trained.packs(GROUPS, 10**6)
    critic.values(pack).sum().backward()
    assert all(p.grad is None for p in trained.model.parameters())
    assert all(p.grad is not None for p in critic.parameters.values())
    assert ("trunk.layers.0.mlp.up_proj.weight" in critic.parameters) is not shared
    critic.read(trained.logp(pack).hidden_MH, pack).sum().backward()
    assert trained.model.get_decoder().layers[0].mlp.up_proj.weight.grad.any()  # type: ignore[union-attr]


def test_its_own_copy_does_not_follow_the_policy() -> None:
    trained = policy()
    critic = lively(Critic.beside(trained))
    (pack,) = trained.packs(GROUPS, 10**6)
    before = critic.values(pack)
    with torch.no_grad():
        for p in trained.model.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(critic.values(pack), before, atol=0, rtol=0)


def reward_model(path: Path, labels: int = 1) -> PreTrainedModel:
    """A sequence-classification model with the tiny tokenizer, saved."""
    config = tiny_model("qwen3", seed=3).config
    config.num_labels, config.pad_token_id = labels, 0
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return model


def test_a_reward_model_becomes_a_critic(tmp_path: Path) -> None:
    """Before a token, its value is the score that the reward model gives the text so far."""
    model = reward_model(tmp_path)
    critic = Critic.load(tmp_path, policy())
    assert critic.trunk.layout == "shared"
    (pack,) = critic.trunk.packs(GROUPS, 10**6)
    values_RT = critic.values(pack)
    group, completion = GROUPS[0], GROUPS[0].completions[2]
    for t in range(len(completion.ids)):
        so_far = torch.tensor([[*group.prompt.ids, *completion.ids[:t]]])
        score = model(input_ids=so_far).logits[0, 0]
        torch.testing.assert_close(values_RT[2, t], score, atol=2e-5, rtol=1e-4)
    critic.values(pack).sum().backward()
    assert critic.parameters["trunk.layers.1.mlp.down_proj.weight"].grad is not None


def test_a_causal_model_becomes_a_critic_with_a_new_head(tmp_path: Path) -> None:
    policy(seed=7).save(tmp_path)
    critic = lively(Critic.load(tmp_path, policy()))
    (pack,) = critic.trunk.packs(GROUPS[1:2], 10**6)
    group, completion = GROUPS[1], GROUPS[1].completions[0]
    expected_T = by_the_book(tiny_model(seed=7), critic, group, completion)
    torch.testing.assert_close(critic.values(pack)[0], expected_T, atol=2e-5, rtol=1e-4)


def test_models_that_cannot_be_a_critic(tmp_path: Path) -> None:
    reward_model(tmp_path / "classes", labels=3)
    with pytest.raises(GroError, match="found 3 labels; expected a reward model"):
        Critic.load(tmp_path / "classes", policy())
    policy().save(tmp_path / "other")
    tiny_tokenizer(300).save_pretrained(tmp_path / "other")
    with pytest.raises(GroError, match=r"its tokenizer is not the policy's \(300 and 320 tokens\)"):
        Critic.load(tmp_path / "other", policy())


@pytest.mark.parametrize("shared", [False, True])
def test_saved_and_restored(tmp_path: Path, shared: bool) -> None:
    trained = policy()
    critic = lively(Critic.on(trained) if shared else Critic.beside(trained))
    if not shared:
        with torch.no_grad():
            for p in critic.parameters.values():
                p.add_(0.01)
    critic.save(tmp_path)
    again = Critic.on(trained) if shared else Critic.beside(trained)
    again.restore(tmp_path)
    (pack,) = trained.packs(GROUPS, 10**6)
    torch.testing.assert_close(again.values(pack), critic.values(pack), atol=0, rtol=0)
    other = Critic.beside(trained) if shared else Critic.on(trained)
    with pytest.raises(GroError, match=r"critic\.safetensors: not the weights of this critic"):
        other.restore(tmp_path)
