"""Data against algorithm and model: types, rewards, lengths, rows that are held out."""

from __future__ import annotations

from rich.console import Console

from gro.assemble import Data, Start, evaluation_rewards
from gro.config import Config
from gro.contradictions import advice
from gro.data.dataset import Dataset
from gro.errors import GroError
from gro.evaluation.heldout import check_kind
from gro.objective import Algorithm
from gro.objective.credit import Labels
from gro.policy.limits import longest_row
from gro.preflight.saying import say
from gro.types import Group

_OFFERS: dict[str, frozenset[str]] = {
    "preference": frozenset({"scored", "paired", "chosen"}),
    "unpaired_preference": frozenset({"scored"}),
    "rewarded": frozenset({"scored", "paired", "chosen"}),
    "prompt_completion": frozenset({"targets"}),
    "language_modeling": frozenset({"targets"}),
    "prompt_only": frozenset(),
}
"""Which rows of an algorithm's terms each dataset type gives."""

_IN_WORDS = {
    "scored": "completions with a reward or label",
    "targets": "demonstrations",
    "paired": "preference pairs",
    "chosen": "preference pairs",
    "versus": "demonstrations beside the policy's own answers",
}


def check_data(console: Console, config: Config, algorithm: Algorithm, data: Data, start: Start) -> None:
    """Describes the data and raises GroError where they do not fit each other, the algorithm or the model."""
    for name, dataset in data.named.items():
        say(console, f"{name}: {dataset.report}")
    for name, dataset in data.named.items():
        if name.startswith("offline"):
            _check_type(name, dataset, algorithm)
            if dataset.pending and not config.rewards:
                raise GroError(
                    f"{name}: {dataset.spec.paths[0]} has no column of rewards; `rewards` would judge its rows"
                )
        _check_length(console, name, dataset, config, start)
    for line in advice(config, algorithm):
        say(console, f"note: {line}")
    if data.online is not None and data.online.kind == "language_modeling":
        raise GroError("online: whole texts (language_modeling) have no prompts to answer; give prompts, or messages")
    if data.held_out is not None:
        check_kind(data.held_out.kind, bool(evaluation_rewards(config)))
    if config.model.dtype in ("bfloat16", "float16"):
        what = f"model.dtype: {config.model.dtype} rounds small updates away"
        say(console, f"note: {what}; autocast: bfloat16 keeps float32 weights and is as fast")
    few = [(n, len(d)) for n, d in data.named.items() if n != "eval.data" and len(d) < config.prompts_per_step]
    for name, rows in few if len(data.named) <= 2 else ():
        say(
            console, f"note: {name} has {rows} rows and a step takes {config.prompts_per_step}: some come several times"
        )


def _check_type(name: str, dataset: Dataset, algorithm: Algorithm) -> None:
    kind, wanted = dataset.kind, algorithm.roles
    offered = _OFFERS[kind]
    where = f"{name}: {dataset.spec.paths[0]} has rows of type {kind}"
    if not offered & wanted:
        learns = " and ".join(dict.fromkeys(_IN_WORDS[role] for role in sorted(wanted)))
        gives = " and ".join(dict.fromkeys(_IN_WORDS[role] for role in sorted(offered))) or "prompts alone"
        fix = ""
        if kind == "preference" and "targets" in wanted:
            fix = f". {name}.kind: prompt_completion takes the chosen completions as demonstrations"
        elif kind == "rewarded" and "targets" in wanted:
            fix = f". {name}.kind: prompt_completion takes a column completion as demonstrations, whatever the reward"
        elif kind == "prompt_only" and "scored" in wanted:
            fix = ". Prompts that the policy is to answer belong under online"
        raise GroError(f"{where}, which are {gives}; {algorithm.name} learns from {learns}{fix}")
    needed = 2 if kind == "rewarded" and algorithm.pairs else algorithm.credit.group_size
    if kind == "unpaired_preference" and needed > 1 and "targets" not in wanted:
        raise GroError(
            f"{where}, with one completion for each prompt; {algorithm.name} compares at least {needed} completions of "
            "a prompt"
        )
    if kind == "rewarded":
        _check_rewards(where, dataset, algorithm, needed)


def _check_rewards(where: str, dataset: Dataset, algorithm: Algorithm, needed: int) -> None:
    signs = isinstance(algorithm.credit, Labels)
    for key, rewards in dataset.rewards():
        if len(rewards) < needed:
            found = f"{len(rewards)} completion{'s' if len(rewards) > 1 else ''}"
            raise GroError(f"{where}, with {found} in row {key + 1}; {algorithm.name} compares at least {needed}")
        if signs and rewards == (0.0,):
            raise GroError(
                f"{where}, with a reward of 0 in row {key + 1}; {algorithm.name} takes a completion alone for good or "
                "bad by the sign of its reward, so that 0 teaches nothing: give −1, or a column label"
            )


def _check_length(console: Console, name: str, dataset: Dataset, config: Config, start: Start) -> None:
    """Rows beyond the model's positions are an error where those are a learned table, and worth a note where not."""
    rows = dataset.report.longest
    answered = name == "online" or (name == "eval.data" and bool(evaluation_rewards(config)))
    new = config.sampling.max_new_tokens
    if name == "eval.data" and config.eval is not None:
        new = config.eval.max_new_tokens or new
    prompts = max(len(group.prompt.ids) for group in dataset) if answered else 0
    longest, what = rows, f"the longest row has {rows} tokens"
    if answered and prompts + new > rows:
        longest, what = prompts + new, f"the longest prompt has {prompts} tokens, and {new} more may be sampled"
    positions = getattr(start.architecture.get_text_config(), "max_position_embeddings", None)
    limit = longest_row(start.architecture)
    if limit is not None and longest > limit:
        fix = "Lower max_new_tokens, or set max_length and overlong: skip or truncate"
        raise GroError(f"{name}: {what}; the model has positions for {limit}. {fix}")
    if positions is not None and longest > positions:
        say(console, f"note: {name}: {what}, more than the {positions} that the model was made for")


def held_out_rows(console: Console, config: Config, data: Data) -> list[Group]:
    """The held-out rows to use, without those that are also trained on.

    Raises GroError for such rows, unless eval.data says on_bad: skip.
    """
    if data.held_out is None or config.eval is None:
        return []
    shared: set[int] = set()
    for name, dataset in data.named.items():
        if name != "eval.data":
            shared |= set(dataset.overlap(data.held_out))
    what = f"{len(shared)} of {len(data.held_out)} held-out rows are also trained on"
    if shared and data.held_out.spec.on_bad != "skip":
        raise GroError(
            f"eval.data: {what} (the first: row {min(shared) + 1} of {data.held_out.spec.paths[0]}); take other rows "
            "with start and stop, or leave these out with on_bad: skip"
        )
    groups = [group for group in data.held_out if group.prompt.key not in shared]
    if not groups:
        raise GroError("eval.data: every held-out row is also trained on; take other rows with start and stop")
    if shared:
        say(console, f"eval.data: {what}; they were left out, as asked for")
    return groups[: config.eval.limit]
