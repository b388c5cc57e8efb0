"""Models: where they lie, what can be known of them without weights, and those made from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gro.config import Config
from gro.data.files import read_rows
from gro.data.spec import DataSpec
from gro.errors import GroError
from gro.policy import adapter, adapter_folder
from gro.policy.create import configuration, create_model, train_tokenizer
from gro.policy.folder import find, inspect
from gro.policy.loading import load_tokenizer
from gro.policy.policy import Policy
from gro.runs import files
from gro.runs.store import CHECKPOINTS, DATABASE

MODEL, START = "model", "start"
"""Folders of a run: the exported model, and the model it started from where the recipe made one."""


def model_folder(path: str) -> str:
    """A run directory stands for the model exported in it; a GroError where it has none yet."""
    folder = Path(path).expanduser()
    if (folder / MODEL).is_dir():
        return str(folder / MODEL)
    if (folder / DATABASE).is_file():
        saved = sorted((folder / CHECKPOINTS).glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        other = f"; {saved[-1]} is its latest checkpoint" if saved else ""
        raise GroError(f"{path} is a run that has exported no model: it is not finished{other}")
    return path


@dataclass(frozen=True, slots=True)
class Start:
    """The starting model, as far as it can be known without its weights."""

    path: str | None
    """Its folder; None: it would be made from nothing, and was not."""
    tokenizer: PreTrainedTokenizerBase
    architecture: Any
    """The transformers configuration."""
    ends: tuple[int, ...]
    """End tokens of the tokenizer and of the model's generation configuration."""


def start_of(config: Config, run: Path | None = None) -> Start:
    """The recipe's starting model.  run: where a model from nothing is made; None: its weights are not made."""
    create = config.model.create
    if create is None:
        path = config.model.path
        assert path is not None
        try:
            start = start_at(model_folder(path), allow_pickle=config.model.allow_pickle)
            if config.model.lora is not None:
                adapter.check_targets(start.architecture, config.model.lora)
            return start
        except GroError as error:
            missing = not Path(path).expanduser().exists()
            first = ". If it is the run of another recipe, train that first" if missing else ""
            raise GroError(f"model: {error}{first}") from error
    if run is not None and (run / START).exists():
        return start_at(str(run / START))
    with _of_create():
        tokenizer = train_tokenizer(_texts(config), create.vocab_size, all_bytes=create.all_bytes)
        if run is None:
            made = configuration(create, tokenizer)
            if config.model.lora is not None:
                adapter.check_targets(made, config.model.lora)
            return Start(None, tokenizer, made, _end_ids(None, tokenizer))
        with files.new_directory(run / START) as folder:
            create_model(create, tokenizer, folder)
    return start_at(str(run / START))


def start_at(path: str, *, allow_pickle: bool = False) -> Start:
    """The model in a folder or on the hub, inspected: its files are complete, and nothing in them is executed.

    An adapter's folder stands for its base with the adapter on it.
    """
    place = adapter_folder.locate(path)
    folder = inspect(find(place.base), allow_pickle=allow_pickle)
    tokenizer = load_tokenizer(place.tokenizer)
    return Start(path, tokenizer, folder.config, _end_ids(folder.path, tokenizer))


def _end_ids(folder: Path | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    found = [tokenizer.eos_token_id]
    if folder is not None and (folder / "generation_config.json").is_file():
        ids = files.read_json(folder / "generation_config.json").get("eos_token_id")
        found += ids if isinstance(ids, list) else [ids]
    return tuple(sorted({i for i in found if isinstance(i, int)}))


@contextmanager
def _of_create() -> Iterator[None]:
    try:
        yield
    except GroError:
        raise
    except ValueError as error:
        raise GroError(f"model.create: {error}") from error


def load_policy(config: Config, path: str, *, trains: bool = True) -> Policy:
    """The model at `path` as the recipe wants it; one that is not trained has no adapter apart."""
    settings = config.model
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise GroError(
            f"model.device: {settings.device}, but torch finds no CUDA device here; auto takes what there is"
        )
    return Policy.load(
        path,
        dtype=settings.dtype,
        device=settings.device,
        activation_checkpointing=settings.activation_checkpointing,
        allow_pickle=settings.allow_pickle,
        autocast=settings.autocast,
        lora=settings.lora if trains else None,
        seed=config.training.seed,
    )


def _texts(config: Config) -> Iterator[str]:
    """Every text of the recipe's training rows, for the tokenizer of a new model."""
    specs = [weighted.data for weighted in config.offline] + ([config.online] if config.online else [])
    for spec in specs:
        for index, row in enumerate(_rows(spec)):
            if spec.stop is not None and index >= spec.stop:
                break
            if row is not None and index >= spec.start:
                yield from _strings(row)


def _rows(spec: DataSpec) -> Iterator[Mapping[str, Any] | None]:
    """The rows of all files; None for one that cannot be read, which loading the data reports."""
    for path in spec.paths:
        unreadable: list[Exception] = []
        for row in read_rows(path, unreadable.append):
            yield from (None for _ in unreadable)
            unreadable.clear()
            yield row.fields
        yield from (None for _ in unreadable)


def _strings(fields: Mapping[str, Any]) -> Iterator[str]:
    stack = list(fields.values())
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """Token ids to text, special tokens left out."""
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))
