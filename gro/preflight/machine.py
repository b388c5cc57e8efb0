"""What the machine has: memory of the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

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
    total, free = _memory(Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else "")
    limit, used = _limit(_CGROUP)
    if limit is not None and total is not None and limit < total:
        total, free = limit, min(free or limit, limit - used)
    return Machine(device, total, free)


def _memory(meminfo: str) -> tuple[int | None, int | None]:
    """(total, available) of the text of /proc/meminfo."""
    found = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        amount, _, unit = rest.strip().partition(" ")
        if unit == "kB" and amount.isdecimal():
            found[name] = int(amount) * 1024
    return found.get("MemTotal"), found.get("MemAvailable")


def _limit(cgroup: Path) -> tuple[int | None, int]:
    """(the container's limit, what it holds and cannot give back)."""
    try:
        limit, current = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        stat = (cgroup / "memory.stat").read_text()
    except OSError:
        return None, 0
    pages = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return (int(limit), int(current) - pages) if limit.isdecimal() else (None, 0)


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:")), None)
