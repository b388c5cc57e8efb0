"""The reference of recipes, from the settings classes: their annotations, defaults and the docstrings under fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gro.algorithms.describe import type_in_words
from gro.config import Config
from gro.policy.spec import ARCHITECTURES
from gro.rewards import RewardSpec

REQUIRED = dataclasses.MISSING
YAML = {"None": "null", "True": "true", "False": "false"}
LARGEST = 2**53
"""Whole numbers end here, where floats could not tell them apart; that is not worth saying."""


@dataclass(frozen=True, slots=True)
class Section:
    """A settings class in the reference."""

    owner: type
    title: str
    remark: str = ""


def page() -> str:
    """The whole reference."""
    lines = [
        "# Recipe reference",
        "",
        "A recipe is a YAML file of these keys.  Any of them can be given on the command line over the recipe, as",
        "`key=value` or `key.sub=value`.  Unknown keys are errors, and `gro check` names all mistakes at once.",
        "A bold key has no default.  The parameters of each algorithm are on [its page](algorithms/README.md).",
        "",
    ]
    for section in SECTIONS:
        lines += [f"## {section.title}", ""]
        lines += [] if section.owner is Config else [summary(section.owner), ""]
        lines += [section.remark, ""] if section.remark else []
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [row(section.owner, name) for name in documented(section.owner)]
        lines.append("")
    return "\n".join(lines)


def row(owner: type, name: str) -> str:
    """The line of one field."""
    annotation, default = types_of(owner)[name], default_of(owner, name)
    key = RECIPE_NAMES.get((owner, name), f"`{name}`")
    key = f"**{key}**" if default is REQUIRED else key
    cells = (key, in_words(annotation), "" if default is REQUIRED else f"`{shown(default)}`", meaning(owner, name))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def meaning(owner: type, name: str) -> str:
    """The docstring under the field; where there is none, what the settings that it holds are."""
    held = settings_in(types_of(owner)[name])
    text = documented(owner)[name] or (summary(held) if held else "")
    return re.sub(r"\b(None|True|False)(?=:)", lambda found: YAML[found[0]], text)


def documented(owner: type) -> dict[str, str | None]:
    """Each field of the class with the docstring under it, None where there is none."""
    body = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str | None] = {}
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[node.target.id] = " ".join(str(after.value.value).split()) if said else None  # type: ignore[union-attr]
    return found


def summary(owner: type) -> str:
    """The first paragraph of the class's docstring."""
    return " ".join(inspect.cleandoc(owner.__doc__ or "").split("\n\n")[0].split())


def types_of(owner: type) -> dict[str, Any]:
    """Field → annotation, with its constraints."""
    return get_type_hints(owner, include_extras=True)


def settings_in(annotation: Any) -> type | None:
    """The settings class in an annotation, if there is one."""
    return next((t for t in _inside(annotation) if isinstance(t, type) and dataclasses.is_dataclass(t)), None)


def _inside(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _inside(inner)


def default_of(owner: type, name: str) -> Any:
    """The default, or REQUIRED."""
    if issubclass(owner, BaseModel):
        value = owner.model_fields[name].default
        return REQUIRED if value is PydanticUndefined else value
    assert dataclasses.is_dataclass(owner)
    field = next(f for f in dataclasses.fields(owner) if f.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def shown(value: Any) -> str:
    """A value as YAML has it."""
    if dataclasses.is_dataclass(value):
        return "{}"
    if value is None or isinstance(value, bool):
        return YAML[str(value)]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_words(annotation: Any) -> str:
    """An annotation for people, settings classes linked to their section."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{in_words(inner[0])} {constraints(inner[1:])}".rstrip()
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (tuple, list):
        return "list" if inner[0] is Any else f"list of {in_words(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping" if inner[1] is Any else f"mapping of {in_words(inner[0])} to {in_words(inner[1])}"
    if origin is not None:  # a function, which no recipe can hold
        return "text"
    section = next((s for s in SECTIONS if s.owner is annotation), None)
    if section is not None:
        title = section.title
        return f"[{title[0].lower() + title[1:]}](#{anchor(title)})"
    return type_in_words(annotation)


def anchor(title: str) -> str:
    """What a heading is called in links."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def constraints(metadata: tuple[Any, ...]) -> str:
    """Bounds of a number."""
    bounds = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [(sign, getattr(m, name, None)) for m in bounds for name, sign in signs.items()]
    return " and ".join(f"{sign} {shown(bound)}" for sign, bound in found if bound not in (None, LARGEST))


def _settings(*place: str) -> type:
    """The settings class at this place of a recipe."""
    owner: type = Config
    for key in place:
        found = settings_in(types_of(owner)[key])
        assert found is not None, place
        owner = found
    return owner


SECTIONS = (
    Section(Config, "Top level"),
    Section(_settings("model"), "model", "`model: path` is short for `model: {path: ...}`."),
    Section(_settings("model", "create"), "model.create", f"Architectures: {', '.join(ARCHITECTURES)}."),
    Section(_settings("training"), "training"),
    Section(_settings("training", "stop"), "training.stop", "See [over-optimisation](overoptimisation.md)."),
    Section(_settings("training", "alarms"), "training.alarms", "Causes, and what to do: [alarms](alarms.md)."),
    Section(_settings("optimizer"), "optimizer"),
    Section(_settings("critic"), "critic"),
    Section(_settings("reward_model"), "reward_model"),
    Section(_settings("overopt"), "overopt", "See [over-optimisation](overoptimisation.md)."),
    Section(_settings("overopt", "sizes"), "overopt.sizes"),
    Section(
        _settings("online"),
        "Data",
        "The keys of `offline`, `online` and `eval.data`.  What the columns mean: [guide](guide.md#data).",
    ),
    Section(_settings("offline"), "Several offline data sets", "`offline: [{data: {...}, weight: 3}, {data: {...}}]`"),
    Section(_settings("sampling"), "sampling"),
    Section(_settings("resample"), "resample"),
    Section(_settings("replay"), "replay"),
    Section(RewardSpec, "Items of rewards", "A bare name or `path/to/file.py:function` is short for `{reward: ...}`."),
    Section(_settings("eval"), "eval"),
)
"""In the order of the page."""

RECIPE_NAMES = {(RewardSpec, "name_or_path"): "`reward`", (RewardSpec, "params"): "anything else"}
"""Where a recipe's key is not the field's name."""
