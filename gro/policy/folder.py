"""A model's folder, inspected before anything in it is loaded, so that what is wrong has a name.

Nothing found in it is ever executed: no remote code, no pickle (unless asked for), no attention kernels by name.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from gro.errors import GroError, in_a_line, nearest

_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What is fetched from the hub: weights in safetensors format, configuration, tokenizer.  No code, no pickle."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LFS = b"version https://git-lfs"
_LARGEST_HEADER = 100_000_000
"""Bytes: what the safetensors library itself allows, and some 10⁶ tensors."""
_MOST_LAYERS = 10_000
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
"""Of a configuration: none is larger than the weights can show."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Of one value; other types are left to the library."""
_IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
"""Keys under which a configuration can name a kernel that transformers would download and run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as its file's header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder that has passed inspection."""

    path: Path
    config: Any
    """The transformers configuration, made from `config.json` without its references to code."""
    tensors: Mapping[str, Entry]
    """By name; empty where the weights are pickled."""


def find(path_or_name: str | Path) -> Path:
    """The folder itself, or the hub's copy of the files that are wanted from it."""
    path = Path(os.path.expanduser(path_or_name))  # (which leaves a user that does not exist as it is)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise GroError(f"{path} is a file; expected the folder of a model in Hugging Face format")
    name = str(path_or_name)
    if not _HUB_NAME.match(name) or name.startswith("."):
        raise GroError(f"{path} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:  # whatever the network, the hub or its cache raise, the user's remedy is the same
        why = in_a_line(error)
        raise GroError(f"{name}: there is no such folder, and it could not be had from the hub ({why})") from error


def inspect(path: Path, *, allow_pickle: bool = False) -> Folder:
    """Reads the configuration and the headers of the weights.

    Raises:
        GroError: naming the file, and where it applies the tensor, with what was found and what was expected.
    """
    for file in sorted(path.iterdir()):
        if file.is_file() and _starts_with(file, _LFS):
            raise GroError(f"{file} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    config = _config(path)
    files = _weight_files(path)
    if files:
        tensors = _headers(path, files)
        _check_sizes(path, config, tensors)
        return Folder(path, config, tensors)
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES)
    if not pickles:
        found = ", ".join(sorted(f.name for f in path.iterdir())) or "nothing"
        raise GroError(f"{path} holds no weights: expected model.safetensors, found {found}")
    if not allow_pickle:
        raise GroError(
            f"{path}: the weights are pickled ({', '.join(pickles)}), and unpickling can run code that is hidden in "
            "them. Convert them to safetensors, or allow it with allow_pickle if you trust their origin"
        )
    return Folder(path, config, {})


def _check_sizes(path: Path, config: Any, tensors: Mapping[str, Entry]) -> None:
    """A model as large as a wrong configuration says would be made, and memory run out, before shapes are compared."""
    longest = max((max(entry.shape, default=0) for entry in tensors.values()), default=0)
    text = config.get_text_config()
    for key in _SIZES:
        found = getattr(text, key, None)
        limit, what = (len(tensors), "tensors") if key == "num_hidden_layers" else (longest, "is the longest dimension")
        if isinstance(found, int) and found > limit:
            raise GroError(f"{path / 'config.json'}: {key} is {found}; {limit} {what} of the weights")


def _starts_with(file: Path, head: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(head)) == head


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise GroError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise GroError(f"{file}: found a {type(value).__name__}; expected an object")
    return value


def _config(path: Path) -> Any:
    file = path / "config.json"
    if not file.exists():
        if (path / "adapter_config.json").exists():
            raise GroError(f"{path} holds an adapter, not a model; give the folder of its base model")
        raise GroError(f"{path} has no config.json; expected a model in Hugging Face format")
    raw = _json(file)
    kind = str(raw.get("model_type"))[:100]
    named = raw.get("auto_map")
    named = named.values() if isinstance(named, dict) else [named] if named else []
    code = sorted({str(v).rpartition("--")[2].split(".")[0] + ".py" for v in named})
    if kind not in CONFIG_MAPPING:
        if code:
            raise GroError(
                f"{file}: model_type {kind!r} is not one that transformers knows; it would take running the code "
                f"beside it ({', '.join(code)}), which is never done. Use a model with native support"
            )
        raise GroError(f"{file}: model_type {kind!r} is unknown{nearest(kind, CONFIG_MAPPING)}")
    if "quantization_config" in raw:
        how = raw["quantization_config"]
        method = how.get("quant_method", "unknown method") if isinstance(how, dict) else "unknown method"
        raise GroError(f"{file}: the weights are quantised ({method}); training needs the full-precision model")
    for part in (raw, raw.get("text_config")):
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int) and layers > _MOST_LAYERS:  # transformers lists them before it looks at anything
            raise GroError(f"{file}: num_hidden_layers is {layers}; expected at most {_MOST_LAYERS}")
    # A known model_type uses transformers' own class even where the folder brings code: the code is ignored.
    try:
        return CONFIG_MAPPING[kind].from_dict(_without_code(raw, file))
    except GroError:
        raise
    except Exception as error:  # every kind of model checks its settings in its own way, or stumbles over them
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise GroError(f"{file}: these settings of a {kind} model cannot be used ({said})") from error


