"""The picture of the slots: the equation, and what well-known algorithms put into it.  Light and dark."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.sax.saxutils import escape

from gro.algorithms import build
from gro.algorithms.describe import weight_symbol
from gro.objective import Algorithm, AnyTerm, EntropyBonus, Term
from gro.objective.values import one

WIDTH, ROW, TOP = 966, 29, 142
MARGIN, OVER_LEFT = 20, 112


@dataclass(frozen=True, slots=True)
class Slot:
    """A column of the picture and a colour in the equation, one for light and one for dark pages."""

    key: str
    title: str
    letter: str
    left: int
    light: str
    dark: str


SLOTS = (
    Slot("credit", "credit", "A", 224, "#0b5fa5", "#7cc0ff"),
    Slot("unit", "unit", "φ", 450, "#00704d", "#5fd3a8"),
    Slot("anchor", "anchor", "ε", 510, "#b34700", "#ffa366"),
    Slot("weight", "weight", "w", 658, "#8f2d78", "#f2a0d8"),
    Slot("value", "value", "v", 776, "#7a5c00", "#e8c34a"),
    Slot("share", "share", "", 858, "#545d68", "#b6c0cc"),
)
OVER = {
    "scored": "samples",
    "targets": "demonstrations",
    "paired": "pairs",
    "chosen": "chosen",
    "versus": "demo. against sample",
}


CHOSEN = (
    "sft", "rft", "awr", "reinforce", "rloo", "ppo", "grpo", "gspo", "dpo", "ipo", "simpo", "kto", "rebel", "gro",
)  # fmt: skip
"""Those that most readers know, by family; the table of all is in docs/algorithms/README.md."""


SHORT = {"(λ_D·1[A > 0] − λ_U·1[A < 0])": "λ_D, −λ_U"}
"""What would not fit into its column."""


def slots() -> str:
    """The picture as SVG text."""
    lines = [cells for name in CHOSEN for cells in rows_of(build(name))]
    height = TOP + ROW * len(lines) + MARGIN
    body = [_panel(height), _equation(), _header()]
    for i, cells in enumerate(lines):
        y = TOP + ROW * i
        line = f'<line class="rule" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}"/>' if cells["name"] else ""
        body.append(line + "".join(_cell(key, text, y + 20) for key, text in cells.items()))
    label = "The equation, and what well-known algorithms put into its slots"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">\n'
        f"<title>{label}</title>\n{_style()}\n" + "\n".join(filter(None, body)) + "\n</svg>\n"
    )


def rows_of(algorithm: Algorithm) -> list[dict[str, str]]:
    """Text by column, a row per term; the credit is the whole algorithm's and stands where it is first used."""
    rows, credit = [], algorithm.credit.symbol
    for k, term in enumerate(algorithm.terms):
        looks = not isinstance(term, Term) or term.value != one or any(c in term.weight.symbol for c in "As")
        uses_credit = looks and not isinstance(term, EntropyBonus)
        row = {
            "name": "" if k else algorithm.name,
            "over": OVER[term.rows],
            "credit": credit if uses_credit else "",
            "unit": term.unit.symbol,
            "share": term.share.symbol,
        }
        rows.append(row | _pushed(term))
        credit = "" if uses_credit else credit
    return rows


def _pushed(term: AnyTerm) -> dict[str, str]:
    """Anchor, weight and value; of an entropy bonus and of a loss as code, what stands in their place."""
    if isinstance(term, EntropyBonus):
        return {"unit": "H_t", "weight": f"{term.coefficient:g}"}
    if not isinstance(term, Term):
        return {"weight": "from a loss"}
    weight = weight_symbol(term)
    measure = f" of {term.measure.symbol}" if term.measure and term.measure != term.unit else ""
    anchor = "" if weight == "1" else term.anchor.symbol + measure
    gate = term.gate.symbol if term.gate is not None else "1"
    factors = [symbol for symbol in (term.value.symbol, gate) if symbol != "1"]
    return {"anchor": anchor, "weight": weight, "value": " · ".join(factors) or "1"}


def _style() -> str:
    def rules(dark: bool) -> str:
        ink, paper, rule = ("#e6edf3", "#161b22", "#3d444d") if dark else ("#1f2328", "#ffffff", "#d1d9e0")
        colours = "".join(f".{s.key}{{fill:{s.dark if dark else s.light}}}" for s in SLOTS)
        return f"text{{fill:{ink}}}.panel{{fill:{paper};stroke:{rule}}}.rule{{stroke:{rule}}}{colours}"

    fonts = "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    sizes = ".equation{font-size:21px}.name{font-weight:600}.head{font-weight:600;font-size:13px}"
    dark = f"@media (prefers-color-scheme:dark){{{rules(True)}}}"
    return f"<style>{fonts}{sizes}{rules(False)}{dark}</style>"


def _panel(height: int) -> str:
    return f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'


def _equation() -> str:
    def slot(key: str, text: str) -> str:
        return f'<tspan class="{key}">{text}</tspan>'

    credit, unit, anchor = slot("credit", "A"), slot("unit", "φ"), slot("anchor", "ε")
    push = f"{slot('weight', 'w')}(u, {credit}) · {slot('value', 'v')}({credit})"
    loss = f"loss = − Σ {slot('share', 'share')} · stop_gradient[ {push} ] · {unit}(log π)"
    u = f"u = {unit}(log π) − {anchor}"
    return (
        f'<text class="equation" x="{MARGIN}" y="44">{loss}</text><text class="equation" x="{MARGIN}" y="80">{u}</text>'
    )


def _header() -> str:
    titles = [("", "algorithm", MARGIN), ("", "rows", OVER_LEFT)]
    titles += [(s.key, f"{s.title} {s.letter}".strip(), s.left) for s in SLOTS]
    return "".join(f'<text class="head {key}" x="{x}" y="{TOP - 12}">{title}</text>' for key, title, x in titles)


def _cell(key: str, text: str, y: int) -> str:
    text = SHORT.get(text, text)
    left = {s.key: s.left for s in SLOTS} | {"name": MARGIN, "over": OVER_LEFT}
    return f'<text class="{key}" x="{left[key]}" y="{y}">{_typeset(text)}</text>' if text else ""


def _typeset(text: str) -> str:
    """Indices after _ and exponents after ^ set small, below and above the line."""
    parts = []
    back = 0
    for part in re.split(r"(_[A-Za-z]+(?:,[a-z]+)?|\^(?:\([^)]*\)|−?\w))", text):
        if not part:
            continue
        if part[0] in "_^":
            shift = 4 if part[0] == "_" else -5
            parts.append(f'<tspan dy="{shift}" font-size="10">{escape(part[1:])}</tspan>')
            back = -shift
        else:
            parts.append(f'<tspan dy="{back}">{escape(part)}</tspan>' if back else escape(part))
            back = 0
    return "".join(parts)
