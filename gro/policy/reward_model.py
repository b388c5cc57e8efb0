"""Reward models: one score per completion, from the hidden state of its last token.

R  rows (completions)     T  completion tokens, and one more     M, H  scored tokens, hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from gro.errors import GroError
from gro.policy import adapter as adapters
from gro.policy import adapter_folder
from gro.policy.adapter import Base
from gro.policy.critic import Critic, score_model
from gro.policy.folder import find, inspect
from gro.policy.loading import load_tokenizer, quiet
from gro.policy.packing import Pack
from gro.policy.policy import ADAPTER, Policy
from gro.policy.scoring import Scored, decoder
from gro.policy.spec import LoraSettings
from gro.types import Completion, Group, rows_of

_HEAD = "score.weight"
"""The head's name in what is exported."""
_END = 0
"""What stands behind a completion's last token: it marks the place, and no model ever reads it."""


def judged(group: Group) -> Group:
    """The group as a reward model reads it: only the place behind each completion's last token is scored.

    A score belongs to the whole completion, so it is that of a token which would come next: the packing then needs to
    know nothing of scores, and prompts are shared as everywhere.
    """
    return replace(group, completions=tuple(_judged(c) for c in group.completions))


def _judged(completion: Completion) -> Completion:
    ids = (*completion.ids, _END)
    return replace(completion, ids=ids, trained=(False,) * len(completion.ids) + (True,), logp=None, temperature=1.0)


class RewardModel(Policy):
    """A language model's trunk with a scalar head; `logp` of judged groups is the score.

    It stands where a policy stands: the same packs, learner and loop train it, with an algorithm whose unit is the
    score (Bradley–Terry).

    >>> model = RewardModel.beside(policy)
    >>> scores_B = model.scores(groups, tokens_per_micro=8192)
    """

    def __init__(self, trunk: Policy, head: nn.Linear) -> None:
        """Takes both over.  `trunk` was probed as a language model; its output embedding gives way to the head."""
        self.model, self.tokenizer, self.autocast = trunk.model, trunk.tokenizer, trunk.autocast
        self.layout, self._transform, self.adapter = trunk.layout, trunk._transform, trunk.adapter
        assert trunk.sharding is None, "weights are cut when everything that is learnt is there"
        self.sharding = None
        # Pairs know nothing of a constant, and the format that it is saved in has none.
        if head.bias is not None and bool(head.bias.any()):
            raise GroError("a score head with a bias cannot be saved as a reward model; its bias must be 0")
        plain = nn.Linear(head.in_features, 1, bias=False, device="meta")
        plain.weight = head.weight
        self.model.set_output_embeddings(plain)

    @classmethod
    def beside(cls, policy: Policy) -> RewardModel:
        """A copy of the policy's trunk; every score is 0 at first.  Of one with an adapter only that is copied."""
        critic = Critic.beside(policy)
        return cls(critic.trunk, critic.head)

    @classmethod
    def read(
        cls,
        path_or_name: str | Path,
        *,
        dtype: str = "float32",
        device: str = "auto",
        allow_pickle: bool = False,
        autocast: Literal["bfloat16"] | None = None,
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> RewardModel:
        """A sequence-classification model in Hugging Face format that gives one score, with its tokenizer.

        The arguments are those of `Policy.load`.

        Raises:
            GroError: what is wrong with it, by file and tensor.
        """
        folder = inspect(find(path_or_name), allow_pickle=allow_pickle)
        tokenizer = load_tokenizer(folder.path)
        model, head = score_model(folder, getattr(torch, dtype), allow_pickle)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        trunk = Policy(model.to(device), tokenizer, autocast=autocast)  # type: ignore[arg-type]
        scores = cls(trunk, head.to(device))
        if lora is not None:
            base = adapter_folder.base_of(adapter_folder.Place(str(path_or_name)), folder)
            scores.adapt(lora, seed=seed, base=base)
        return scores

    _trunk_only = True  # the head is one row

    @property
    def head(self) -> nn.Linear:
        """H → 1, float32 at least."""
        found = self.model.get_output_embeddings()
        assert isinstance(found, nn.Linear)
        return found

    def logp(self, pack: Pack, *, entropy: bool = False) -> Scored:
        """The scores of a pack of judged groups, in their one place per row; differentiable."""
        hidden_MH = self.hidden(pack)
        score_M = self.head(hidden_MH.to(self.head.weight.dtype))[:, 0]
        return Scored(pack.scatter(score_M), None, hidden_MH)

    def adapt(self, settings: LoraSettings, *, seed: int = 0, base: Base | None = None) -> None:
        """As `Policy.adapt`; the head trains as before."""
        super().adapt(settings, seed=seed, base=base)
        self.head.requires_grad_(True)

    def trained(self) -> dict[str, Tensor]:
        """As `Policy.trained`; the head is always among them."""
        head = self.head.weight
        name = next(n for n, p in self.model.named_parameters() if p is head)
        return super().trained() | {name: head}

    def copy(self) -> RewardModel:
        """Another one with the same weights, to be trained on its own."""
        return self.twin()

    @torch.no_grad()
    def scores(self, groups: Sequence[Group], tokens_per_micro: int) -> Tensor:
        """float [B] the score of every completion, in the order of `rows_of(groups)`."""
        groups = [judged(g) for g in groups]
        scores_B = torch.zeros(len(rows_of(groups)), device=self.device)
        for pack in self.packs(groups, tokens_per_micro):
            scores_B[pack.rows_R] = self.logp(pack).logp_RT.sum(1).float()
        return scores_B

    def reload(self, path: str | Path) -> None:
        """Takes what `save` wrote of a copy of this model, to the bit; GroError where it is of another one."""
        if self.adapter is None:
            dtype = str(self.model.dtype).removeprefix("torch.")
            self.load_trained(RewardModel.read(path, dtype=dtype, device=str(self.device)).trained())
            return
        adapter_folder.load_weights(Path(path) / ADAPTER, self.model, {_HEAD: self.head.weight})

    def save(self, path: str | Path) -> None:
        """Writes a Hugging Face sequence-classification model with one label, and the tokenizer.

        An adapter is merged there, and lies beside it together with the head, in peft's format.
        """
        config = type(self.model.config).from_dict(self.model.config.to_dict())
        config.num_labels = 1
        if config.pad_token_id is None:  # plain transformers finds a row's last token by what follows it
            config.pad_token_id = self.tokenizer.pad_token_id
        with quiet():
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(config)
            setattr(model, model.base_model_prefix, decoder(self.model))
            model.score = self.head
            model.save_pretrained(path, state_dict=None if self.adapter is None else adapters.merged_state(model))
        self.tokenizer.save_pretrained(path)
        if self.adapter is not None:
            adapter_folder.write(Path(path) / ADAPTER, self.adapter, model, {_HEAD: self.head.weight})
