"""Memory of each of several processes: every one with all weights, or the weights cut over them.

    python bench/processes.py [PROCESSES]

Three updates of sft on a model of random weights in float32, on CPU.  Prints for each way what a process holds between
two updates (weights and the optimizer's memory, by their sizes) and its peak in the last update, beyond what it had
before the model was made (Linux: the peak is reset, and read from /proc).
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gro.algorithms import build
from gro.policy.policy import Policy
from gro.policy.sharding import mesh_of, own_part
from gro.training.batching import collate
from gro.training.learner import PolicyLearner
from gro.training.processes import Processes
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt

VOCABULARY = 16000
SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # what is freed leaves the process, and does not count
    print(f"{size} processes            held between updates    peak of an update    weights")
    for shard in (1, 0):
        with tempfile.TemporaryDirectory() as folder:
            spawn(work, args=(size, shard, folder), nprocs=size)
            for rank in range(size):
                held, peak, weights = torch.load(f"{folder}/{rank}.pt")
                print(
                    f"{'cut over all' if shard == 0 else 'all everywhere'}, {rank}: "
                    f"{held / 2**20:14.0f} MiB {peak / 2**20:17.0f} MiB {weights / 1e6:12.1f} M"
                )


def work(rank: int, size: int, shard: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    before = status("VmRSS")
    shape = SHAPE | {"intermediate_size": 2048, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape)).eval()
    policy = Policy(model, PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast), layout="shared")
    weights = sum(p.numel() for p in model.parameters())
    mesh = mesh_of(shard, "cpu")
    if mesh is not None:
        policy.shard(mesh)
    processes = Processes.current(lockstep=mesh is not None)
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(n))

    groups = [Group(Prompt(ids(32), key=k), (Completion(ids(96), role="target", reward=1.0),)) for k in range(8)]
    batch = collate(groups, length_limit=96)
    how = {"total_updates": 3, "tokens_per_micro": 256, "entropy": False, "processes": processes}
    learner = PolicyLearner(policy, build("sft"), Optimization(), **how)
    for update in range(3):
        if update == 2:
            Path("/proc/self/clear_refs").write_text("5")
        learner.update(batch)
    peak = status("VmHWM") - before
    tensors = [*policy.trained().values(), *learner.descent.tensors().values()]
    held = sum(own_part(t).untyped_storage().nbytes() for t in tensors)
    torch.save((held, peak, weights), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def status(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
