"""What can be wrong with a job is found before any weights are loaded: data, masks, ends, rewards, memory, disk."""

from gro.preflight.data import check_data, held_out_rows
from gro.preflight.disk import check_directory, refuse_without_room
from gro.preflight.estimate import Needs, needs
from gro.preflight.everything import Found, check, preflight
from gro.preflight.rewards import reward_lists, try_rewards
from gro.preflight.saying import say

__all__ = [
    "Found",
    "Needs",
    "check",
    "check_data",
    "check_directory",
    "held_out_rows",
    "needs",
    "preflight",
    "refuse_without_room",
    "reward_lists",
    "say",
    "try_rewards",
]
