"""Algorithms in words and formulas, made from the same values that train."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gro.algorithms.registry import Declaration, declaration, imitates, names, parameters
from gro.algorithms.watch import watch
from gro.algorithms.words import in_words
from gro.objective import Algorithm, Anchor, AnyTerm, EntropyBonus, FromLoss, Term
from gro.objective.units import Unit

_ROWS = {
    "scored": "sampled completions",
    "targets": "demonstrations",
    "paired": "both members of preference pairs",
    "chosen": "preferred completions",
    "versus": "demonstrations and samples of the same prompt",
}
_SELECTED = {
    "scored": "samples that have a reward",
    "targets": "demonstrations",
    "paired": "both members of every preference pair; ties are left out",
    "chosen": "the better member of every preference pair",
    "versus": "a demonstration and the policy's own sample of the same prompt",
}
_LETTERS = {
    "beta": "β",
    "eps": "ε",
    "kappa": "κ",
    "margin": "m",
    "size": "m",
    "eta": "η",
    "gamma": "γ",
    "lam": "λ",
    "alpha": "α",
    "smoothing": "α",
    "flip": "α",
    "desirable": "λ_D",
    "undesirable": "λ_U",
    "baseline": "b",
    "threshold": "τ",
}
"""The letter in a member's symbol that stands for its field."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a declaration."""

    name: str
    type: str
    """In words: number, whole number, text, one of several names, …"""
    default: Any
    meaning: str


PTX = Parameter("ptx", "number", 0.0, "factor on the mean log-likelihood of demonstrations among the data")
"""What every algorithm of a policy takes that does not learn from demonstrations by itself."""


@dataclass(frozen=True, slots=True)
class Description:
    """An algorithm as a page: what `gro algorithms NAME` prints and the documentation shows."""

    name: str
    summary: str
    when: str
    """For which data it is made, and its weakness; '' where its docstring has no paragraph that begins `When: `."""
    formula: tuple[str, ...]
    slots: tuple[tuple[str, str, str], ...]
    words: tuple[tuple[str, str], ...]
    """Baseline, scale, normaliser and KL."""
    reads: str
    parameters: tuple[Parameter, ...]
    paper: str
    equation: str
    watch: tuple[tuple[str, str], ...]
    """(metric, what it shows)."""

    @property
    def source(self) -> str:
        """Where it comes from; '' for an algorithm that names no paper."""
        return ", ".join(part for part in (self.equation, self.paper) if part)


def describe(name: str, algorithm: Algorithm | None = None) -> Description:
    """The description of a registered algorithm (or file.py:function), with its defaults or as given."""
    declare = declaration(name)
    algorithm = algorithm or declare()
    summary, meanings = _docstring(declare)
    hints = get_type_hints(declare)
    return Description(
        name=algorithm.name,
        summary=summary,
        when=_when(declare),
        formula=formula(algorithm),
        slots=slots(algorithm),
        words=in_words(algorithm),
        reads=", ".join(sorted(algorithm.reads)) or "nothing but its own log-probs",
        parameters=(
            *(
                Parameter(key, type_in_words(hints.get(key, Any)), p.default, meanings.get(key, ""))
                for key, p in parameters(declare).items()
            ),
            *([] if imitates(algorithm) or algorithm.scores or "ptx" in meanings else [PTX]),
        ),
        paper=algorithm.paper,
        equation=algorithm.equation,
        watch=watch(algorithm),
    )


def table() -> list[tuple[str, str, str]]:
    """(name, family, one line) of every registered algorithm."""
    rows = []
    for name in names():
        declare = declaration(name)
        rows.append((name, declare.__module__.rpartition(".")[2].replace("_", " "), _docstring(declare)[0]))
    return rows


