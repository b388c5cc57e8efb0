"""What the machine has: memory of the device that trains."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from gro.training.room import memory_available

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device's memory in bytes; None where the system does not say."""

    device: str
    """`cpu`, `mps`, or a CUDA device with its name."""
    total: int | None = None
    free: int | None = None
    """What a new allocation could have now."""

    @property
    def kind(self) -> str:
        """`cpu`, `mps` or `cuda`."""
        return self.device.partition(":")[0].partition(" ")[0]


def machine(device: str) -> Machine:
    """Of a recipe's `model.device`.

    >>> machine("auto")
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(device)
        return Machine(f"{device} ({torch.cuda.get_device_name(device)})", total, free)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(device, min(total, _limit(_CGROUP) or total), memory_available())


def _limit(cgroup: Path) -> int | None:
    """What the container may have."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(limit) if limit.isdecimal() else None


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:")), None)
