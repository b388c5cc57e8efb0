"""From a recipe to the parts of a job: model, data, source, rewards, learner."""

from gro.assemble.algorithm import build_algorithm
from gro.assemble.data import Data, demonstrated, load_data, longest_offline, prompts_of
from gro.assemble.distributed import cut, lockstep_of
from gro.assemble.identity import (
    ROUNDING,
    changed,
    folders_of,
    identity_of,
    may_differ,
    model_behind,
    places_of,
    refuse_other_content,
    reward_specs,
)
from gro.assemble.learning import Learning, critic_of, learner_of, learning_of, needs_start
from gro.assemble.models import MODEL, START, Start, decoder, load_policy, model_folder, start_at, start_of
from gro.assemble.rewards import asking_in, evaluation_rewards, rewards_inside, rewards_of, sampling_of
from gro.assemble.sources import check_names, source_of

__all__ = [
    "MODEL",
    "ROUNDING",
    "START",
    "Data",
    "Learning",
    "Start",
    "asking_in",
    "build_algorithm",
    "changed",
    "check_names",
    "critic_of",
    "cut",
    "decoder",
    "demonstrated",
    "evaluation_rewards",
    "folders_of",
    "identity_of",
    "learner_of",
    "learning_of",
    "load_data",
    "load_policy",
    "lockstep_of",
    "longest_offline",
    "may_differ",
    "model_behind",
    "model_folder",
    "needs_start",
    "places_of",
    "prompts_of",
    "refuse_other_content",
    "reward_specs",
    "rewards_inside",
    "rewards_of",
    "sampling_of",
    "source_of",
    "start_at",
    "start_of",
]
