"""Memory and disk of a run, told and refused before anything heavy."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from gro.assemble import Data, Start, build_algorithm
from gro.config import Config
from gro.errors import GroError
from gro.preflight.disk import Disk, disk_of, refuse_without_room
from gro.preflight.machine import Machine, machine, resident
from gro.preflight.memory import Memory, memory_of, policy_sizes
from gro.preflight.saying import say
from gro.preflight.sizes import Sizes
from gro.runs.plain import size_text


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run takes."""

    policy: Sizes
    memory: Memory
    disk: Disk
    machine: Machine
    """What there is."""
    trained: int
    """Numbers that learning moves."""


def needs(config: Config, start: Start, data: Data, *, shards: int = 1) -> Needs:
    """Of the recipe's run, on the recipe's device as it is now.

    `shards`: over how many processes weights, gradients and optimizer are spread.
    """
    algorithm, here = build_algorithm(config), machine(config.model.device)
    policy = policy_sizes(config, start)
    memory = memory_of(config, data, algorithm, policy, here, shards=shards)
    trained = policy.trained.parameters
    return Needs(policy, memory, disk_of(config, algorithm, policy), here, trained)


def check_memory(console: Console, found: Needs) -> None:
    """One line; a note where the device has too little for the estimate.

    Raises GroError where it has too little for what is counted exactly, whatever else happens to be there.
    """
    memory, here = found.memory, found.machine
    of = f" of {size_text(here.total)}" if here.total is not None else ""
    free = f", {size_text(here.free)} free" if here.free is not None else ""
    say(console, f"memory: about {size_text(memory.peak)}{of} on {here.device}{free}; {_largest(memory)}")
    if here.total is not None and memory.counted > here.total:
        raise GroError(
            f"model: weights, gradients, optimizer and what stands beside them take {size_text(memory.counted)}; "
            f"{here.device} has {size_text(here.total)}{_advice(memory)}"
        )
    if here.free is not None and memory.peak > here.free:
        say(console, f"note: that is more than is free{_advice(memory)}")


def check_disk(console: Console, found: Needs) -> None:
    """One line; GroError where the disk cannot hold it."""
    refuse_without_room(found.disk)
    say(console, f"disk: {found.disk}; {size_text(found.disk.free)} free")


def show_memory(console: Console, found: Needs) -> None:
    """Part by part."""
    memory, base = found.memory, resident()
    table = Table("memory", "when", "bytes", title=None)
    for part in sorted(memory.parts, key=lambda part: (part.when, -part.bytes)):
        about = "" if part.counted else "about "
        table.add_row(part.name, part.when, f"{about}{size_text(part.bytes)}")
    if base is not None:
        table.add_row("Python, libraries and data", "always", size_text(base))
    console.print(table)


def _largest(memory: Memory) -> str:
    part = max(memory.parts, key=lambda part: part.bytes)
    return f"most of it {part.name} ({size_text(part.bytes)}), {memory.micro_tokens} tokens at once"


def _advice(memory: Memory) -> str:
    part = memory.largest_knob
    return "" if part is None else f". The largest part that can be made smaller: {part.name}, by {part.knob}"
