"""What has to be the same where a run is continued: its settings but for a few, and the files that they name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from gro.assemble.data import Data
from gro.assemble.models import Start, model_folder
from gro.config import Config
from gro.data.files import file_sha256
from gro.errors import GroError
from gro.policy.adapter_folder import locate
from gro.policy.folder import find
from gro.raters.spec import HUMAN
from gro.rewards.spec import RewardSpec

_WEIGHTS = (".safetensors", ".bin", ".pt", ".json", ".model", ".jinja", ".txt")
"""Endings of files that make a model and its tokenizer."""
_HELD_OUT = "eval"
"""What is held out may be changed in the recipe, and then its content may, too."""
_LOGGING = (
    *("run", "training.save_every", "training.resume_every", "training.keep_state", "training.record_groups"),
    *("training.kl_every", "training.alarms", "training.flat_steps", "reward_failure_stop_share"),
    "distributed.elastic",
)
"""Keys that do not change results, or only whether the run is stopped: they may differ when it is continued."""
ROUNDING = (
    *("slots", "training.tokens_per_micro", "model.activation_checkpointing"),
    *("distributed.shard", "distributed.offload"),
)
"""Keys that change results in their last bits only: they may differ, and it is said."""


def may_differ(config: Config) -> tuple[str, ...]:
    """Keys with which a run can be continued other than they were."""
    stop = config.training.stop
    watched = stop is not None and stop.by == "gold"
    return (*_LOGGING, *ROUNDING, *(() if watched else ("eval",)))


def identity_of(config: Config, data: Data, start: Start) -> dict[str, str]:
    """SHA-256 by what it is of: data files, chat templates, the starting model, the models that give rewards and
    values, and the user's own code."""
    section = json.dumps(config.resolved().get(_HELD_OUT), sort_keys=True)
    found = {_HELD_OUT: hashlib.sha256(section.encode()).hexdigest()}
    for name, dataset in data.named.items():
        found |= {f"{name}: file {i}": digest for i, (_, digest) in enumerate(dataset.report.files, 1)}
        if dataset.template_sha256 is not None:
            found[f"{name}: chat template"] = dataset.template_sha256
    for key, folder in folders_of(config, start).items():
        found |= {f"{key}: {path.name}": file_sha256(path) for path in _files_of(folder)}
    return found | {key: file_sha256(place) for key, place in _code(config).items()}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is no longer what it was; of what is held out, only where the recipe still asks for the same."""
    other = before.get(_HELD_OUT) != now.get(_HELD_OUT)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [key for key in keys if not (other and key.partition(".")[0] == _HELD_OUT)]


def refuse_other_content(
    run: str, before: Mapping[str, str], now: Mapping[str, str], places: Mapping[str, str]
) -> None:
    """Raises GroError where a run was begun with other content than that of now; `places`: where it is now."""
    found = [
        f"{what} ({places.get(what, 'gone')}) had sha256 {before.get(what, 'none')}, and now {now.get(what, 'none')}"
        for what in changed(before, now)
    ]
    if found:
        raise GroError(
            f"{run} was begun with other content: {'; '.join(found)}. Restore it to continue, or choose another "
            "directory"
        )


def places_of(config: Config, data: Data, start: Start) -> dict[str, str]:
    """Where that content is now, by the same keys."""
    found: dict[str, str] = {}
    for name, dataset in data.named.items():
        found |= {f"{name}: file {i}": path for i, (path, _) in enumerate(dataset.report.files, 1)}
        found[f"{name}: chat template"] = dataset.spec.chat_template or f"of the tokenizer in {start.path}"
    for key, folder in folders_of(config, start).items():
        found |= {f"{key}: {path.name}": str(path) for path in _files_of(folder)}
    return found | _code(config)


def folders_of(config: Config, start: Start) -> dict[str, Path]:
    """Of every model that the recipe names, beside that of an adapter that of its base; GroError naming the key where
    there is none."""
    named = {} if start.path is None or config.model.create is not None else {"model": start.path}
    if config.critic is not None and config.critic.path is not None:
        named["critic.path"] = config.critic.path
    named |= {key: path for key, spec in reward_specs(config) if (path := model_behind(spec)) is not None}
    found: dict[str, Path] = {}
    for key, name in named.items():  # one made from nothing follows from recipe and data
        try:
            path = model_folder(name)
            place = locate(path)
            found[key] = find(path)
        except GroError as error:
            raise GroError(f"{key}: {error}") from error
        if place.adapter is not None:
            found["base" if key == "model" else f"{key}: base"] = find(place.base)
    return found


def model_behind(spec: RewardSpec) -> str | None:
    """The model that gives this reward in the trainer's own process; None where none does."""
    if spec.name_or_path == "judge" and spec.params.get("base_url"):
        return None
    key = {"reward_model": "path", "judge": "model"}.get(str(spec.name_or_path))
    return None if key is None or spec.params.get(key) is None else str(spec.params[key])


def _files_of(folder: Path) -> list[Path]:
    """The model's files."""
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())


def reward_specs(config: Config) -> Iterator[tuple[str, RewardSpec]]:
    """All rewards that the recipe names, by their keys in it."""
    lists = {"rewards": config.rewards}
    if config.eval is not None and config.eval.rewards is not None:
        lists["eval.rewards"] = config.eval.rewards
    for key, items in lists.items():
        for i, item in enumerate(items):
            spec = RewardSpec.parse(item)
            yield f"{key}.{i}", spec
            if spec.name_or_path == HUMAN and (simulated := spec.params.get("simulated")) is not None:
                yield f"{key}.{i}.simulated.reward", RewardSpec.parse(simulated["reward"])


def _code(config: Config) -> dict[str, str]:
    """Files of the user's own algorithm and rewards by their key."""
    places = {"algorithm": str(config.algorithm["name"])}
    places |= {key: str(spec.name_or_path) for key, spec in reward_specs(config)}
    found = {key: place.rpartition(":")[0] for key, place in places.items()}
    return {key: file for key, file in found.items() if file.endswith(".py") and Path(file).is_file()}
