"""The same work in TRL and in gro, step by step in turns: `make bench`, or `python bench/run.py --help`.

Both start from the same weights and read the same token ids (their hashes are compared), with the same optimizer and
learning rate, so the losses and gradient norms of each step must agree; they are printed side by side, and where they
do not agree the comparison is void and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import common
from common import GROUP_SIZE, NEW_TOKENS, PAIRS_PER_STEP, PROMPTS_PER_STEP, RESULTS, ROOT, Job
from worker import Worker

WORK = RESULTS / "work"
LEARNING_RATE = 1e-5
WARM_UP = 1
"""Steps that are not counted: memory is reserved and libraries are loaded in them."""
LOSS_TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3
"""Relative, of the gradient's norm."""
TITLES = {
    "dpo": f"DPO on HH pairs, {PAIRS_PER_STEP} a step",
    "grpo": f"GRPO on GSM8K prompts, {PROMPTS_PER_STEP} × {GROUP_SIZE} completions × {NEW_TOKENS} new tokens",
}

# name → (environment, script, options)
Side = tuple[str, str, dict[str, Any]]
TRL, GRO = "TRL 1.16", "gro"
PEER, OURS = (".venv-trl", "peer_trl.py"), (".venv", "ours.py")
SIDES: dict[str, Side] = {TRL: (*PEER, {}), GRO: (*OURS, {})}
WHOLE = {"dpo": PAIRS_PER_STEP, "grpo": PROMPTS_PER_STEP * GROUP_SIZE}
ALTERNATIVES: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        "8 pairs at once": {"per_device_train_batch_size": 8},
        "4 × 2": {"per_device_train_batch_size": 2},
        "8 × 1": {"per_device_train_batch_size": 1},
        "8 × 1, eager attention": {"per_device_train_batch_size": 1, "attn_implementation": "eager"},
        "8 × 1, gradient checkpointing": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
    },
    "grpo": {
        "32 rows at once": {"per_device_train_batch_size": 32},
        "4 × 8": {"per_device_train_batch_size": 8},
        "8 × 4": {"per_device_train_batch_size": 4},
        "16 × 2": {"per_device_train_batch_size": 2},
        "4 × 8, eager attention": {"per_device_train_batch_size": 8, "attn_implementation": "eager"},
        "4 × 8, continuous batching": {
            "per_device_train_batch_size": 8,
            "use_transformers_continuous_batching": True,
        },
    },
}
"""TRL configurations that `--explore` times against each other; the fastest is `BEST` in peer_trl.py."""


def interleave(
    kind: str, sides: Mapping[str, Side], steps: int, threads: int, embeddings: int | None
) -> dict[str, Worker]:
    """Runs all sides, a step of each in turn; returns the finished workers with what they reported."""
    data = common.data_folder()
    WORK.mkdir(parents=True, exist_ok=True)
    model = common.build_model(WORK / ("model" if embeddings is None else f"model-{embeddings}"), data, embeddings)
    rows, counts = (
        common.pairs(data, model, steps + WARM_UP) if kind == "dpo" else common.prompts(data, steps + WARM_UP)
    )
    print(f"{TITLES[kind]}: rows {counts}", flush=True)
    files = {PEER[0]: WORK / f"{kind}.jsonl", OURS[0]: WORK / f"{kind}-shuffled.jsonl"}
    common.write_jsonl(files[PEER[0]], rows)
    common.write_jsonl(files[OURS[0]], unshuffled(rows))
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, (environment, script, options) in sides.items():
            dump = WORK / f"{kind}-{len(workers)}.samples.jsonl"
            dump.unlink(missing_ok=True)
            job = Job(
                kind=kind,  # type: ignore[arg-type]
                model=str(model),
                data=str(files[environment]),
                steps=steps + WARM_UP,
                learning_rate=LEARNING_RATE,
                threads=threads,
                dump=str(dump),
                options=options,
            )
            workers[name] = stack.enter_context(
                Worker(name, ROOT / environment / "bin" / "python", script, job, WORK / f"{kind}-{len(workers)}.log")
            )
        for step in range(steps + WARM_UP):
            taken = [f"{name} {worker.step()['seconds']:.2f} s" for name, worker in workers.items()]
            print(f"step {step}{' (warm-up)' if step < WARM_UP else ''}: " + ", ".join(taken), flush=True)
        for worker in workers.values():
            worker.finish()
    return workers


