"""Writes the generated pages of docs/ again: `make docs`, or `python docs/generate.py`.

Everything in them comes from the code: the algorithms' pages and the picture of the slots from the registry, their
curves from docs/curves.json (`python docs/curves.py` measures them), the proof from the registry and the tests' table
of papers' losses, the reference of recipes from the settings classes and the docstrings under their fields, the rewards
from their functions, the table of faults from docs/faults.py and the tests' markers (fault_table.py writes it alone).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import alarm_table
import chart
import fault_table
import picture
import proof
import reference
from cells import markdown_table
from curves import published
from page import NOTE, algorithm_page, shown, source

from gro.algorithms import build
from gro.algorithms.describe import describe, table
from gro.conformance import CHECKS
from gro.rewards.registry import named

DOCS = Path(__file__).resolve().parent
FAMILIES = (
    "likelihood", "policy gradient", "group relative", "presets", "actor critic", "preference", "self play",
    "unpaired", "generalized", "reward model",
)  # fmt: skip
"""In the order of the index; families that are not here come last."""

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("ℓ_t", "log π_θ(y_t given the prompt and y_<t), the log-prob of a completion's token under the policy"),
    ("ℓ_old, ℓ_ref", "the same under the policy at the start of the step, and under the frozen starting policy"),
    ("Σℓ, Σℓ/|y|", "the log-likelihood of a completion, and its mean over the completion's |y| trained tokens"),
    ("sg[…]", "stop gradient: held constant, so that the gradient is that of the unit behind it, weighted"),
    ("R, A", "the reward of a completion, and its advantage: how much better than expected it was"),
    ("s", "the sign of A: which side of the baseline"),
    ("u", "how far a completion (or token) is above its anchor, in the unit in which it is measured"),
    ("r", "a probability ratio, e^u"),
    ("σ", "the logistic function, 1/(1 + e^−x)"),
    ("G", "completions of a prompt"),
    ("B, N", "rows and tokens of the term in the whole update, whatever the micro-batches"),
    ("pairs, P", "preference pairs and prompts of the whole update"),
    ("L_max", "the most tokens that a completion may have"),
    ("clip(r), clamp(r)", "r with a bound: the page's table of slots says which"),
)


def pages() -> dict[str, Callable[[], str]]:
    """What writes each generated file, by its path in docs/."""
    written: dict[str, Callable[[], str]] = {
        f"algorithms/{name}.md": lambda name=name, family=family: algorithm_page(describe(name), family)
        for name, family, _ in table()
    }
    written |= {
        f"images/curves/{name}.svg": lambda name=name: chart.svg(name, published()[name]) for name in published()
    }
    return written | {
        "alarms.md": lambda: NOTE + alarm_table.page(),
        "algorithms/README.md": index,
        "proof.md": proof_page,
        "recipe-reference.md": lambda: NOTE + reference.page(),
        "reliability.md": fault_table.page,
        "rewards.md": rewards_page,
        "images/slots.svg": picture.slots,
    }


def families() -> list[tuple[str, list[tuple[str, str]]]]:
    """(family, its algorithms with a line each), in order."""
    order = {family: i for i, family in enumerate(FAMILIES)}
    rows = sorted(table(), key=lambda row: order.get(row[1], len(order)))
    return [(family, [(n, line) for n, _, line in rows]) for family, rows in groupby(rows, key=lambda row: row[1])]


def index() -> str:
    """The table of all algorithms, what stands in their slots, and how to read their formulas."""
    lines = [
        "# Algorithms",
        "",
        "Each page is made from the declaration that trains.  In a terminal: `gro algorithms`.  What was measured of",
        "each: [proof](../proof.md).  One of your own: [invent an objective](../invent.md).",
        "",
    ]
    for family, members in families():
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        lines += markdown_table(("name", "what it does"), ((f"[{n}]({n}.md)", line) for n, line in members))
        lines.append("")
    lines += ["## What stands in the slots", ""]
    lines += markdown_table(
        ("algorithm", "rows", *SLOTS.values()),
        (slot_cells(cells) for _, members in families() for n, _ in members for cells in picture.rows_of(build(n))),
    )
    lines += ["", "## How to read the formulas", ""]
    lines += markdown_table(("symbol", "meaning"), GLOSSARY)
    lines += ["", "What the slots are, and why there are these: [architecture](../architecture.md).", ""]
    return NOTE + "\n".join(lines)


SLOTS = {
    "credit": "credit A", "unit": "unit φ", "anchor": "anchor ε", "weight": "weight w", "value": "value v",
    "share": "share",
}  # fmt: skip
"""The slots' columns and their titles."""


