"""Models and tokenizers from disk, with everything that can be wrong with them said clearly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from gro.errors import GroError
from gro.policy.folder import Folder, find, inspect

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load(
    path_or_name: str | Path, *, dtype: str = "float32", device: str = "auto", allow_pickle: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal model with master weights in `dtype`, whatever the file holds, without dropout; and its tokenizer.

    Raises:
        GroError: naming the file, the tensor or the sizes that are wrong.
    """
    if dtype not in _DTYPES:
        raise GroError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    folder = inspect(find(path_or_name), allow_pickle=allow_pickle)
    if type(folder.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise GroError(f"{folder.path}: {folder.config.model_type} is not a causal language model")
    tokenizer = load_tokenizer(folder.path)
    model = _weights(folder, getattr(torch, dtype), allow_pickle)
    check_vocabulary(tokenizer, model, folder.path)
    silence_dropout(model)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(torch.device(device)).eval(), tokenizer  # type: ignore[arg-type]


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder."""
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise GroError(f"{path} holds no tokenizer: expected tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise GroError(f"{path}: the tokenizer cannot be read: {error}") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, where: Path) -> None:
    """Refuses a tokenizer that makes ids without an embedding.  More embeddings than tokens are common and harmless."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    highest = max(tokenizer.get_vocab().values())
    if highest >= embedding.num_embeddings:
        raise GroError(
            f"{where}: the tokenizer's highest id is {highest} ({len(tokenizer)} tokens), but the model has only "
            f"{embedding.num_embeddings} embeddings; they do not belong together, or the embeddings were not resized"
        )


def silence_dropout(model: nn.Module) -> None:
    """Every probability of dropping something becomes 0, whatever mode a module is put into.

    Scores must not depend on chance: with dropout in one of them, the first ratio to the old policy is not 1.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(module, name, 0.0)


def _weights(folder: Folder, dtype: torch.dtype, allow_pickle: bool) -> PreTrainedModel:
    with quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder.path),
                config=folder.config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=None if allow_pickle and not folder.tensors else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the file
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise GroError(f"{folder.path}: the model cannot be loaded: {error}") from error
    model, info = loaded
    _check_loading(folder, info)
    _check_values(folder, model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and report, which our messages replace."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_loading(folder: Folder, info: dict[str, Any]) -> None:
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise GroError(
            f"{_file(folder, name)}: tensor {name} has shape {tuple(found)}, config.json asks for {tuple(expected)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise GroError(
            f"{folder.path}: {len(missing)} tensors of the model are not in its files: {', '.join(missing[:5])}"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        names = ", ".join(unexpected[:5])
        warnings.warn(
            f"{folder.path}: {len(unexpected)} tensors are not part of the model and ignored: {names}", stacklevel=2
        )


def _check_values(folder: Folder, model: PreTrainedModel) -> None:
    for name, tensor in model.named_parameters():
        # A sum is not finite if any element is not, and reads the weights once without a copy of their size.
        if not bool(torch.isfinite(tensor.detach().sum(dtype=torch.float64))):
            bad = int((~torch.isfinite(tensor)).sum())
            raise GroError(f"{_file(folder, name)}: {bad} of {tensor.numel()} values of tensor {name} are not finite")
    head = model.get_output_embeddings()
    if head is not None and not bool(head.weight.detach().any()):  # type: ignore[operator]
        raise GroError(f"{folder.path}: the output embedding is all zeros; the model's head was never trained")


def _file(folder: Folder, tensor: str) -> Path:
    entry = folder.tensors.get(tensor)
    return entry.file if entry else folder.path