def unshuffled(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The rows in the order from which gro's shuffling makes the given one: gro always shuffles, the peer does not."""
    from gro.training.sources import Order

    result = list(rows)
    for place, row in enumerate(Order(len(rows), seed).rows(0, len(rows))):
        result[row] = rows[place]
    return result


def same_ids(workers: Mapping[str, Worker]) -> None:
    """Prints the counts of token ids; ends the program where the sides did not read the same."""
    ids = {name: worker.facts["ids"] for name, worker in workers.items()}
    first = next(iter(ids.values()))
    if any(found != first for found in ids.values()):
        sys.exit(f"the sides read different token ids: {ids}")
    print(f"token ids are the same: {first['rows']} rows, tokens {first['tokens']}, sha256 {first['sha256'][:16]}…")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def timing(worker: Worker) -> dict[str, float]:
    """Medians over the counted steps, and the peak of the resident memory in GB."""
    steps = worker.steps[WARM_UP:]
    median = {
        key: statistics.median(step[key] for step in steps)
        for key in ("seconds", "cpu_seconds", "generation_seconds")
        if key in steps[0]
    }
    return median | {"peak_gb": worker.peak_rss / 1e9}


def summary(kind: str, workers: Mapping[str, Worker]) -> str:
    """One row per side, medians over steps; ratios of time are of the same step of both sides."""
    last = list(workers.values())[-1]
    rows = []
    for name, worker in workers.items():
        t = timing(worker)
        pairs = zip(worker.steps[WARM_UP:], last.steps[WARM_UP:], strict=True)
        ratios = [mine["seconds"] / theirs["seconds"] for mine, theirs in pairs]
        rows.append(
            [
                name,
                f"{t['seconds']:.2f}",
                f"{t['generation_seconds']:.2f}" if kind == "grpo" else "–",
                f"{t['cpu_seconds']:.1f}",
                f"{1 / t['seconds']:.3f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                f"{t['peak_gb']:.2f}",
                f"{timing(last)['peak_gb'] / t['peak_gb']:.2f}",
            ]
        )
    times, memory = f"time ÷ {last.name}'s (range)", f"{last.name}'s peak ÷ its"
    header = ["", "s/step", "of it generation", "CPU s/step", "steps/s", times, "peak GB", memory]
    return table(header, rows)


def agreement(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Losses and gradient norms side by side, and whether they agree."""
    rows, agree = [], True
    for step, (a, b) in enumerate(zip(first, second, strict=False)):
        loss = abs(a["loss"] - b["loss"])
        norm = abs(a["grad_norm"] / b["grad_norm"] - 1)
        agree &= loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE
        losses, norms = (f"{a['loss']:.6f}", f"{b['loss']:.6f}"), (f"{a['grad_norm']:.5f}", f"{b['grad_norm']:.5f}")
        rows.append([str(step), *losses, f"{loss:.0e}", *norms, f"{norm:.0e}"])
    header = ["step", f"loss {TRL}", f"loss {GRO}", "difference", f"grad norm {TRL}", f"grad norm {GRO}", "relative"]
    return table(header, rows), agree


def replay(peer: Worker, threads: int, steps: int) -> list[dict[str, Any]]:
    """gro trained on the completions and rewards that the peer sampled: equal samples must give equal gradients."""
    options = {"replay": peer.job.dump}
    job = Job("grpo", peer.job.model, peer.job.data, steps, LEARNING_RATE, threads=threads, options=options)
    environment, script, _ = SIDES[GRO]
    with Worker("replay", ROOT / environment / "bin" / "python", script, job, WORK / "replay.log") as worker:
        for _ in range(steps):
            worker.step()
        worker.finish()
    return worker.steps


def machine(threads: int) -> str:
    """Where this was measured."""
    cpu = "unknown processor"
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), cpu)
    return f"{cpu}, {threads} threads, Python {platform.python_version()}, float32"


def compare(kind: str, sides: Mapping[str, Side], steps: int, threads: int, embeddings: int | None = None) -> bool:
    """Times one kind of work, prints and stores the result; returns whether the sides did equal work."""
    load = os.getloadavg()[0]
    if load > 1:
        print(f"warning: other programs are running (load {load:.1f}); seconds will be too long and uneven")
    workers = interleave(kind, sides, steps, threads, embeddings)
    same_ids(workers)
    title = TITLES[kind] + (f", {embeddings:,} embeddings over two thin layers" if embeddings is not None else "")
    print(f"\n### {title}\n\n{machine(threads)}; {steps} steps of each side in turn\n\n{summary(kind, workers)}\n")
    agree, proof = True, ""
    if TRL in workers and GRO in workers:
        peer = workers[TRL]
        mine = workers[GRO].steps if kind == "dpo" else replay(peer, threads, min(steps + WARM_UP, 3))
        proof, agree = agreement(peer.steps, mine)
        what = "Same steps" if kind == "dpo" else f"The same completions, sampled by {TRL}, learnt from by both"
        print(f"{what}:\n\n{proof}\n")
    result = {
        "kind": kind,
        "embeddings": embeddings,
        "machine": machine(threads),
        "load": load,
        "agree": agree,
        "sides": {
            name: {"options": w.job.options, "facts": w.facts, "median": timing(w), "steps": w.steps}
            for name, w in workers.items()
        },
    }
    stored = RESULTS / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    stored.write_text(json.dumps(result, indent=1))
    print(f"stored in {stored.relative_to(ROOT)}", flush=True)
    if not agree:
        print(f"error: losses differ by more than {LOSS_TOLERANCE} or gradient norms by more than {NORM_TOLERANCE}")
    return agree


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["dpo", "grpo"], help="dpo, grpo (both)")
    parser.add_argument("--steps", type=int, help="counted steps of each side (dpo 10, grpo 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (all processors)")
    parser.add_argument("--one-batch", action="store_true", help="also TRL with a step's rows as one batch")
    parser.add_argument("--embeddings", type=int, help="two thin layers under so many embeddings, for the memory")
    parser.add_argument("--explore", action="store_true", help="TRL's configurations against each other")
    args = parser.parse_args()
    agree = True
    for kind in args.kinds:
        if kind not in TITLES:
            parser.error(f"{kind!r} is not one of {', '.join(TITLES)}")
        sides = dict(SIDES)
        if args.one_batch:
            sides = {"TRL, one batch": (*PEER, {"per_device_train_batch_size": WHOLE[kind]})} | sides
        if args.explore:
            sides = {name: (*PEER, options) for name, options in ALTERNATIVES[kind].items()}
        try:
            agree &= compare(kind, sides, args.steps or {"dpo": 10, "grpo": 5}[kind], args.threads, args.embeddings)
        except RuntimeError as error:  # a side could not start or ended early
            sys.exit(f"error: {error}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
