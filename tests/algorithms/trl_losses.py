"""TRL's side of `test_trl.py`: its trainers' own scoring and loss on given log-probs; runs where TRL is installed.

`python tests/algorithms/trl_losses.py` reads {"cases": [...], "logp", "old", "ref", "rewards"} as JSON from stdin, rows
of log-probs without padding, and answers a list of {"loss", "gradient"} to stdout, the gradient of each token.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).parents[1]))
from datasets import Dataset, disable_progress_bars  # pyright: ignore[reportMissingImports]
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from tiny import tiny_model, tiny_tokenizer

COMMON: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
PROMPT = 7
"""The one token of every prompt."""


class Given:
    """The log-probs in the place of a model's."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.rewards: list[float] = given["rewards"]
        self.lengths = [len(row) for row in given["logp"]]
        self.logp_BT, self.old_BT, self.ref_BT = (self._padded(given[name]) for name in ("logp", "old", "ref"))
        self.mask_BT = self._padded([[1.0] * n for n in self.lengths]).long()
        self.logp_BT.requires_grad_()

    @staticmethod
    def _padded(rows: list[list[float]]) -> Tensor:
        return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)

    def answer(self, loss: Tensor) -> dict[str, Any]:
        """The loss and its gradient, token by token."""
        (gradient_BT,) = torch.autograd.grad(loss, self.logp_BT)
        rows = [row[:n].tolist() for row, n in zip(gradient_BT, self.lengths, strict=True)]
        return {"loss": float(loss), "gradient": rows}


def grpo(given: Given, group_size: int, limit: int, config: dict[str, Any], output: str) -> dict[str, Any]:
    """GRPOTrainer credits the rewards and computes the loss; only sampling and log-probs are given."""
    rows = len(given.lengths)
    trainer = GRPOTrainer(
        model=f"{output}/model",
        reward_funcs=lambda completions, **columns: given.rewards,
        args=GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=rows,
            num_generations=group_size,
            max_completion_length=limit,
            num_iterations=2,  # so that it keeps the old log-probs
            **COMMON,
            **config,
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * rows),
        processing_class=tiny_tokenizer(),
    )
    ids = [[9] * n for n in given.lengths]
    trainer._generate = lambda prompts: ([[PROMPT]] * rows, ids, None, [""] * rows, None, {}, None, None)

    def scored(model: Any, *args: Any, **more: Any) -> tuple[Tensor, Tensor, None]:
        if model is trainer.ref_model and model is not None:
            logp_BT = given.ref_BT
        else:
            logp_BT = given.logp_BT if torch.is_grad_enabled() else given.old_BT
        return logp_BT, torch.zeros_like(logp_BT), None

    trainer._get_per_token_logps_and_entropies = scored
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * rows)
    return given.answer(trainer._compute_loss(trainer.model, inputs))


def dpo(given: Given, config: dict[str, Any], output: str) -> dict[str, Any]:
    """DPOTrainer on rows of which the first of every two is the chosen one."""
    trainer = DPOTrainer(
        model=f"{output}/model",
        args=DPOConfig(output_dir=output, **COMMON, **config),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    order = [*range(0, len(given.lengths), 2), *range(1, len(given.lengths), 2)]  # all chosen, then all rejected
    mask_BT, logp_BT = given.mask_BT[order], given.logp_BT[order]
    prompt_B1 = torch.zeros_like(mask_BT[:, :1])

    def model(**inputs: Any) -> SimpleNamespace:
        zero_BT = torch.zeros_like(logp_BT.detach())
        return SimpleNamespace(log_probs=logp_BT, entropy=zero_BT, mean_logits=zero_BT, is_top1=zero_BT.bool())

    trainer.precompute_ref_logps = True
    ref_chosen, ref_rejected = given.ref_BT[order].sum(1).chunk(2)
    completion_mask = torch.cat([prompt_B1, mask_BT], dim=1)
    inputs = {
        "input_ids": torch.full_like(completion_mask, 9),
        "attention_mask": torch.cat([prompt_B1 + 1, mask_BT], dim=1),
        "completion_mask": completion_mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return given.answer(trainer._compute_loss(model, inputs, False))


def main() -> None:
    """Answers every case."""
    torch.set_num_threads(1)
    disable_progress_bars()
    job, answers = json.load(sys.stdin), []
    for case in job["cases"]:
        given = Given(job)
        with tempfile.TemporaryDirectory() as output:
            tiny_model("qwen3").save_pretrained(f"{output}/model")  # TRL loads the reference from where the model is
            if case["trainer"] == "grpo":
                answers.append(grpo(given, job["group_size"], job["limit"], case["config"], output))
            else:
                answers.append(dpo(given, case["config"], output))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
