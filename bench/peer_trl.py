"""TRL's side of the comparison: its trainers through their public configuration; runs in TRL's own environment.

`python bench/peer_trl.py '<Job as JSON>'`, driven by `bench/run.py` over stdin and stdout.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from common import GROUP_SIZE, MAX_LENGTH, NEW_TOKENS, PAIRS_PER_STEP, PROMPTS_PER_STEP, Job, Turns, digest, read_jsonl
from datasets import Dataset, disable_progress_bars  # pyright: ignore[reportMissingImports]
from reward import even_share
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

JOB = Job.from_json(sys.argv[1])
TURNS = Turns()
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "disable_dropout": True,
}
BEST: dict[str, dict[str, Any]] = {
    "dpo": {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"},
    "grpo": {"per_device_train_batch_size": 4},
}
"""The fastest of what `bench/run.py --explore` measured.  The step is the same: gradients of small batches are
accumulated.  On a processor that wins by far, because TRL pads every row of a batch to its longest and computes the
head, in tiles of up to 4,096 positions × the vocabulary, for prompts and padding too."""


class Steps(TrainerCallback):
    """Lets the trainer's own loop take turns, and passes on what it logs."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        TURNS.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        TURNS.stop_clock()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            kept = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected", "reward", "entropy")
            TURNS.note(**{k: logs[k] for k in kept if k in logs})


def arguments(output: str) -> dict[str, Any]:
    """Keyword arguments of the config: the best known, then the job's overrides."""
    per_step = PAIRS_PER_STEP if JOB.kind == "dpo" else PROMPTS_PER_STEP * GROUP_SIZE
    chosen = COMMON | BEST[JOB.kind] | JOB.options
    chosen.setdefault("gradient_accumulation_steps", per_step // chosen["per_device_train_batch_size"])
    attention = chosen.pop("attn_implementation", "sdpa")
    return chosen | {
        "output_dir": output,
        "max_steps": JOB.steps,
        "learning_rate": JOB.learning_rate,
        "seed": JOB.seed,
        "model_init_kwargs": {"dtype": torch.float32, "attn_implementation": attention},
    }


def dpo(output: str) -> DPOTrainer:
    """Pairs in file order.  The reference is a second copy of the starting weights, scored in every step."""
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in read_jsonl(JOB.data)]
    return DPOTrainer(
        model=JOB.model,
        args=DPOConfig(beta=0.1, max_length=MAX_LENGTH, **arguments(output)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(JOB.model),
        callbacks=[Steps()],
    )


def grpo(output: str) -> GRPOTrainer:
    """Questions in file order, group z-scored rewards, no KL term; every completion is exactly `NEW_TOKENS` long."""
    rows = [{"prompt": row["prompt"]} for row in read_jsonl(JOB.data)]
    tokenizer = AutoTokenizer.from_pretrained(JOB.model)

    def reward(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        values = even_share(completion_ids)
        assert {len(ids) for ids in completion_ids} == {NEW_TOKENS}, "a completion stopped early"
        if JOB.dump:
            with open(JOB.dump, "a") as out:
                prompt_ids = [tokenizer(p).input_ids for p in prompts]
                out.write(json.dumps({"prompts": prompt_ids, "completions": completion_ids, "rewards": values}) + "\n")
        return values

    trainer = GRPOTrainer(
        model=JOB.model,
        reward_funcs=reward,
        args=GRPOConfig(
            beta=0.0,
            loss_type="grpo",
            num_generations=GROUP_SIZE,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            shuffle_dataset=False,
            **arguments(output),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    prepare = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        with TURNS.clock("generation"):
            return prepare(inputs)

    trainer._generate_and_score_completions = timed
    # No token ends a completion: equal work on both sides, without the cost of a processor that forbids it.
    trainer.generation_config.eos_token_id = None
    trainer.model.generation_config.eos_token_id = None
    trainer.eos_token_ids = [-1]
    return trainer


def main() -> None:
    """Loads, says what it loaded, trains when told to."""
    torch.set_num_threads(JOB.threads)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as output:
        trainer = {"dpo": dpo, "grpo": grpo}[JOB.kind](output)
        if JOB.kind == "dpo":
            columns = ("prompt_ids", "chosen_ids", "rejected_ids")
            ids = digest([row[c] for c in columns] for row in trainer.train_dataset)
        else:
            ids = digest([trainer.processing_class(row["prompt"]).input_ids] for row in trainer.train_dataset)
        TURNS.ready(ids=ids, threads=torch.get_num_threads())
        trainer.train()
    TURNS.done()


if __name__ == "__main__":
    main()