def type_in_words(annotation: Any) -> str:
    """A parameter's annotation for people.

    >>> type_in_words(float | None)
    'number or null'
    """
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(type_in_words(member) for member in get_args(annotation))
    if get_origin(annotation) is Literal:
        *most, last = map(str, get_args(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    if get_origin(annotation) is Sequence:
        return f"list of {type_in_words(get_args(annotation)[0])}s"
    if get_origin(annotation) is Mapping:
        return "keys and values"
    known = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}
    return known.get(annotation, getattr(annotation, "__name__", str(annotation)))


# --- the formula -----------------------------------------------------------------------------------------------------


def formula(algorithm: Algorithm) -> tuple[str, ...]:
    """The loss, a line per term, and what its symbols are."""
    several = len(algorithm.terms) > 1
    lines, where = ["loss ="], _credit(algorithm)
    for k, term in enumerate(algorithm.terms):
        u = "u" + "₁₂₃₄₅₆"[k] if several else "u"
        lines.append(f"    − {_product(term, u)}")
        if isinstance(term, Term):
            where |= _compared(term, u)
    where |= {"s": "sign A"} if any("s" in _weight(t) for t in algorithm.terms) else {}
    where |= _numbers(algorithm)
    width = max(map(len, where), default=0)
    return (*lines, *(f"    {symbol:>{max(width, 4)}} = {meaning}" for symbol, meaning in where.items()))


def _product(term: AnyTerm, u: str) -> str:
    rows = f"Σ over {'tokens of ' if term.unit.per_token else ''}{_ROWS[term.rows]}"
    factors = [] if term.scale == 1 else [f"{term.scale:g}"]
    factors += [term.share.symbol]
    if isinstance(term, EntropyBonus):
        return f"{rows}: {' · '.join(factors)} · H_t"
    if isinstance(term, FromLoss):
        loss = getattr(term.loss, "__name__", "loss")
        return f"{rows}: {' · '.join(factors)} · sg[−∂{loss}/∂φ] · φ,  φ = {term.unit.symbol}"
    gate = term.gate.symbol if term.gate is not None else "1"
    pushes = [s for s in (weight_symbol(term, u), term.value.symbol, gate) if s != "1"]
    factors += [f"sg[{' · '.join(pushes)}]"] if pushes else []
    return f"{rows}: {' · '.join(factors)} · {term.unit.symbol}"


def weight_symbol(term: Term, u: str = "u") -> str:
    """The weight's formula, `u` being what its u is called."""
    return re.sub(r"u(?!_)", u, term.weight.symbol)


def _weight(term: AnyTerm) -> str:
    return term.weight.symbol if isinstance(term, Term) else ""


def _credit(algorithm: Algorithm) -> dict[str, str]:
    """What A is, where a term looks at it."""
    pushes = [(_weight(t), t.value.symbol) for t in algorithm.terms if isinstance(t, Term)]
    if pushes and not any("A" in v or "A" in w or "s" in w for w, v in pushes):
        return {}
    kl = getattr(algorithm.credit, "kl", 0.0)
    symbol = algorithm.credit.symbol
    folded = {"R_to-go": f"reward − {kl:g}·Σ_k≥t(ℓ_old − ℓ_ref)"} if "R_to-go" in symbol else {}
    folded = folded or {"R": f"reward − {kl:g}·Σ(ℓ_old − ℓ_ref)"}
    bare: Any = getattr(algorithm.credit, "inner", algorithm.credit)
    spread = {"group std": f"√(Σ(R − group mean)²/{'(G − 1)' if bare.ddof else 'G'})"} if "group std" in symbol else {}
    return {"A": symbol} | spread | (folded if kl and "R" in symbol and "k≥t" not in symbol else {})


def _compared(term: Term, u: str) -> dict[str, str]:
    """What u and r are, where the weight reads them."""
    where, weight = {}, term.weight.symbol
    first, unit = _above(term.measure or term.unit, term.anchor), term.unit
    corrected = term.second is not None and term.second.base == "old"
    if re.search(r"u(?!_)", weight):
        where[u] = first
    if "r" in weight:
        where["r"] = f"exp({_above(unit, term.second) if corrected and term.second else first})"
    if "u_ref" in weight and term.second is not None:
        where["u_ref"] = _above(unit, term.second)
    for shift in term.anchor.shifts:
        _, added, gloss = _meaning(shift).partition("ε += ")
        if added and not gloss.startswith(shift.symbol):
            where[shift.symbol] = gloss.rstrip(".")
    return where


def _above(unit: Unit, anchor: Anchor) -> str:
    """measure − ε, spelt out."""
    parts = [unit.symbol]
    if anchor.base != "zero":
        parts.append(unit.symbol.replace("ℓ_t", f"ℓ_t,{anchor.base}").replace("Σℓ", f"Σℓ_{anchor.base}"))
        if parts[1] == parts[0]:
            parts[1] += f" under {anchor.base}"
    return " − ".join([*parts, *(f"({s.symbol})" if " " in s.symbol else s.symbol for s in anchor.shifts)])


def _numbers(algorithm: Algorithm) -> dict[str, str]:
    """The value of every letter in the members' symbols; with the member's name where two differ."""
    found: dict[str, dict[str, str]] = {}
    for member in _members(algorithm):
        for f in fields(member):
            letter, value = _LETTERS.get(f.name), getattr(member, f.name)
            if letter and letter in member.symbol and isinstance(value, int | float):
                found.setdefault(letter, {})[type(member).__name__] = f"{value:g}"
    return {
        letter: next(iter(values.values()))
        if len(set(values.values())) == 1
        else ", ".join(f"{value} ({name})" for name, value in values.items())
        for letter, values in found.items()
    }


def _members(algorithm: Algorithm) -> Iterator[Any]:
    yield algorithm.credit
    yield getattr(algorithm.credit, "inner", algorithm.credit)
    for term in algorithm.terms:
        yield term.unit
        if isinstance(term, Term):
            yield from (term.weight, getattr(term.weight, "inner", term.weight), term.value, *term.anchor.shifts)


# --- the slots -------------------------------------------------------------------------------------------------------


def slots(algorithm: Algorithm) -> tuple[tuple[str, str, str], ...]:
    """(slot, member, meaning) of the credit and of every term."""
    rows = [("credit", _member(algorithm.credit), _meaning(algorithm.credit))]
    for k, term in enumerate(algorithm.terms, 1):
        prefix = f"term {k} " if len(algorithm.terms) > 1 else ""
        for field in fields(term):
            value = getattr(term, field.name)
            if value is None or (field.name == "scale" and value == 1.0):
                continue
            meaning = _SELECTED[value] if field.name == "rows" else _meaning(value)
            rows.append((prefix + field.name, _member(value), meaning))
    return tuple(rows)


def _member(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_member, value))}]"
    if not is_dataclass(value):
        return str(getattr(value, "__name__", value))
    inner = [f"{f.name}={_member(v)}" for f in fields(value) if (v := getattr(value, f.name)) not in (None, ())]
    return type(value).__name__ + (f"({', '.join(inner)})" if inner else "")


