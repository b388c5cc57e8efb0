"""pydantic's errors in the words of a recipe: the key, what was found, what was expected, the nearest right key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from gro.errors import nearest
from gro.recipe import all_keys, annotation_at, keys_of


def _is_branch(part: str) -> bool:
    """pydantic names the member of a union that it tried; no key of ours looks like that."""
    return part == "str" or part.startswith(("tuple[", "literal[", "function-"))


_ELSEWHERE = {
    "output_dir": "run", "run_dir": "run", "model_name_or_path": "model", "model_name": "model",
    "dataset": "offline or online", "dataset_name": "offline or online", "train_dataset": "offline or online",
    "data": "offline or online", "eval_dataset": "eval", "reward_funcs": "rewards", "reward": "rewards",
    "num_generations": "group_size", "max_completion_length": "sampling.max_new_tokens",
    "max_steps": "training.steps", "num_train_epochs": "training.steps", "num_iterations": "training.epochs",
    "batch_size": "prompts_per_step", "per_device_train_batch_size": "prompts_per_step",
    "lr": "optimizer.learning_rate", "lr_scheduler_type": "optimizer.schedule",
    "warmup_ratio": "optimizer.warmup_steps", "beta": "algorithm.beta", "epsilon": "algorithm.clip",
    "loss_type": "algorithm", "max_length": "offline.max_length",
}  # fmt: skip
"""What other libraries call things (TRL's arguments above all), and where they stand here."""


def explain(errors: Sequence[ErrorDetails], *, one_data_set: bool) -> list[str]:
    """One line per wrong key.  one_data_set: `offline` is written without a list, and so it is named."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        place = [str(part) for part in error["loc"] if not _is_branch(str(part))]
        by_key.setdefault(".".join(place), []).append(error)
    lines = []
    for key, found in by_key.items():
        if any(other.startswith(f"{key}.") and found[0]["loc"][-1] == "str" for other in by_key):
            continue  # a list was meant, and something in it is wrong
        shown = key.replace("offline.0.data", "offline", 1) if one_data_set else key
        lines.append(f"{shown}: {_line(key, shown, found)}")
    return lines


def _line(key: str, shown: str, errors: Sequence[ErrorDetails]) -> str:
    first = errors[0]
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "unknown key" + _suggestion(tuple(key.split(".")))
        case "missing" | "missing_argument":
            return "missing; it has no default"
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
    expected = " or ".join(dict.fromkeys(_expected(key, error) for error in errors))
    return f"found {_found(first.get('input'))}; expected {expected}{_hint(first)}"


def _suggestion(place: tuple[str, ...]) -> str:
    name, above = place[-1], place[:-1]
    here = keys_of(annotation_at(above)) if above else keys_of(annotation_at(()))
    near = nearest(name, here)
    elsewhere = [key for key in all_keys().get(name, ()) if key != ".".join(place)]
    if elsewhere and not near.endswith(f"{name!r}?"):
        return f"; there is {' and '.join(elsewhere[:3])}"
    if not above and name in _ELSEWHERE:
        return f"; here it is {_ELSEWHERE[name]}"
    return near or (f"; known are {', '.join(here)}" if here else "")


def _expected(key: str, error: ErrorDetails) -> str:
    limits = error.get("ctx", {})
    match error["type"]:
        case "string_type":
            return "text"
        case "int_type" | "int_from_float" | "int_parsing_size":
            return "a whole number"
        case "float_type":
            return "a number"
        case "bool_type":
            return "true or false"
        case "finite_number":
            return "a finite number"
        case "tuple_type":
            return "a list"
        case "dataclass_type" | "model_type" | "dict_type" | "mapping_type":
            known = ", ".join(keys_of(annotation_at(tuple(key.split(".")))))
            return f"keys and values ({known})" if known else "keys and values"
        case "greater_than":
            return f"a number above {limits['gt']:g}"
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than":
            return f"a number below {limits['lt']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
        case "string_too_short":
            return "some text"
        case "string_pattern_mismatch" if key.endswith("device"):
            return "auto, cpu, mps, cuda or cuda:0"
        case "literal_error":
            return str(limits["expected"])
        case _:
            return error["msg"].removeprefix("Input should be ").removeprefix("a valid ")


def _found(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(error: ErrorDetails) -> str:
    found, kind = error.get("input"), error["type"]
    if isinstance(found, bool) and kind in ("string_type", "literal_error"):
        return ". YAML reads yes, no, on and off as true and false: put the word in quotes"
    if isinstance(found, int | float) and kind == "string_type":
        return ": put it in quotes"
    if isinstance(found, str) and kind == "bool_type" and found.lower() in ("yes", "no", "on", "off", "true", "false"):
        return ", without quotes"
    if kind == "literal_error" and isinstance(found, str):
        return nearest(
            found, str(error.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        )
    return ""
