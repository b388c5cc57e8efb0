"""gro's side of `bench/on_cuda.py`: steps of dpo and grpo on a device, and its attention there against plain rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cuda_work import Clock, Work, even_share, words
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gro.algorithms import build
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.policy import varlen
from gro.policy.policy import Policy
from gro.training.batching import collate
from gro.training.budget import find_budget
from gro.training.learner import PolicyLearner
from gro.training.prepare import Reference, prepare
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64},
    "llama": {"num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 40},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": 40},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 256, "sliding_window": 40},
    "phi3": {"num_key_value_heads": 4, "pad_token_id": 0},
    "gpt2": {},
}
"""Grouped and plain queries, windows in all and in some layers, soft-caps, wide heads, learned positions."""
BY_PARTS = ("gemma2",)
"""Those whose attention the kernel cannot do."""
EXACT = 1e-4
"""float32: largest gap in a log-prob, and in the gradient relative to its norm."""
AS_GOOD = 2.0
"""bfloat16: the packed stream may be so many times as far from float32 as plain rows in bfloat16 are."""


def make_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Random weights in float32 and a tokenizer that reads "w17 w4" as 17, 4; kept from run to run."""
    if (folder / "words.json").exists():
        return folder
    values = dict(shape)
    config = AutoConfig.for_model(
        values.pop("architecture"), **values, max_position_embeddings=32_768, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    names = ["<pad>", "<unk>", "<end>", *(f"w{i}" for i in range(3, shape["vocab_size"]))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<end>", pad_token="<pad>", bos_token="<pad>"
    ).save_pretrained(folder)
    (folder / "words.json").write_text(str(len(names)))  # last: it says that the folder is complete
    return folder


def measure(work: Work) -> dict[str, Any]:
    """Steps of gro: weights and optimizer in float32, forward passes under bfloat16."""
    torch.set_float32_matmul_precision("highest")
    policy = Policy.load(
        work.model, device=work.device, autocast="bfloat16", activation_checkpointing=work.checkpointing
    )
    algorithm = build("dpo") if work.kind == "dpo" else build("grpo", beta=0.0)
    reference = Reference(policy.snapshot()) if work.kind == "dpo" else None
    tokens, said = work.options.get("tokens_per_micro", "auto"), ""
    if tokens == "auto":
        found = find_budget(policy, work.row_tokens, algorithm)
        tokens, said = found.tokens, found.why
    updates = work.steps + work.warm_up
    learner = PolicyLearner(policy, algorithm, Optimization(), total_updates=updates, tokens_per_micro=tokens)
    engine = LocalEngine(policy.model, slots=work.rows, cache_gib=16.0)
    clock = Clock(work)
    for step, prompts in enumerate(_prompts(work)):
        clock.start()
        with clock.part("generation"):
            groups = _pairs(work, step) if work.kind == "dpo" else _sampled(engine, prompts, work, step)
        minibatch, _ = prepare(
            collate(groups, length_limit=None, device=policy.device), policy, reference, algorithm, {},
            tokens_per_micro=tokens, updates=1,
        )  # fmt: skip
        metrics = learner.update(minibatch).metrics
        kept = {"loss": "loss", "grad_norm": "grad_norm", "gap": "sampling/sampling_logp_difference/max"}
        clock.stop(**{name: metrics[key] for name, key in kept.items() if key in metrics})
        engine.update(step + 1)
    return clock.report(tokens_per_micro=tokens, budget=said, layout=policy.layout)


def _prompts(work: Work) -> Iterator[list[Prompt]]:
    rows = words(work)
    for step in range(work.steps + work.warm_up):
        mine = rows[step * work.prompts : (step + 1) * work.prompts]
        yield [Prompt(tuple(row[0]), key=step * work.prompts + i) for i, row in enumerate(mine)]


def _pairs(work: Work, step: int) -> list[Group]:
    rows = words(work)[step * work.prompts : (step + 1) * work.prompts]
    return [
        Group(
            Prompt(tuple(prompt), key=step * work.prompts + i),
            (Completion((*chosen, 2), reward=1.0), Completion((*rejected, 2), reward=-1.0)),
        )
        for i, (prompt, chosen, rejected) in enumerate(rows)
    ]


def _sampled(engine: LocalEngine, prompts: list[Prompt], work: Work, step: int) -> list[Group]:
    sampling = Sampling(max_new_tokens=work.new_tokens, stop_ids=())
    sampled = engine.generate(prompts, work.group, sampling, seed=0, step=step)
    return [
        Group(prompt, tuple(replace(c, reward=even_share(c.ids)) for c in completions))
        for prompt, completions in zip(prompts, sampled, strict=True)
    ]


def check_attention(architecture: str, device: str) -> dict[str, Any]:
    """The packed stream against plain rows: log-probs and gradients, in float32 and in bfloat16.

    In bfloat16 both differ from float32 by rounding; the stream must not differ much more than rows do.
    """
    torch.set_float32_matmul_precision("highest")
    truth_logp, truth_grad, _ = _score(architecture, device, "rows", torch.float32)
    found: dict[str, Any] = {"architecture": architecture}
    logp, grad, calls = _score(architecture, device, "shared", torch.float32)
    found["float32"] = gap = (float((logp - truth_logp).abs().max()), _relative(grad, truth_grad))
    ok = max(gap) < EXACT and calls == 0
    gaps = {}
    for layout in ("rows", "shared"):
        logp, grad, calls = _score(architecture, device, layout, torch.bfloat16)
        gaps[layout] = (float((logp - truth_logp).abs().mean()), _relative(grad, truth_grad))
    found["bfloat16"], found["bfloat16 rows"] = gaps["shared"], gaps["rows"]
    ok &= all(a <= AS_GOOD * b + 1e-3 for a, b in zip(gaps["shared"], gaps["rows"], strict=True))
    found["kernel calls"] = calls
    if device != "cpu":  # on a processor the kernel is never asked
        ok &= (calls > 0) == (architecture not in BY_PARTS)
    return found | {"ok": bool(ok)}


def _score(architecture: str, device: str, layout: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Log-probs, the gradient under an arbitrary upstream, and how often the kernel was called."""
    settings: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 256, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2,
        "initializer_range": 0.05,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(settings | ARCHITECTURES[architecture]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device=device, dtype=dtype)
    calls, real = [0], varlen.varlen_attn

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return real(*arguments, **named)

    varlen.varlen_attn = counted
    try:
        policy = Policy(model, None, layout=layout)  # type: ignore[arg-type]
        groups = _shapes()
        rows = [c for group in groups for c in group.completions]
        found_BT = torch.zeros(len(rows), max(len(c.ids) for c in rows), device=device)
        push_BT = torch.sin(torch.arange(found_BT.numel(), device=device) * 1.3).view_as(found_BT)
        for pack in policy.packs(groups, 400):
            logp_RT = policy.logp(pack).logp_RT
            logp_RT.backward(push_BT[pack.rows_R].to(logp_RT))
            found_BT[pack.rows_R] = logp_RT.detach().float()
    finally:
        varlen.varlen_attn = real
    grads = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return found_BT, torch.cat(grads), calls[0]


def _shapes() -> list[Group]:
    """Long and short prompts with ragged completions, some longer than the windows; one pack each."""
    random = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 320, (n,), generator=random).tolist())

    shapes = [(70, (50, 1, 33)), (1, (5, 60)), (120, (90, 2)), (9, (7, 1, 12, 7))]
    return [Group(Prompt(ids(p), key=k), tuple(Completion(ids(n)) for n in cs)) for k, (p, cs) in enumerate(shapes)]


def _relative(found: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))
