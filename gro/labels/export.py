"""Labels as files: TRL's preference formats, which this library reads, Label Studio's JSON, and a table."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from statistics import fmean
from typing import Any

from gro.errors import GroError, nearest
from gro.labels.agreement import Ratings
from gro.labels.answers import Kind, categories, worths
from gro.labels.items import Spoken, digest
from gro.labels.reading import Labels

FORMS = ("preference", "ranking", "unpaired", "rewarded", "label-studio", "csv")


@dataclass(frozen=True, slots=True)
class Label:
    """One person's answer, in the order of the item's completions and no longer in the order shown."""

    id: int
    annotator: str
    worth: list[float]
    shown: list[int]
    """Which completion stood in each place."""
    answer: Mapping[str, Any]
    rationale: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item with everything that was said about it."""

    id: str
    prompt: Spoken
    completions: list[Spoken]
    labels: list[Label] = field(default_factory=list)

    def worth(self) -> list[float]:
        """The mean over people."""
        return [fmean(values) for values in zip(*(label.worth for label in self.labels), strict=True)]


def labelled(labels: Labels) -> list[Labelled]:
    """All items with standing labels.  Answers meet texts by their hashes; a `GroError` where those differ."""
    items: dict[str, tuple[Labelled, str, dict[str, int]]] = {}
    found = labels.read(
        """SELECT items.id, prompt, completions, items.prompt_sha, labels.id, annotator, labels.prompt_sha, shown,
        answer, rationale, seconds FROM labels JOIN items ON items.id = labels.item
        WHERE withdrawn IS NULL AND NOT skipped ORDER BY items.place, labels.id"""
    )
    for id, prompt, completions, sha, number, annotator, said_of, shown, answer, rationale, seconds in found:
        if id not in items:
            texts = json.loads(completions)
            items[id] = Labelled(id, json.loads(prompt), texts), sha, {digest(t): i for i, t in enumerate(texts)}
        item, sha, places = items[id]
        hashes, answered = json.loads(shown), json.loads(answer)
        if said_of != sha or set(hashes) != set(places):
            raise GroError(f"{labels.path}: label {number} was made for other texts than those of its item {id}")
        order = [places[h] for h in hashes]
        worth = [0.0] * len(order)
        for place, value in zip(order, worths(labels.kind, answered, len(order)), strict=True):
            worth[place] = value
        item.labels.append(Label(number, annotator, worth, order, answered, rationale, seconds))
    return [item for item, _, _ in items.values()]


def ratings(labels: Labels) -> Ratings:
    """What people can agree on: of each item its categories, by person."""
    found: dict[Any, dict[str, float]] = defaultdict(dict)
    for item in labelled(labels):
        for label in item.labels:
            for part, category in categories(labels.kind, label.worth).items():
                found[item.id, *part][label.annotator] = category
    return found


def export(labels: Labels, form: str, *, each: bool = False) -> str:
    """The text of the file.  each: a row for each person's label; else one for what most, or the mean, say."""
    if form not in FORMS:
        raise GroError(f"--as {form!r} is not one of {', '.join(FORMS)}{nearest(form, FORMS)}")
    if form == "csv":
        return _csv(labels.kind, labelled(labels))
    if form == "label-studio":
        tasks = [_task(labels.kind, item) for item in labelled(labels)]
        return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(labels, form, each=each))


