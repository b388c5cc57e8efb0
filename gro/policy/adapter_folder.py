"""An adapter's folder in peft's format: adapter_config.json, adapter_model.safetensors, and of which base it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from gro.errors import GroError
from gro.policy.adapter import NAME, Adapter, Base, attach, matched, require, targets_of, weights_of
from gro.policy.folder import Folder, find
from gro.policy.spec import LoraSettings

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_PREFIX = "base_model.model."
"""What peft puts before the names of a model's tensors."""
_READ = ("r", "lora_alpha", "target_modules", "use_rslora", "layers_to_transform")
_HARMLESS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version",
    "lora_dropout", "init_lora_weights", "fan_in_fan_out",
}  # fmt: skip
"""Keys that do not change what an adapter computes, once it is trained."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Of init_lora_weights: the others change the base's weights too."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lies: its folder or name, and the folder of an adapter on it."""

    base: str
    adapter: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder that the tokenizer is in: the adapter's, where it brings one."""
        own = self.adapter is not None and (self.adapter / "tokenizer.json").is_file()
        return self.adapter if own and self.adapter is not None else find(self.base)


def locate(path_or_name: str | Path) -> Place:
    """The model at this place; for an adapter's folder, the base that it names.

    Raises:
        GroError: an adapter's folder whose base cannot be found.
    """
    folder = Path(path_or_name).expanduser()
    if (folder / "config.json").exists() or not (folder / CONFIG).is_file():
        return Place(str(path_or_name))
    named = _json(folder / CONFIG).get("base_model_name_or_path")
    noted = _json(folder / BASE).get("relative") if (folder / BASE).is_file() else None
    # The relative one is right where a run was moved together with the model that it started from.
    places = [str(named)] if named else []
    places += [str(folder / noted)] if isinstance(noted, str) else []
    if not places:
        raise GroError(f"{folder / CONFIG}: base_model_name_or_path is missing; an adapter needs the model it is for")
    base = next((place for place in places if Path(place).expanduser().is_dir()), places[0])
    if (Path(base) / CONFIG).is_file() and not (Path(base) / "config.json").is_file():
        raise GroError(f"{folder / CONFIG}: the base {base} is an adapter itself; merge it first")
    try:
        find(base)
    except GroError as error:
        raise GroError(f"{folder}: the adapter's base model is not there: {error}") from error
    return Place(base, folder)


