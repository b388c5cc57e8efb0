"""A score per completion: what plain transformers computes, whoever the batch mates are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from gro.errors import GroError
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.types import Completion, Group, Prompt, rows_of
from tiny import tiny_model, tiny_tokenizer

VOCABULARY = 320


def some_groups(seed: int = 0, groups: int = 4) -> list[Group]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high)))

    return [Group(Prompt(ids(1, 6), key=k), tuple(Completion(ids(1, 7)) for _ in range(3))) for k in range(groups)]


def reward_model(arch: str = "qwen3", seed: int = 0) -> RewardModel:
    model = RewardModel.beside(Policy(tiny_model(arch, seed=seed), tiny_tokenizer()))
    torch.manual_seed(seed + 1)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_judged_groups_score_one_place_behind_the_last_token():
    group = judged(Group(Prompt((5,)), (Completion((7, 8), reward=1.0, logp=(-1.0, -2.0), temperature=0.5),)))
    (completion,) = group.completions
    assert completion.ids[:2] == (7, 8)
    assert completion.trained == (False, False, True)
    assert (completion.reward, completion.logp, completion.temperature) == (1.0, None, 1.0)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_a_language_model_is_not_taken_for_a_reward_model(arch: str, tmp_path: Path):
    Policy(tiny_model(arch), tiny_tokenizer()).save(tmp_path)
    with pytest.raises(GroError) as refused:
        RewardModel.read(tmp_path, device="cpu")
    assert str(refused.value) == (
        f"{tmp_path} is not a reward model: it has no score head (score.weight); `gro reward-model` makes one"
    )


def test_a_reward_model_that_lost_a_tensor_is_told_from_a_language_model(tmp_path: Path):
    reward_model().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(GroError, match=r": 1 tensors of the model are not in its files: model\.norm\.weight"):
        RewardModel.read(tmp_path, device="cpu")


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gpt2", "gpt_neox", "gemma2", "mistral"])
def test_scores_are_those_of_plain_transformers(arch: str, tmp_path: Path):
    ours = reward_model(arch)
    groups = some_groups()
    scores_B = ours.scores(groups, 64)
    ours.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_labels == 1
    for (_, group, completion), score in zip(rows_of(groups), scores_B, strict=True):
        row = torch.tensor([[*group.prompt.ids, *completion.ids]])
        with torch.no_grad():
            torch.testing.assert_close(plain(row).logits[0, 0], score, rtol=0, atol=2e-5)
    again = RewardModel.read(tmp_path, device="cpu")
    torch.testing.assert_close(again.scores(groups, 64), scores_B, rtol=0, atol=1e-6)


def test_scores_do_not_depend_on_batch_mates_budget_or_order():
    model, groups = reward_model(), some_groups(3, groups=6)
    together = model.scores(groups, 10_000)
    assert together.std() > 0.1
    alone = torch.cat([model.scores([g], 1) for g in groups])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    backwards = torch.cat(model.scores(groups[::-1], 50).split(3)[::-1])
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-5)


def test_the_policy_it_was_made_from_is_untouched():
    policy = Policy(tiny_model(), tiny_tokenizer())
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    model = RewardModel.beside(policy)
    assert not bool(model.scores(some_groups(), 100).any()), "a new head gives 0 to everything"
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(1.0)
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert policy.model.get_output_embeddings().weight.shape[0] == VOCABULARY  # type: ignore[union-attr]