def rows(labels: Labels, form: str, *, each: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a form that is read for training; see `export`."""
    make = {"preference": _preferences, "ranking": _ranking, "rewarded": _rewarded, "unpaired": _unpaired}[form]
    for item in labelled(labels):
        for said in [[label] for label in item.labels] if each else [item.labels]:
            one = replace(item, labels=said)
            for made in make(labels.kind, one):
                if row := _readable(made):
                    yield row | _origin(one, each)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The row without completions of nothing but white space, which no data set may have; empty where none is left."""
    if "completions" not in row:
        sides = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
        return row if all(_text(side).strip() for side in sides) else {}
    kept = [i for i, completion in enumerate(row["completions"]) if _text(completion).strip()]
    each = {name: [values[i] for i in kept] for name, values in row.items() if name != "prompt"}
    return {"prompt": row["prompt"]} | each if kept else {}


def _origin(item: Labelled, each: bool) -> dict[str, Any]:
    """Which texts were labelled, and by how many; of a single label by whom."""
    origin: dict[str, Any] = {"item": item.id, "people": len(item.labels)}
    if each:
        label = item.labels[0]
        origin |= {"annotator": label.annotator}
        origin |= {"rationale": label.rationale} if label.rationale else {}
    return origin


def _preferences(kind: Kind, item: Labelled) -> Iterator[dict[str, Any]]:
    """Every two completions of which more people say that one is better than that the other is."""
    for i, j in permutations(range(len(item.completions)), 2):
        votes = [(label.worth[i] > label.worth[j]) - (label.worth[i] < label.worth[j]) for label in item.labels]
        if sum(votes) > 0:
            yield {"prompt": item.prompt, "chosen": item.completions[i], "rejected": item.completions[j]}


def _ranking(kind: Kind, item: Labelled) -> Iterator[dict[str, Any]]:
    """Best first, with ranks from 1; rewards that say the same, since that is how a ranking is read."""
    worth = item.worth()
    order = sorted(range(len(worth)), key=lambda i: -worth[i])
    ranks = [1 + sum(other > worth[i] for other in worth) for i in order]
    yield {
        "prompt": item.prompt,
        "completions": [item.completions[i] for i in order],
        "rewards": [float(len(order) - rank) for rank in ranks],
        "ranks": ranks,
    }


def _rewarded(kind: Kind, item: Labelled) -> Iterator[dict[str, Any]]:
    """The mean score; of other kinds the share of people who chose it, or how many it is ranked above."""
    yield {"prompt": item.prompt, "completions": item.completions, "rewards": item.worth()}


def _unpaired(kind: Kind, item: Labelled) -> Iterator[dict[str, Any]]:
    """Scores above the middle are good, below it bad; else what is above the mean of its group, or below."""
    worth = item.worth()
    middle = (1 + kind.top) / 2 if kind.top else fmean(worth)
    for completion, value in zip(item.completions, worth, strict=True):
        if value != middle:
            yield {"prompt": item.prompt, "completion": completion, "label": value > middle}


def _task(kind: Kind, item: Labelled) -> dict[str, Any]:
    """A task as Label Studio imports it, with the answers as annotations.  docs/labelling.md has the interface."""
    names = [f"answer{i + 1}" for i in range(len(item.completions))]
    data = {"prompt": _text(item.prompt)} | {n: _text(c) for n, c in zip(names, item.completions, strict=True)}
    annotations = [
        {
            # Label Studio refuses people that it does not know, so a name goes where any text may stand.
            "result": [result | {"meta": {"annotator": label.annotator}} for result in _results(kind, label, names)],
            "lead_time": label.seconds,
            "unique_id": f"{item.id}-{label.id}",
        }
        for label in item.labels
    ]
    return {"data": data, "annotations": annotations, "meta": {"item": item.id}}


def _results(kind: Kind, label: Label, names: list[str]) -> Iterator[dict[str, Any]]:
    if kind.name == "pairs":
        selected = None if label.worth[0] == label.worth[1] else "left" if label.worth[0] > label.worth[1] else "right"
        if selected is None:
            yield _result("tie", names[0], "choices", {"choices": ["tie"]})
        else:
            # Label Studio's own have the name of the control in both places, and it shows no others.
            yield _result("preference", "preference", "pairwise", {"selected": selected})
    elif kind.name == "best":
        chosen = max(range(len(names)), key=label.worth.__getitem__)
        yield _result("best", "prompt", "choices", {"choices": [names[chosen]]})
    else:
        for name, value in zip(names, label.worth, strict=True):
            number = value if kind.top else len(names) - value  # a rank, from 1
            yield _result(f"{'score' if kind.top else 'rank'}-{name}", name, "number", {"number": number})
    if label.rationale:
        yield _result("rationale", "prompt", "textarea", {"text": [label.rationale]})


def _result(name: str, of: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": of, "type": kind, "value": value}


def _text(spoken: Spoken) -> str:
    if isinstance(spoken, str):
        return spoken
    return spoken[0]["content"] if len(spoken) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in spoken)


def _csv(kind: Kind, found: list[Labelled]) -> str:
    """A row for each label and completion, every cell quoted, and none that a spreadsheet would take for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    head = ("item", "label", "annotator", "prompt", "completion", "place", "worth", "rationale", "seconds")
    writer.writerow(head)
    for item in found:
        for label in item.labels:
            for i, completion in enumerate(item.completions):
                row = (item.id, label.id, label.annotator, _text(item.prompt), _text(completion))
                row += (label.shown.index(i) + 1, label.worth[i], label.rationale, label.seconds)
                writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Text with an apostrophe before what begins a formula, behind whatever white space and quotes stand before it."""
    if isinstance(value, str) and value.lstrip(" \t\r\n\v\f\ufeff\u00a0\"'")[:1] in tuple("=+-@|%＝＋－＠"):
        return "'" + value
    if isinstance(value, str) and value[:1] in ("\t", "\r", "\n"):
        return "'" + value
    return value
