"""Rewards: functions from a file, rules, mathematical equality; all in processes that can be killed.

`Rewards` scores groups of completions.  `reward` marks a function of your own, `named` lists those that a recipe may
call by name.
"""

from gro.rewards.batch import Trouble
from gro.rewards.combine import Normalised
from gro.rewards.failures import Failure, Tally, refuse_failures
from gro.rewards.functions import TrainerState, reward
from gro.rewards.pool import Pool
from gro.rewards.registry import named
from gro.rewards.rewards import Rewards, reward_metrics
from gro.rewards.spec import RewardSpec

__all__ = [
    "Failure",
    "Normalised",
    "Pool",
    "RewardSpec",
    "Rewards",
    "Tally",
    "TrainerState",
    "Trouble",
    "named",
    "refuse_failures",
    "reward",
    "reward_metrics",
]