def slot_cells(cells: dict[str, str]) -> list[str]:
    """A term's row: name, rows and slots, as code."""
    name = f"[{cells['name']}]({cells['name']}.md)" if cells["name"] else ""
    return [name, cells["over"], *(f"`{cells[key]}`" if cells.get(key) else "" for key in SLOTS)]


def proof_page() -> str:
    """Every algorithm and setting: slots, source, measured errors, checks."""
    lines = ["# Proof", "", *PROOF_HEAD, "", "## The checks", ""]
    lines += markdown_table(("check", "what is claimed"), ((c.name, c.claim) for c in CHECKS))
    for family, members in families():
        lines += ["", f"## {family[0].upper()}{family[1:]}"]
        for name, _ in members:
            lines += ["", *proof_of(name)]
    return NOTE + "\n".join(lines) + "\n"


PROOF_HEAD = (
    "For every algorithm, the loss of its paper is written down a second time, as a plain function of completions",
    "that knows nothing of the equation's slots (`tests/algorithms/rows/`).  On random updates (three seeds, float64;",
    "groups of several sizes, untrained and single tokens, failed rewards, ties, empty completions, NaN wherever no",
    "loss is carried) autograd differentiates that loss, and the declaration's coefficients and value are compared",
    "with it.  The worst error is rounded up to 1e-14, 1e-12 or 1e-10; more fails the tests.  Exponents are clamped to",
    "±20 here and not in the papers: that is what is seen of `awr`, whose β makes weights of e^−100.",
    "",
    "Every setting in these tables also passes all checks that apply to it; `gro algorithms --verify` runs them on an",
    "algorithm of your own.  The last line of each algorithm says which do not apply to it as published, and why is in",
    "their claims.",
)


def proof_of(name: str) -> list[str]:
    """The section of one algorithm."""
    page = describe(name)
    lines = [f"### {name}", "", f"[{name}](algorithms/{name}.md): {source(page)}", ""]
    lines += markdown_table(("setting", *SLOTS.values(), "gradient", "value"), settings(name))
    holding, idle = proof.conformance(name)
    return [*lines, "", f"{holding} checks hold" + (f"; not applicable: {', '.join(idle)}." if idle else ".")]


def settings(name: str) -> Iterable[list[str]]:
    """A row for every term of every setting."""
    for parameters, subject, gradient, value in proof.measured(name):
        errors = [proof.error(gradient), proof.error(value)]
        for k, cells in enumerate(picture.rows_of(subject.algorithm)):
            slots = slot_cells(cells)[2:]
            yield [proof.shown(parameters), *slots, *errors] if k == 0 else ["", *slots, "", ""]


def rewards_page() -> str:
    """Every reward with a name: what it gives and what can be set."""
    lines = ["# Rewards", "", *REWARDS_HEAD, ""]
    lines += markdown_table(("name", "reward", "options"), (reward_row(n, f) for n, f in sorted(named().items())))
    return NOTE + "\n".join(lines) + "\n"


REWARDS_HEAD = (
    "The rewards that a recipe can name.  Options are further keys of its item: `{reward: maths, last_number: false}`.",
    "[Rewards in detail](rewards-in-detail.md) has all of them at length, servers, the sandbox and failures;",
    "[reward models](reward-models.md), [judges](judges.md) and [people](labelling.md#people-in-the-loop) have pages",
    "of their own.  Functions of yours: [guide](guide.md#your-own-reward).",
)


def reward_row(name: str, function: Callable[..., object]) -> tuple[str, str, str]:
    """Name, first paragraph of the docstring, options with their defaults."""
    said = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    options = inspect.signature(function).parameters.values()
    given = [f"`{p.name}: {shown(p.default)}`" for p in options if p.default is not p.empty]
    return f"`{name}`", said, ", ".join(given) or "none"


def main() -> None:
    """Writes what has changed, and removes pages of algorithms that are gone."""
    written = pages()
    for name, write in written.items():
        path, text = DOCS / name, write()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    for path in [*(DOCS / "algorithms").glob("*.md"), *(DOCS / "images/curves").glob("*.svg")]:
        name = path.relative_to(DOCS).as_posix()
        if name not in written:
            path.unlink()
            print(f"removed docs/{name}")


if __name__ == "__main__":
    main()
