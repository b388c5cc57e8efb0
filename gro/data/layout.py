"""Which dataset type the columns make, and which column is which.

The types are TRL's but for `rewarded`, each in plain text or in messages:

    language_modeling     text | messages
    prompt_only           prompt
    prompt_completion     prompt, completion
    preference            [prompt,] chosen, rejected [, margin]      without prompt: what both have in common
    unpaired_preference   prompt, completion, label
    rewarded              prompt, completion, reward; or prompt, completions, rewards (lists of one prompt's)
    stepwise_supervision  prompt, completions, labels                recognised; no algorithm uses it yet
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gro.data.spec import DataSpec, Kind
from gro.data.turns import nearest
from gro.errors import DataError, GroError

_NEEDS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen", "rejected"),),
    "stepwise_supervision": (("prompt", "completions", "labels"),),
    "unpaired_preference": (("prompt", "completion", "label"),),
    "rewarded": (
        ("prompt", "completion", "reward"),
        ("prompt", "completions", "rewards"),
        ("prompt", "completion"),
        ("prompt", "completions"),
    ),
    "prompt_completion": (("prompt", "completion"), ("chosen", "rejected")),
    "language_modeling": (("messages",), ("text",)),
    "prompt_only": (("prompt",), ("chosen", "rejected"), ("messages",)),
}
"""The columns of each type, one of several sets.  In the order in which types are told from columns."""

_TELLING: Mapping[Kind, int] = {"rewarded": 2, "prompt_completion": 1, "prompt_only": 1}
"""How many of the sets tell the type; the others serve only who names it."""

_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "input", "query", "problem"),
    "completion": ("answer", "response", "output", "solution", "target"),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "turns"),
    "text": ("content", "document"),
    "chosen": ("preferred", "accepted", "response_chosen", "response_j"),
    "rejected": ("dispreferred", "response_rejected", "response_k"),
    "label": ("labels", "preference"),
    "reward": ("score", "rating", "return"),
}
"""Other data sets' names for these columns, to suggest; nothing is renamed by itself."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a data set are read."""

    kind: Kind
    spec: DataSpec
    names: frozenset[str]
    """What the rows have, by the names of this library."""

    def column(self, name: str) -> str:
        """What the file calls it."""
        return self.spec.columns.get(name, name)


def detect(columns: Iterable[str], spec: DataSpec) -> Layout:
    """The layout of rows with these columns; a `DataError` lists what was found and the nearest name."""
    found = list(dict.fromkeys(columns))
    names = {*found, *spec.columns}
    for name, source in spec.columns.items():
        if source not in found:
            raise _missing(spec, source, found, f"the column that {name!r} is mapped to", name)
    for template in (spec.prompt_template, spec.completion_template):
        for name in template_fields(template or ""):
            if name not in names and name != "completion":
                raise _missing(spec, name, found, "the column that the template names")
    if spec.prompt_template is not None:
        names.add("prompt")
    if spec.completion_template is not None and "chosen" not in names:
        names.add("completion")
    kind = _told(names) if spec.kind == "auto" else spec.kind
    if kind is None:
        expected, fix = "the columns of a dataset type", _suggest(found)
        raise DataError(spec.paths[0], found=f"the columns {_some(found)}", expected=expected, fix=fix)
    if kind == "stepwise_supervision":
        fix = "Its prompts can be used with kind: prompt_only."
        raise DataError(spec.paths[0], found=f"the type {kind}, which no algorithm uses yet", fix=fix)
    if not any(names.issuperset(needs) for needs in _NEEDS[kind]):
        absent = next(name for name in _NEEDS[kind][0] if name not in names)
        raise _missing(spec, absent, found, f"a column of the type {kind}")
    return Layout(kind, spec, frozenset(names))


def _told(names: set[str]) -> Kind | None:
    for kind, sets in _NEEDS.items():
        if any(names.issuperset(needs) for needs in sets[: _TELLING.get(kind)]):
            return kind
    return None


def _suggest(found: list[str]) -> str:
    guesses: dict[str, str] = {}
    for name, others in _ALSO_CALLED.items():
        source = next((c for c in found if c.lower() in others), None) or nearest(name, found)
        if source:
            guesses.setdefault(source, name)
    if guesses:
        inside = ", ".join(f"{name}: {source}" for source, name in guesses.items())
        return f"Say which is which, perhaps with columns: {{{inside}}}."
    return "Types: text; messages; prompt; prompt, completion; chosen, rejected; prompt, completion, label or reward."


def _missing(spec: DataSpec, name: str, found: list[str], expected: str, used_as: str = "") -> DataError:
    close = nearest(name, found) or next((c for c in found if c.lower() in _ALSO_CALLED.get(name, ())), None)
    fix = f"The nearest is {close!r}; columns: {{{used_as or name}: {close}}} would use it." if close else ""
    return DataError(spec.paths[0], field=name, found=f"the columns {_some(found)}", expected=expected, fix=fix)


def _some(names: list[str]) -> str:
    return (", ".join(map(repr, names[:20])) or "none") + (", …" if len(names) > 20 else "")


def template_fields(template: str) -> list[str]:
    """The columns that a template names; a `GroError` for anything but a plain name in braces."""
    return [name for _, name in template_parts(template) if name is not None]


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Literal text, each with the name of the field behind it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as e:
        raise GroError(f"the template {template!r} cannot be read ({e}); write {{{{ and }}}} for braces") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise GroError(f"{{{name}}} in the template {template!r} is not the plain name of a column")
    return [(literal, name) for literal, name, _, _ in parts]
