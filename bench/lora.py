"""What an adapter saves: tensors that a DPO run holds between two steps, with all weights trained and with LoRA.

    python bench/lora.py [--rank 16] [--hidden 512] [--layers 8] [--vocabulary 8000]

One real step by the library's own learner, with AdamW and a reference, in a process of its own for each.  Counted are
the bytes of every tensor once: a reference that shares the policy's weights costs nothing.  Beside it, on Linux, the
process's highest resident memory during the step, less what it held before the model was loaded.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import tempfile
from pathlib import Path

import torch

from gro.algorithms import build
from gro.policy.create import create_model, train_tokenizer
from gro.policy.policy import Policy
from gro.policy.spec import CreateSpec, LoraSettings
from gro.training.batching import collate
from gro.training.learner import PolicyLearner
from gro.training.prepare import Reference, prepare
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt

TOKENS = 8192


def pair(seed: int) -> Group:
    """128 tokens of prompt, twice 64 of completion."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(3, 256, (256,), generator=generator).tolist()
    sides = (Completion(tuple(draw[128:192]), reward=1.0), Completion(tuple(draw[192:]), reward=-1.0))
    return Group(Prompt(tuple(draw[:128])), sides)


def resident(name: str) -> int:
    """Bytes; 0 where the system does not say.  VmRSS: now; VmHWM: at most since the last `forget`."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def forget() -> None:
    """The highest resident memory is counted from here."""
    if (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")


def held(folder: str, lora: LoraSettings | None) -> dict[str, float]:
    """MiB by what they are for."""
    import peft  # noqa: F401  # its own code is not what is measured

    torch.set_num_threads(1)
    algorithm = build("dpo")
    before = resident("VmRSS")
    policy = Policy.load(folder, device="cpu", lora=lora)
    reference = Reference(policy.snapshot())
    learner = PolicyLearner(policy, algorithm, Optimization(), total_updates=1, tokens_per_micro=TOKENS)
    minibatch = collate([pair(i) for i in range(4)], length_limit=64)
    batch, _ = prepare(minibatch, policy, reference, algorithm, {}, tokens_per_micro=TOKENS, updates=1)
    gc.collect()
    forget()
    learner.update(batch)
    peak = resident("VmHWM") - before
    mine = {p.data_ptr(): p.nbytes for p in policy.model.parameters()}
    beside = {p.data_ptr(): p.nbytes for p in reference.policy.model.parameters()}
    memory = [t for state in learner.descent.optimizer.state.values() for t in state.values() if t.ndim]
    found = {
        "weights": sum(mine.values()),
        "reference": sum(size for place, size in beside.items() if place not in mine),
        "optimizer": sum(t.nbytes for t in memory),
        "gradients (in a step)": sum(p.nbytes for p in policy.model.parameters() if p.requires_grad),
    }
    return {name: size / 2**20 for name, size in {**found, "all of these": sum(found.values()), "peak": peak}.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rank", 16), ("hidden", 512), ("layers", 8), ("vocabulary", 8000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    spec = CreateSpec(hidden_size=asked.hidden, layers=asked.layers, heads=8, kv_heads=4, vocab_size=asked.vocabulary)
    # Large tensors go back to the system at once: else the peak shows the holes that glibc keeps for later.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 18)
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        create_model(spec, train_tokenizer(["a b c 0 1 2"] * 50, 300), folder)
        for lora in (None, LoraSettings(rank=asked.rank)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                columns.append(pool.apply(held, (folder, lora)))
    full, adapter = columns
    print(f"{'MiB':24}{'all weights':>14}{f'rank {asked.rank}':>14}")
    for name, size in full.items():
        print(f"{name:24}{size:14.1f}{adapter[name]:14.1f}")


if __name__ == "__main__":
    main()