def _without_code(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "auto_map":
            continue
        if key in _IMPLEMENTATIONS:
            if isinstance(value, str) and "/" in value:
                raise GroError(f"{file}: {key} names a kernel to be downloaded and run, {value!r}; remove the key")
            continue
        clean[key] = _without_code(value, file) if isinstance(value, dict) else value
    return clean


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files in use, or none."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        single = path / "model.safetensors"
        return [single] if single.exists() else []
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise GroError(f"{index}: found no weight_map; expected the file of every tensor by its name")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise GroError(f"{index}: names the weight file {outside[0]!r}; expected .safetensors files beside it")
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise GroError(f"{path}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:5])}")
    return [path / name for name in names]


def _headers(path: Path, files: list[Path]) -> dict[str, Entry]:
    tensors: dict[str, Entry] = {}
    for file in files:
        for name, entry in _header(file).items():
            tensors[name] = entry
            if name.endswith("weight") and entry.dtype not in _FLOATS:
                raise GroError(f"{file}: tensor {name} has dtype {entry.dtype}; expected {', '.join(sorted(_FLOATS))}")
    index = path / "model.safetensors.index.json"
    if index.exists():
        for name, shard in _json(index)["weight_map"].items():
            if name not in tensors:
                raise GroError(f"{path / shard}: tensor {name} is missing, though {index.name} says that it is there")
    return tensors


def _header(file: Path) -> dict[str, Entry]:
    """Format: 8 bytes of header length, the header in JSON, and the data, covered without gap or overlap."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise GroError(f"{file} is truncated or not safetensors: {size} bytes, of which a header of {length}")
        if length > _LARGEST_HEADER:
            raise GroError(f"{file}: found a header of {length} bytes; expected at most {_LARGEST_HEADER}")
        try:
            raw = json.loads(stream.read(length))
            entries = {k: v for k, v in raw.items() if k != "__metadata__"}
            places = {k: (int(v["data_offsets"][0]), int(v["data_offsets"][1])) for k, v in entries.items()}
            tensors = {k: Entry(file, str(v["dtype"]), tuple(map(int, v["shape"]))) for k, v in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise GroError(f"{file} is corrupt: its safetensors header cannot be read ({error})") from error
    expected = 8 + length + max((end for _, end in places.values()), default=0)
    if size != expected:
        raise GroError(f"{file} is truncated or corrupt: {size} bytes, its header says {expected}")
    _check_places(file, tensors, places)
    return tensors


def _check_places(file: Path, tensors: Mapping[str, Entry], places: Mapping[str, tuple[int, int]]) -> None:
    """Every tensor where the one before it ends, and as long as its shape says."""
    at = 0
    for name in sorted(places, key=lambda name: places[name]):
        (begin, end), entry = places[name], tensors[name]
        width = _BYTES.get(entry.dtype)
        if begin != at or end < begin or min(entry.shape, default=0) < 0:
            raise GroError(f"{file} is corrupt: tensor {name} is said to be at bytes {begin} to {end}; expected {at}")
        if width is not None and end - begin != width * math.prod(entry.shape):
            expected = width * math.prod(entry.shape)
            raise GroError(
                f"{file} is corrupt: tensor {name} has {end - begin} bytes; its shape {entry.shape} takes {expected}"
            )
        at = end
