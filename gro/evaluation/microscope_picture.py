"""Algorithms side by side, drawn: how alike their gradients are, and what each does to the tokens of one prompt."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from gro.evaluation.microscope import Row, Seen, by_likeness

_TOKENS = 28
"""Of a completion, at most."""
_COMPLETIONS = 2
"""Of the prompt, at most: more would be too small to read."""


def draw(cosines_AA: Sequence[Sequence[float]], seen: Sequence[Seen], rows: Sequence[int], texts: Sequence[Row]) -> str:
    """SVG.  Left the cosines of the gradients, like beside like; right the coefficients of the completions `rows`.

    Blue makes a token likelier, red less likely; each algorithm by its own largest coefficient among these tokens.
    """
    import matplotlib as mpl
    import torch
    from matplotlib.figure import Figure

    order = by_likeness(torch.tensor(cosines_AA))
    labels = [seen[i].label for i in order]
    # text stays text, and a label or token may hold a $
    style = {"svg.fonttype": "none", "svg.hashsalt": "gro", "font.size": 8, "text.parse_math": False}
    with mpl.rc_context(style):  # pyright: ignore[reportArgumentType]
        height = max(3.2, 0.28 * len(order) * _COMPLETIONS + 1.6)
        figure = Figure(figsize=(13, height), layout="constrained")
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.5))[0]
        axes = left.subplots()
        axes.imshow(np.array(cosines_AA)[np.ix_(order, order)], cmap="RdBu", vmin=-1, vmax=1)
        axes.set_xticks(range(len(order)), labels, rotation=90)
        axes.set_yticks(range(len(order)), labels)
        if len(order) <= 16:
            for y, i in enumerate(order):
                for x, j in enumerate(order):
                    value = cosines_AA[i][j]
                    ink = "white" if abs(value) > 0.6 else "black"
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)
        axes.set_title("Cosines of the gradients", loc="left", fontweight="bold")
        shown = list(rows)[:_COMPLETIONS]
        largest = [max(float(seen[i].c[b][:_TOKENS].abs().max()) for b in shown) or 1.0 for i in order]
        for axes, b in zip(np.atleast_1d(right.subplots(len(shown), 1)), shown, strict=True):
            c = [seen[i].c[b][:_TOKENS].numpy() / most for i, most in zip(order, largest, strict=True)]
            axes.imshow(np.array(c), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
            axes.set_yticks(range(len(order)), labels)
            tokens = [token.replace("\n", "↵").replace(" ", "·") for token in texts[b].tokens[:_TOKENS]]
            axes.set_xticks(range(len(tokens)), tokens, rotation=90)
            reward = "" if texts[b].reward is None else f", reward {texts[b].reward:.3g}"
            axes.set_title(f"Coefficients of a {texts[b].role}{reward}", loc="left", fontweight="bold")
        for axes in figure.axes:
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        page = io.StringIO()
        figure.savefig(page, format="svg", metadata={"Date": None})
    return page.getvalue()
