"""One process, or several that `torchrun` has started: how they find each other, agree, and end together.

    torchrun --nproc-per-node 4 -m gro train recipe.yaml

The first process owns the run directory and speaks; the others compute.  If one of them fails, dies or stops answering,
all end within seconds, and say which one it was (`gro.training.watchdog`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from rich.console import Console
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from gro.config import Config
from gro.errors import GroError, in_a_line
from gro.runs.identity import differences, versions
from gro.training.processes import ALONE, Processes
from gro.training.watchdog import INTERVAL, LATE, Watchdog

_PATIENCE = timedelta(hours=2)
"""Of a collective.  One process may well wait for another's long completions; that a process is gone, the watchdog
finds out."""


@dataclass(frozen=True, slots=True)
class Job:
    """What this process is to do with which others."""

    processes: Processes = ALONE
    device: str | None = None
    """Its own, where the recipe leaves it open."""
    watchdog: Watchdog | None = None


SOLE = Job()
"""Of a process alone."""


@contextmanager
def job_of(config: Config) -> Iterator[Job]:
    """The processes of this job, for as long as they work together."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or size == 1:
        yield SOLE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and config.model.device in ("auto", "cuda")
    if cuda:
        torch.cuda.set_device(local)
    rank = int(os.environ["RANK"])
    store = _meet(rank, size)
    watchdog = Watchdog(Processes(rank, size))
    with watchdog:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        processes = Processes.current()
        watchdog.all_are_here()
        agree(processes, config, {})  # before they do anything together in which it would matter
        yield Job(processes, f"cuda:{local}" if cuda else None, watchdog)
        dist.barrier()  # nobody leaves while others still need it
    dist.destroy_process_group()  # only here: a group of which a member is gone cannot be taken down in order


def _meet(rank: int, size: int) -> Store:
    """The store at which all meet, kept by torchrun or by the first of them."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=LATE * INTERVAL)))
    except (RuntimeError, ValueError) as error:
        raise GroError(f"process {rank} of {size} does not find the others at {where}: {in_a_line(error)}") from error
    store.set_timeout(_PATIENCE)
    return store


def agree(processes: Processes, config: Config, content: Mapping[str, str]) -> None:
    """Raises GroError in every process where two of them differ in recipe, data, template, model, code or versions."""
    if processes.size == 1:
        return
    mine = {"recipe": config.resolved(), "content": dict(content), "versions": versions()}
    mine["recipe"].get("model", {}).pop("device", None)  # each has its own
    text = json.dumps(mine, sort_keys=True)
    digests = processes.join([hashlib.sha256(text.encode()).hexdigest()])
    if len(set(digests)) == 1:
        return
    everyone = processes.join([mine])
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    changes = "; ".join(differences(everyone[0], everyone[other]))
    raise GroError(f"processes 0 and {other} are not set up alike: {changes}")


def followed(config: Config, job: Job) -> Config:
    """The recipe as this process follows it: on its device."""
    if job.device is None:
        return config
    return config.model_copy(update={"model": replace(config.model, device=job.device)})


def quiet_console() -> Console:
    """Where processes speak that nobody listens to."""
    return Console(file=nowhere())


def nowhere() -> TextIO:
    """A stream that keeps nothing."""
    return Path(os.devnull).open("w", encoding="utf-8")
