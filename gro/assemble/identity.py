"""What a run is made of besides its recipe: the content of the files that the recipe names."""

from __future__ import annotations

from pathlib import Path

from gro.assemble.data import Data
from gro.assemble.models import Start
from gro.config import Config
from gro.data.files import file_sha256
from gro.policy.adapter_folder import locate
from gro.policy.folder import find
from gro.rewards.spec import RewardSpec
from gro.runs.files import MANIFEST

_WEIGHTS = (".safetensors", ".bin", ".pt", ".json", ".model", ".jinja", ".txt")
"""Endings of files that make a model and its tokenizer."""


def identity_of(config: Config, data: Data, start: Start) -> dict[str, str]:
    """SHA-256 by what it is of: data files, chat templates, the starting model, and the user's own code."""
    found: dict[str, str] = {}
    for name, dataset in data.named.items():
        found |= {f"{name}: file {i}": digest for i, (_, digest) in enumerate(dataset.report.files, 1)}
        if dataset.template_sha256 is not None:
            found[f"{name}: chat template"] = dataset.template_sha256
    if start.path is not None and config.model.create is None:  # one from nothing follows from recipe and data
        for key, folder in _folders(start.path).items():
            found |= {f"{key}: {name}": digest for name, digest in _files_of(folder)}
    return found | {key: file_sha256(place) for key, place in _code(config).items()}


def places_of(config: Config, data: Data, start: Start) -> dict[str, str]:
    """Where that content is now, by the same keys."""
    found: dict[str, str] = {}
    for name, dataset in data.named.items():
        found |= {f"{name}: file {i}": path for i, (path, _) in enumerate(dataset.report.files, 1)}
        found[f"{name}: chat template"] = dataset.spec.chat_template or f"of the tokenizer in {start.path}"
    if start.path is not None:
        for key, folder in _folders(start.path).items():
            found |= {f"{key}: {name}": str(folder / name) for name, _ in _files_of(folder)}
    return found | _code(config)


def _folders(path: str) -> dict[str, Path]:
    """The model's folder, and that of its base where it is an adapter."""
    place = locate(path)
    return {"model": find(path)} | ({"base": find(place.base)} if place.adapter is not None else {})


def _files_of(folder: Path) -> list[tuple[str, str]]:
    """The model's files with their hashes; a folder that a run exported is known by its manifest."""
    if (folder / MANIFEST).is_file():
        return [(MANIFEST, file_sha256(folder / MANIFEST))]
    paths = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS and p.is_file())
    return [(path.name, file_sha256(path)) for path in paths]


def _code(config: Config) -> dict[str, str]:
    """Files of the user's own algorithm and rewards by their key."""
    places = {"algorithm": str(config.algorithm["name"])}
    places |= {f"rewards.{i}": str(RewardSpec.parse(item).name_or_path) for i, item in enumerate(config.rewards)}
    found = {key: place.rpartition(":")[0] for key, place in places.items()}
    return {key: file for key, file in found.items() if file.endswith(".py") and Path(file).is_file()}
