"""Shared prefixes against plain rows: one preference step on real pairs, paired and interleaved.

    python bench/packing.py path/to/hh_harmless.jsonl [--pairs 8] [--steps 5] [--threads 2]

Each repetition times a step of both layouts on the same pairs, one after the other: the reference's forward pass, the
policy's, DPO's coefficients and the backward pass, all pairs in one micro-batch.  Printed are medians, the ratio, the
gap in the gradients (equal work), and the layout's time by kind of operation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gro.policy.create import create_model, train_tokenizer
from gro.policy.policy import Policy
from gro.policy.spec import CreateSpec
from gro.types import Completion, Group, Prompt


def pairs(file: Path, count: int, vocab_size: int) -> tuple[list[Group], object]:
    """The first `count` pairs, cut where chosen and rejected part, and a tokenizer trained on the file."""
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    tokenizer = train_tokenizer((row[side] for row in rows for side in ("chosen", "rejected")), vocab_size)
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    groups = []
    for row in rows[:count]:
        sides = zip(row["chosen"], row["rejected"], strict=False)
        parting = next((i for i, (a, b) in enumerate(sides) if a != b), min(len(row["chosen"]), len(row["rejected"])))
        common = row["chosen"][:parting]
        prompt = common[: common.rindex("\n\nAssistant:") + len("\n\nAssistant:")]
        completions = tuple(
            Completion((*tokenizer(row[side][len(prompt) :]).input_ids, end), reward=reward)
            for side, reward in (("chosen", 1.0), ("rejected", -1.0))
        )
        groups.append(Group(Prompt(tuple(tokenizer(prompt).input_ids)), completions))
    return groups, tokenizer


def step(policy: Policy, reference: Policy, groups: list[Group], budget: int, beta: float = 0.1) -> Tensor:
    """One DPO step without the optimizer; returns the log-probs."""
    (pack,) = policy.packs(groups, budget)
    with torch.no_grad():
        ref_R = reference.logp(pack).logp_RT.sum(1)
    logp_R = policy.logp(pack).logp_RT.sum(1)
    u_R = (logp_R - ref_R).detach()
    margin_P = beta * (u_R[::2] - u_R[1::2])
    push_P = beta * torch.sigmoid(-margin_P) / len(margin_P)
    (-(push_P * (logp_R[::2] - logp_R[1::2])).sum()).backward()
    return logp_R.detach()


def timed(policy: Policy, reference: Policy, groups: list[Group], budget: int) -> float:
    policy.model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    step(policy, reference, groups, budget)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--profile", action="store_true", help="print where the shared layout's time goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    groups, tokenizer = pairs(args.file, args.pairs, args.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        create_model(CreateSpec(vocab_size=args.vocab_size), tokenizer, folder)  # type: ignore[arg-type]
        shared, rows = (Policy.load(folder, device="cpu") for _ in range(2))
    rows = Policy(rows.model, rows.tokenizer, layout="rows")
    budget = 10**9
    references = {id(p): p.snapshot() for p in (shared, rows)}
    times: dict[str, list[float]] = {"shared": [], "rows": []}
    for _ in range(args.steps + 1):  # the first warms up
        for policy in (shared, rows):
            times[policy.layout].append(timed(policy, references[id(policy)], groups, budget))
    gap = max(
        float((a.grad - b.grad).abs().max() / b.grad.abs().max())  # type: ignore[union-attr, operator]
        for a, b in zip(shared.model.parameters(), rows.model.parameters(), strict=True)
    )
    tokens = {p.layout: sum(k.tokens for k in p.packs(groups, budget)) for p in (shared, rows)}
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name in medians:
        print(f"{name:>7}: {medians[name]:6.3f} s a step (best {min(times[name]):.3f}), {tokens[name]:6d} positions")
    ratios = [r / s for s, r in zip(times["shared"][1:], times["rows"][1:], strict=True)]
    print(f"ratio rows / shared: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"largest relative gap between the gradients: {gap:.1e}")
    if args.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            timed(shared, references[id(shared)], groups, budget)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