def _meaning(value: Any) -> str:
    """The first paragraph of a member's docstring; of an anchor, what it consists of."""
    if isinstance(value, Anchor):
        shifts = [f"{s.symbol}: {_meaning(s)}" for s in value.shifts]
        return ".  ".join([f"ε = {value.symbol}", *shifts])
    if not is_dataclass(value):
        return ""
    return " ".join(inspect.cleandoc(type(value).__doc__ or "").split("\n\n")[0].split())


def _when(declare: Declaration) -> str:
    """The paragraph of a declaration's docstring that says when to use it."""
    paragraphs = inspect.cleandoc(declare.__doc__ or "").split("\n\n")
    return " ".join(next((p for p in paragraphs if p.startswith("When: ")), "").split()).removeprefix("When: ")


def _docstring(declare: Declaration) -> tuple[str, dict[str, str]]:
    """(first paragraph, meaning by parameter) of a declaration's docstring; its lines are `name: meaning`."""
    text = inspect.cleandoc(declare.__doc__ or "")
    summary = " ".join(text.split("\n\n")[0].split())
    known, meanings = parameters(declare), {}
    current: list[str] = []
    for line in text.splitlines():
        head, colon, rest = line.partition(":")
        mentioned = [n.strip() for n in head.split(",")]
        if colon and all(n in known for n in mentioned):
            current = mentioned
            meanings |= dict.fromkeys(mentioned, rest.strip())
        elif current and line.startswith(" "):
            meanings |= {n: f"{meanings[n]} {line.strip()}" for n in current}
        else:
            current = []
    return summary, meanings
