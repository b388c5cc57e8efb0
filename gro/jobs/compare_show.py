"""What `gro compare-objectives` found, on a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gro.errors import GroError
from gro.evaluation.microscope import by_likeness, same_direction
from gro.evaluation.microscope_picture import draw
from gro.jobs.compare import Comparison
from gro.runs.terminal import number, printable

_TOKENS = 24
"""Of a completion that are shown, at most."""


def show_comparison(out: Console, found: Comparison, group: int) -> None:
    """Cosines of those that differ in direction; then the coefficients and factors of one group's completions."""
    _check_group(found, group)
    for note in found.notes:
        out.print(Text(note), soft_wrap=True)
    for label, reason in found.refused.items():
        out.print(Text(f"left out: {label}: {reason}", style="dim"), soft_wrap=True)
    classes = same_direction(found.gradient_AA)
    for first, *others in classes:
        if others:
            same = ", ".join(found.labels[i] for i in others)
            out.print(Text(f"{found.labels[first]} pushes in the same direction as {same}"), soft_wrap=True)
    shown = [classes[i][0] for i in by_likeness(found.gradient_AA[[c[0] for c in classes]][:, [c[0] for c in classes]])]
    out.print(Text("\ncosines of the gradients by the weights", style="bold"))
    for line in _matrix(found, shown):
        out.print(Text(line), soft_wrap=True)
    for b, row in enumerate(found.rows):
        if row.place[0] == group:
            _show_completion(out, found, b, shown)


def picture(found: Comparison, group: int) -> str:
    """SVG of the comparison, with the tokens of one group."""
    _check_group(found, group)
    rows = [b for b, row in enumerate(found.rows) if row.place[0] == group]
    return draw(found.gradient_AA.tolist(), found.seen, rows, found.rows)


def _check_group(found: Comparison, group: int) -> None:
    groups = {row.place[0] for row in found.rows}
    if group not in groups:
        raise GroError(f"--group: the batch has groups 0 to {max(groups)}; found {group}")


def _matrix(found: Comparison, shown: list[int]) -> Iterator[str]:
    width = max(len(found.labels[i]) for i in shown)
    yield f"{'':>{width + 4}}{'norm':>10}" + "".join(f"{k:>6}" for k in range(1, len(shown) + 1))
    for k, i in enumerate(shown, 1):
        cosines = "".join(f"{_cosine(found.gradient_AA[i, j]):>6}" for j in shown)
        yield f"{k:>3} {found.labels[i]:<{width}}{found.norms_A[i]:>10.3g}{cosines}"


def _cosine(value: Tensor) -> str:
    return "–" if value.isnan() else f"{value:.2f}"


def _show_completion(out: Console, found: Comparison, b: int, shown: list[int]) -> None:
    row = found.rows[b]
    reward = "" if row.reward is None else f", reward {number(row.reward)}"
    out.print(Text(f"\ncompletion {row.place[1]} of group {row.place[0]}: a {row.role}{reward}", style="bold"))
    factors = Table("algorithm", "term", "share", "w", "v", "u", "∂φ/∂ℓ", "Σ c")
    for i in shown:
        one = found.seen[i]
        for k, term in enumerate(one.terms, 1):
            cells = [_spread(term[name][b]) for name in ("share", "w", "v", "u", "slope")]
            total = number(float(one.c[b].sum())) if k == 1 else ""
            factors.add_row(Text(one.label), str(k), *cells, total)
    out.print(factors)
    tokens = [printable(token, "↵") for token in row.tokens[:_TOKENS]]
    width = max(8, *(len(token) for token in tokens))
    out.print(Text(f"{'c of':<{width}}" + "".join(f"{found.labels[i][:11]:>12}" for i in shown)), soft_wrap=True)
    for t, token in enumerate(tokens):
        line = "".join(f"{float(found.seen[i].c[b][t]):>12.3g}" for i in shown)
        out.print(Text(f"{token:<{width}}{line}"), soft_wrap=True)
    if len(row.tokens) > _TOKENS:
        out.print(Text(f"… and {len(row.tokens) - _TOKENS} more tokens", style="dim"))


def _spread(values_T: Tensor) -> str:
    """The value that all tokens have, or the lowest and the highest."""
    if not len(values_T):
        return ""
    low, high = values_T.min(), values_T.max()
    close = torch.isclose(low, high, rtol=1e-4)
    return f"{low:.3g}" if close else f"{low:.3g} to {high:.3g}"
