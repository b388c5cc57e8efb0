"""What cannot be measured without a CUDA device: `python bench/on_cuda.py`, on a machine that needs no network.

1. The attention of packed streams against plain rows, in float32 and bfloat16, for several architectures.
2. dpo and grpo on randomly initialised models of the shapes of Qwen2-0.5B, Qwen3-0.6B and Qwen2-1.5B, with rows of
   fixed lengths: tokens/s, model-FLOPs utilisation and peak memory; weights and optimizer in float32, forward passes
   under bfloat16.
3. The same in TRL on the same card, in turns, where an environment has it (--peer-python).

Written are a JSON file and a markdown table.  `--device cpu --tiny` runs all of it on a processor in a minute, with toy
models; its figures mean nothing, and it says what it leaves out.

MFU is the textbook's arithmetic of a step (`step_flops` in cuda_work.py: every row in full, four forward passes) over
its seconds and the card's dense bfloat16 peak.  For grpo the seconds include sampling, which is bound by memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cuda_ours import ARCHITECTURES, check_attention, make_model, measure
from cuda_work import PEAKS, SHAPES, Work, step_flops
from transformers import AutoConfig

HERE = Path(__file__).resolve().parent
WORKS = {
    # pairs or prompts, completions, prompt tokens, new tokens
    "dpo": (32, 2, 512, 256),
    "grpo": (16, 8, 256, 512),
}
TINY = {"dpo": (2, 2, 12, 8), "grpo": (2, 4, 6, 8)}
PEER_BATCHES = {"dpo": (32, 8, 2), "grpo": (128, 32, 8)}
"""TRL's per_device_train_batch_size, in pairs and in rows: a step's as one batch, and smaller ones."""


def sides(kind: str, peer: str | None, tokens: str, batches: Sequence[int]) -> dict[str, tuple[str | None, dict]]:
    """name → (the peer's interpreter, or None for gro, and its options)."""
    found: dict[str, tuple[str | None, dict]] = {
        "gro": (None, {"tokens_per_micro": tokens if tokens == "auto" else int(tokens)})
    }
    if peer is not None:
        unit = "pairs" if kind == "dpo" else "rows"
        found |= {f"TRL, {n} {unit} a batch": (peer, {"per_device_train_batch_size": n}) for n in batches}
    return found


def run(work: Work, interpreter: str | None, *, inside: bool) -> dict[str, Any]:
    """One measurement, in a process of its own: what one leaves in the device's memory must not count for another."""
    if interpreter is None and inside:
        return measure(work)
    if interpreter is None:
        command = [sys.executable, str(HERE / "on_cuda.py"), "--work", work.to_json()]
    else:
        command = [interpreter, str(HERE / "cuda_trl.py"), work.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(lines[-1])


def summary(work: Work, reports: Sequence[Mapping[str, Any]], peak_flops: float | None) -> dict[str, Any]:
    """Medians of the rounds of one side."""
    errors = [r["error"] for r in reports if "error" in r]
    if errors:
        return {"error": errors[0]}
    seconds = statistics.median(r["seconds"] for r in reports)
    flops = step_flops(AutoConfig.from_pretrained(work.model), work)
    generation = [s["generation"] for r in reports for s in r["steps"][work.warm_up :] if "generation" in s]
    return {
        "s/step": seconds,
        "of it generation": statistics.median(generation) if work.kind == "grpo" and generation else None,
        "tokens/s": work.tokens / seconds,
        "MFU": None if peak_flops is None else flops / seconds / peak_flops,
        "peak GB": max(r["peak_bytes"] for r in reports) / 1e9,
        "loss": reports[0]["steps"][0].get("loss"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def compared(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per side."""
    forms = {"s/step": ".3g", "of it generation": ".3g", "tokens/s": ",.0f", "MFU": ".1%", "peak GB": ".2f"}
    forms["loss"] = ".4f"
    rows = []
    for name, side in found.items():
        failed = [side.get("error", ""), *["–"] * (len(forms) - 1)]
        rows.append([name, *(failed if "error" in side else (shown(side[k], form) for k, form in forms.items()))])
    return table(["", *forms], rows)


def attention(device: str, names: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every architecture's checks, shown as they come."""
    if device == "cpu":
        say("SKIPPED without CUDA: the variable-length kernel. What follows checks the plan for processors only.")
    results = [check_attention(name, device) for name in names]
    rows = [
        [
            r["architecture"], *(f"{r[k][i]:.1e}" for k in ("float32", "bfloat16", "bfloat16 rows") for i in (0, 1)),
            str(r["kernel calls"]), "ok" if r["ok"] else "WRONG",
        ]
        for r in results
    ]  # fmt: skip
    header = ["", "fp32 log-prob", "fp32 gradient", "bf16 log-prob", "bf16 gradient", "rows' log-prob"]
    say(table([*header, "rows' gradient", "kernel calls", ""], rows))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where attention is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy models and lengths, to try the script itself")
    parser.add_argument("--models", nargs="+", default=["qwen2-0.5b", "qwen3-0.6b", "qwen2-1.5b"], choices=list(SHAPES))
    parser.add_argument("--kinds", nargs="+", default=["dpo", "grpo"], choices=["dpo", "grpo"])
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every side")
    parser.add_argument("--tokens-per-micro", default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="of activations, on both sides")
    parser.add_argument("--peer-python", help="an interpreter that has TRL; none: gro alone")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the card, where it is not known")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cuda")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        print(json.dumps(measure(Work.from_json(args.work))))
        return 0
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("bench/on_cuda.py: torch finds no CUDA device here; --device cpu --tiny tries the script without one")
    card = "a processor (figures mean nothing)" if args.device == "cpu" else torch.cuda.get_device_name()
    peak = args.peak_tflops or next((p for name, p in PEAKS.items() if name in card), None)
    lines = [f"{card}, torch {torch.__version__}"]

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    args.out.mkdir(parents=True, exist_ok=True)
    names = list(ARCHITECTURES)[:5:3] if args.tiny else list(ARCHITECTURES)
    result: dict[str, Any] = {"card": card, "attention": attention(args.device, names, say), "works": []}
    if args.peer_python is None:
        say("SKIPPED without --peer-python: TRL.")
    for shape in ["tiny"] if args.tiny else args.models:
        folder = make_model(args.out / shape, SHAPES[shape])
        for kind in args.kinds:
            sizes = (TINY if args.tiny else WORKS)[kind]
            work = Work(kind, str(folder), args.device, *sizes, steps=args.steps, checkpointing=args.checkpointing)
            batches = (sizes[0] if kind == "dpo" else sizes[0] * sizes[1],) if args.tiny else PEER_BATCHES[kind]
            contest = sides(kind, args.peer_python, args.tokens_per_micro, batches)
            reports: dict[str, list[dict[str, Any]]] = {name: [] for name in contest}
            for _ in range(args.rounds):
                for name, (interpreter, options) in contest.items():
                    reports[name].append(run(replace(work, options=options), interpreter, inside=args.tiny))
            found = {n: summary(work, r, None if peak is None else peak * 1e12) for n, r in reports.items()}
            say(f"\n{kind}, {shape}: {work.prompts} × {work.group} rows of {work.row_tokens} tokens a step\n")
            say(compared(found))
            result["works"].append({"kind": kind, "model": shape, "sides": found, "reports": reports})
    (args.out / "cuda.json").write_text(json.dumps(result, indent=1))
    (args.out / "cuda.md").write_text("\n".join(lines) + "\n")
    print(f"written: {args.out / 'cuda.json'}, {args.out / 'cuda.md'}")
    return 0 if all(check["ok"] for check in result["attention"]) else 1


if __name__ == "__main__":
    sys.exit(main())
