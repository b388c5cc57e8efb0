"""Weights cut over processes, as a recipe sets it."""

from __future__ import annotations

from dataclasses import replace

from gro.config import Config
from gro.policy.policy import Policy
from gro.policy.sharding import mesh_of
from gro.training.processes import Processes


def cut(config: Config, policy: Policy) -> bool:
    """Cuts the weights over the processes where the recipe asks for it, and tells whether it does.

    Raises:
        GroError: the processes cannot be grouped as it asks.
    """
    mesh = mesh_of(config.distributed.shard, policy.device.type)
    if mesh is None:
        return False
    policy.shard(mesh, offload=config.distributed.offload)
    return True


def lockstep_of(config: Config, processes: Processes) -> Processes:
    """The processes as they work where the recipe cuts weights: each takes part in every pass of the others."""
    return replace(processes, lockstep=processes.size > 1 and config.distributed.shard != 1)
