"""Tokens per second of the local engine against `model.generate`, on the same model, prompts and lengths.

    python bench/decode.py [--repeats 5] [--only fixed] [--threads 2]

The two are interleaved, and medians of the repeats are compared.  The model has random weights, so its
distribution is nearly flat; ragged lengths are made by declaring one token in forty an end token, to both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.engines.lowered import lowered
from gro.types import Prompt


@dataclass(frozen=True, slots=True)
class Case:
    """One workload."""

    prompts: int
    n: int
    prompt_tokens: tuple[int, int]
    """Shortest and longest."""
    max_new: int
    ragged: bool = False
    slots: int = 512
    batch: int = 512
    """Rows of one call to `generate`."""
    model: str = "16M"


CASES = {
    "fixed": Case(prompts=4, n=8, prompt_tokens=(100, 100), max_new=128),
    "grpo": Case(prompts=4, n=8, prompt_tokens=(60, 140), max_new=128),
    "ragged": Case(prompts=4, n=8, prompt_tokens=(60, 140), max_new=128, ragged=True),
    "ragged-256": Case(prompts=32, n=8, prompt_tokens=(60, 140), max_new=128, ragged=True, slots=32, batch=32),
    "long-prompt": Case(prompts=4, n=8, prompt_tokens=(600, 1000), max_new=64),
    "short": Case(prompts=64, n=8, prompt_tokens=(9, 9), max_new=5, model="1M"),
}


def build(size: str) -> PreTrainedModel:
    """A Qwen3 of about that many parameters, with random weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "16M": {
            "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 64, "intermediate_size": 1024, "vocab_size": 16384,
        },
        "1M": {
            "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "intermediate_size": 384, "vocab_size": 64,
        },
    }[size]  # fmt: skip
    config = Qwen3Config(max_position_embeddings=2048, tie_word_embeddings=True, **shape)
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def stop_ids(case: Case, vocab: int) -> tuple[int, ...]:
    """One token in forty."""
    return tuple(range(3, vocab, 40)) if case.ragged else ()


def make_prompts(case: Case, vocab: int) -> list[Prompt]:
    """Random ids."""
    rng = torch.Generator().manual_seed(1)
    low, high = case.prompt_tokens
    lengths = torch.randint(low, high + 1, (case.prompts,), generator=rng).tolist()
    return [
        Prompt(ids=tuple(torch.randint(3, vocab, (length,), generator=rng).tolist()), key=key)
        for key, length in enumerate(lengths)
    ]


def run_engine(engine: LocalEngine, case: Case, prompts: list[Prompt], repeat: int) -> int:
    """New tokens."""
    stops = stop_ids(case, engine.model.config.vocab_size)
    sampling = Sampling(max_new_tokens=case.max_new, stop_ids=stops)
    groups = engine.generate(prompts, case.n, sampling, seed=0, step=repeat)
    return sum(len(c.ids) for group in groups for c in group)


def run_generate(model: PreTrainedModel, case: Case, prompts: list[Prompt], repeat: int) -> int:
    """New tokens; left padding, rows of one call sorted by length, as one would."""
    stops = stop_ids(case, model.config.vocab_size)
    rows = [p.ids for p in sorted(prompts, key=lambda p: len(p.ids)) for _ in range(case.n)]
    total = 0
    torch.manual_seed(repeat)
    for start in range(0, len(rows), case.batch):
        batch = rows[start : start + case.batch]
        width = max(map(len, batch))
        ids = torch.tensor([(0,) * (width - len(r)) + r for r in batch])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in batch])
        out = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids, attention_mask=mask, max_new_tokens=case.max_new, do_sample=True, top_k=0, top_p=1.0,
            eos_token_id=list(stops) or None, pad_token_id=0,
        )  # fmt: skip
        new = out[:, width:]
        ended = torch.isin(new, torch.tensor(stops, dtype=torch.int64)).int()
        total += int((ended.cumsum(1) - ended == 0).sum())
    return total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="sample from a bfloat16 copy of the weights; generate too")
    parser.add_argument("--cpu-time", action="store_true", help="not wall time: for a busy machine, with 1 thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(f"{'case':<12} {'generate tok/s':>15} {'gro tok/s':>10} {'ratio':>6} {'gro seconds':>12}")
    for name, case in CASES.items():
        if args.only not in (None, name):
            continue
        model = build(case.model)
        prompts = make_prompts(case, model.config.vocab_size)
        engine = LocalEngine(model, slots=case.slots, compute_dtype=torch.bfloat16 if args.bf16 else None)
        runs = {
            "generate": partial(run_generate, lowered(model, torch.bfloat16) if args.bf16 else model, case, prompts),
            "gro": partial(run_engine, engine, case, prompts),
        }
        rates: dict[str, list[float]] = {"generate": [], "gro": []}
        seconds: list[float] = []
        with torch.no_grad():
            for repeat in range(args.repeats + 1):
                for label, run in runs.items():
                    begin = clock()
                    tokens = run(repeat)
                    spent = clock() - begin
                    if repeat:  # the first is warm-up
                        rates[label].append(tokens / spent)
                        if label == "gro":
                            seconds.append(spent)
        theirs, ours = statistics.median(rates["generate"]), statistics.median(rates["gro"])
        ratio = statistics.median(o / t for o, t in zip(rates["gro"], rates["generate"], strict=True))
        spent = statistics.median(seconds)
        print(f"{name:<12} {theirs:>15.0f} {ours:>10.0f} {ratio:>6.2f} {spent:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