def fingerprint(folder: Folder) -> str | None:
    """A hash of the weights: name, type and shape of every tensor, and its middle row; None where they are pickled."""
    if not folder.tensors:
        return None
    sha = hashlib.sha256()
    for file in sorted({entry.file for entry in folder.tensors.values()}):
        with safe_open(file, "pt") as opened:
            for name in sorted(n for n, entry in folder.tensors.items() if entry.file == file):
                entry = folder.tensors[name]
                sha.update(f"{name} {entry.dtype} {entry.shape}".encode())
                rows = opened.get_slice(name) if entry.shape else opened.get_tensor(name)[None]
                middle = entry.shape[0] // 2 if entry.shape else 0
                sha.update(rows[middle : middle + 1].contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def base_of(place: Place, folder: Folder) -> Base:
    """The base at this place, whose folder this is: with its full path, or under its name on the hub."""
    local = Path(place.base).expanduser().is_dir()
    return Base(str(folder.path.resolve()) if local else place.base, fingerprint(folder))


# --- writing ---------------------------------------------------------------------------------------------------------


def write(folder: Path, adapter: Adapter, model: PreTrainedModel, more: Mapping[str, Tensor] | None = None) -> None:
    """The adapter as peft loads it.  more: further tensors that were trained, by the names of the exported model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = type(adapter.config)(**adapter.config.to_dict())
    config.base_model_name_or_path = adapter.base.name
    if more:
        config.task_type = "SEQ_CLS"
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in more})
    config.inference_mode = True
    if not isinstance(config.target_modules, str):  # a set, whose order is another one in every process
        config.target_modules = sorted(config.target_modules or ())  # type: ignore[assignment]
    config.save_pretrained(str(folder))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _in_file(model, more).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    local = bool(adapter.base.name) and Path(adapter.base.name).is_dir()
    relative = os.path.relpath(adapter.base.name, folder) if local else None
    note = {"base": adapter.base.name, "relative": relative, "weights_sha256": adapter.base.sha256}
    (folder / BASE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _in_file(model: PreTrainedModel, more: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors by their names in peft's file."""
    own: dict[str, Tensor] = {name.replace(f".{NAME}.", "."): weight for name, weight in weights_of(model).items()}
    return {_PREFIX + name: tensor for name, tensor in (own | dict(more or {})).items()}


# --- reading ---------------------------------------------------------------------------------------------------------


def read(place: Place, model: PreTrainedModel, base: Folder, settings: LoraSettings | None) -> Adapter:
    """Attaches the adapter at this place to its base model, which has been loaded.

    Args:
        settings: what a recipe wants it to be like; None: as it is.

    Raises:
        GroError: naming the file and key or tensor that is wrong, or the setting that differs.
    """
    require()
    from peft import LoraConfig

    folder = place.adapter
    assert folder is not None
    raw = _json(folder / CONFIG)
    _check_config(folder / CONFIG, raw)
    own_base = base_of(place, base)
    found = own_base.sha256
    noted = _json(folder / BASE).get("weights_sha256") if (folder / BASE).is_file() else None
    if noted is not None and found is not None and noted != found:
        raise GroError(
            f"{folder}: the adapter was trained on other weights than those in {base.path}: their hash was "
            f"{str(noted)[:12]}, found {found[:12]}"
        )
    targets = raw["target_modules"]
    own = LoraSettings(raw["r"], raw["lora_alpha"], targets if targets == "all-linear" else tuple(targets))
    names = targets_of(model, own)
    if settings is not None:
        _compare(folder, own, settings, model)
    config = LoraConfig(
        r=own.rank,
        lora_alpha=own.alpha,  # type: ignore[arg-type]
        target_modules=names,
        use_rslora=bool(raw.get("use_rslora", False)),
        layers_to_transform=raw.get("layers_to_transform"),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    attach(model, config, seed=0)
    load_weights(folder, model)
    return Adapter(own, config, own_base)


def _check_config(file: Path, raw: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    if raw.get("peft_type") != "LORA":
        raise GroError(f"{file}: peft_type is {raw.get('peft_type')!r}; only LORA is understood")
    if raw.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise GroError(
            f"{file}: init_lora_weights is {raw['init_lora_weights']!r}, which changes the base model's weights too; "
            "convert the adapter to a plain one with peft first"
        )
    usual = LoraConfig().to_dict()
    for key, value in sorted(raw.items()):
        plain = key in _READ or key in _HARMLESS or not value or value == usual.get(key)
        if not plain and key == "modules_to_save":
            raise GroError(
                f"{file}: modules_to_save is {value}: beside the adapter whole layers were trained, as in a reward "
                "model. Give the folder in which it is merged"
            )
        if not plain:
            raise GroError(f"{file}: {key} is {value!r}, which is not supported; merge the adapter with peft first")
    targets = raw.get("target_modules")
    if targets != "all-linear" and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise GroError(f"{file}: target_modules is {targets!r}; expected a list of names")
    for key, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(raw.get(key), kind) or not raw[key] > 0:
            raise GroError(f"{file}: {key} is {raw.get(key)!r}; expected a number above 0")


def _compare(folder: Path, own: LoraSettings, wanted: LoraSettings, model: PreTrainedModel) -> None:
    differences = [
        f"{key}: {getattr(own, key):g} there, {getattr(wanted, key):g} in the recipe"
        for key in ("rank", "alpha")
        if getattr(own, key) != getattr(wanted, key)
    ]
    theirs, ours = (matched(model, targets_of(model, settings)) for settings in (own, wanted))
    if theirs != ours:
        shown = [", ".join(sorted({name.rpartition(".")[2] for name in names})) for names in (theirs, ours)]
        differences.append(f"targets: {shown[0]} there, {shown[1]} in the recipe")
    if differences:
        raise GroError(
            f"lora: the start {folder} is an adapter with other settings: {'; '.join(differences)}. Take them over; or "
            "leave lora out, which merges the adapter and trains all weights; or start from the merged model"
        )


@torch.no_grad()
def load_weights(folder: Path, model: PreTrainedModel, more: Mapping[str, Tensor] | None = None) -> None:
    """Fills the adapter that is attached to the model, and `more` as `write` has it, from this folder."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise GroError(f"{file.parent} holds no {WEIGHTS}; pickled adapters are not read")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise GroError(f"{file} is corrupt: {error}") from error
    mine = _in_file(model, more)
    if different := sorted(mine.keys() ^ tensors.keys()):
        where = "only the file has it" if different[0] in tensors else f"it is not among its {len(tensors)} tensors"
        raise GroError(f"{file}: not an adapter for {type(model).__name__} as configured: {different[0]}: {where}")
    for name, weight in mine.items():
        tensor = tensors[name]
        if tensor.shape != weight.shape:
            raise GroError(f"{file}: tensor {name} has shape {list(tensor.shape)}; expected {list(weight.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise GroError(f"{file}: tensor {name} has values that are not finite")
        weight.copy_(tensor)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise GroError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise GroError(f"{file}: found a {type(value).__name__}; expected an object")
    return value
