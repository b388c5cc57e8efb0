"""TRL's side of `bench/on_cuda.py`, in whichever environment has TRL: `python bench/cuda_trl.py '<Work as JSON>'`.

The last line that it prints is its report as JSON; {"error": ...} where the step does not fit into the device's memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from cuda_work import Clock, Work, even_share, text, words
from datasets import Dataset, disable_progress_bars  # pyright: ignore[reportMissingImports]
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]


class Steps(TrainerCallback):
    """Times the trainer's own steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.logged: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.stop()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.clock.steps[-1] |= {key: logs[key] for key in ("loss", "grad_norm") if key in logs}


def tokenizer_of(work: Work) -> PreTrainedTokenizerFast:
    """The local one as it is: AutoTokenizer would make Qwen's out of its vocabulary, by the model's type."""
    return PreTrainedTokenizerFast.from_pretrained(work.model)


def arguments(work: Work, output: str) -> dict[str, Any]:
    """Of the configuration; the step is the same whatever the batch: gradients of small batches are accumulated."""
    per_step = work.prompts if work.kind == "dpo" else work.rows
    chosen = {"per_device_train_batch_size": per_step} | work.options
    chosen.setdefault("gradient_accumulation_steps", per_step // chosen["per_device_train_batch_size"])
    on_cuda = work.device != "cpu"
    return chosen | {
        "output_dir": output,
        "max_steps": work.steps + work.warm_up,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "bf16": True,  # autocast: the weights are float32
        "use_cpu": not on_cuda,
        "gradient_checkpointing": work.checkpointing,
        "disable_dropout": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": torch.float32, "attn_implementation": "sdpa"},
    }


def dpo(work: Work, output: str, clock: Clock) -> DPOTrainer:
    """Pairs in order, a frozen reference scored in every step."""
    rows = [
        {"prompt": text(prompt), "chosen": " " + text(chosen), "rejected": " " + text(rejected)}
        for prompt, chosen, rejected in words(work)
    ]
    return DPOTrainer(
        model=work.model,
        args=DPOConfig(
            beta=0.1, max_length=work.row_tokens, train_sampling_strategy="sequential", **arguments(work, output)
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(work),
        callbacks=[Steps(clock)],
    )


def grpo(work: Work, output: str, clock: Clock) -> GRPOTrainer:
    """No KL term; every completion has the same length, because no token ends one."""

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        assert {len(ids) for ids in completion_ids} == {work.new_tokens}, "a completion stopped early"
        return [even_share(ids) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=work.model,
        reward_funcs=reward,
        args=GRPOConfig(
            beta=0.0, loss_type="grpo", num_generations=work.group, max_completion_length=work.new_tokens,
            temperature=1.0, shuffle_dataset=False, **arguments(work, output),
        ),
        train_dataset=Dataset.from_list([{"prompt": text(row[0])} for row in words(work)]),
        processing_class=tokenizer_of(work),
        callbacks=[Steps(clock)],
    )  # fmt: skip
    prepare = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        with clock.part("generation"):
            return prepare(inputs)

    trainer._generate_and_score_completions = timed
    trainer.generation_config.eos_token_id = None
    trainer.model.generation_config.eos_token_id = None
    trainer.eos_token_ids = [-1]
    return trainer


def main() -> None:
    """One measurement."""
    disable_progress_bars()
    torch.set_float32_matmul_precision("highest")
    work = Work.from_json(sys.argv[1])
    clock = Clock(work)
    with tempfile.TemporaryDirectory() as output:
        try:
            {"dpo": dpo, "grpo": grpo}[work.kind](work, output, clock).train()
        except torch.OutOfMemoryError:
            print(json.dumps({"error": "does not fit"}))
            return
    print(json.dumps(clock.report()))


if __name__ == "__main__":
    main()
