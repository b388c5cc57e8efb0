"""Averages of models that were fine-tuned from one start: WARM's weights (Ramé et al. 2024, eq. 2)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gro.errors import GroError
from gro.policy.folder import find, inspect


def average(models: Sequence[str | Path], into: str | Path) -> None:
    """Writes the mean of the models' weights, with the first one's configuration and tokenizer, to the folder `into`.

    Weights are added up in float64, tensor by tensor, and rounded once.

    Raises:
        GroError: fewer than two models, or tensors that are not the same in all of them, by folder and name.
    """
    if len(models) < 2:
        raise GroError(f"an average needs at least 2 models; found {len(models)}")
    folders = [inspect(find(model)) for model in models]
    places = [_tensors(folder.path) for folder in folders]
    for folder, place in zip(folders[1:], places[1:], strict=True):
        if different := sorted(places[0].keys() ^ place.keys()):
            raise GroError(f"{folder.path}: not the same model as {folders[0].path}: only one has {different[0]!r}")
    mean = {}
    for name, first in places[0].items():
        parts = [_read(place[name], name) for place in places]
        for folder, part in zip(folders, parts, strict=True):
            if part.shape != parts[0].shape:
                raise GroError(
                    f"{folder.path}: {name!r} is {list(part.shape)}, in {first.parent} {list(parts[0].shape)}"
                )
        mean[name] = torch.stack([p.double() for p in parts]).mean(0).to(parts[0].dtype)
    target = Path(into)
    target.mkdir(parents=True, exist_ok=True)
    for file in folders[0].path.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".safetensors.index.json"):
            shutil.copy2(file, target / file.name)
    save_file(mean, target / "model.safetensors", metadata={"format": "pt"})


def _tensors(folder: Path) -> dict[str, Path]:
    """The file of every tensor."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    if not found:
        raise GroError(f"{folder}: holds no .safetensors file to average")
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)
