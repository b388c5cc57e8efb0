"""A study of over-optimisation, drawn from what its file holds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gro.evaluation.overoptimisation import BestOfN, Form, Learning
from gro.runs.curves import COLOURS

if TYPE_CHECKING:  # importing matplotlib takes a second; only drawing needs it
    from matplotlib.axes import Axes

_METHODS: dict[str, tuple[str, Form]] = {
    "best_of_n": ("Best-of-n", BestOfN()),
    "rl": ("Trained against the proxy", Learning()),
}
_ROWS = 2
"""Gold above, proxy below: their scales differ as soon as a proxy is over-optimised."""


def draw(study: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name: gold and proxy over √KL for best-of-n and for training, a column for each number of pairs."""
    return {name.replace("_", "-"): _draw(study, name, title, form) for name, (title, form) in _METHODS.items()}


def _draw(study: Mapping[str, Any], method: str, title: str, form: Form) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    amounts = sorted({proxy["pairs"] for proxy in study["proxies"]})
    sizes = list(dict.fromkeys(proxy["size"] for proxy in study["proxies"]))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"gro {method}", "font.size": 9}):
        figure = Figure(figsize=(1.2 + 3.4 * len(amounts), 5.2), layout="constrained")
        grid = figure.subplots(_ROWS, len(amounts), squeeze=False, sharex=True, sharey="row")
        for proxy in study["proxies"]:
            column, colour = amounts.index(proxy["pairs"]), COLOURS[sizes.index(proxy["size"]) % len(COLOURS)]
            label = f"{proxy['size']}, {proxy['parameters']:,} parameters"
            for axes, kind in zip(grid[:, column], ("gold", "proxy"), strict=True):
                _curve(axes, proxy[method], kind, form, colour, label)
        for column, amount in enumerate(amounts):
            grid[0, column].set_title(f"{title}, {amount} pairs", loc="left", fontweight="bold")
            grid[-1, column].set_xlabel("√KL from the start")
        grid[0, 0].set_ylabel("gold, standard deviations")
        grid[1, 0].set_ylabel("proxy, standard deviations")
        grid[0, 0].legend(frameon=False, fontsize=8)
        for axes in grid.flat:
            axes.axhline(0, color="#888888", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        page = io.StringIO()
        figure.savefig(page, format="svg", metadata={"Date": None})
    return page.getvalue()


def _curve(axes: Axes, found: Mapping[str, Any], kind: str, form: Form, colour: str, label: str) -> None:
    """Measured points with two standard errors, the fitted form as a dashed line, and where it is highest."""
    points: Sequence[Mapping[str, float]] = found["points"]
    d_K = np.array([p["d"] for p in points])
    mean_K = np.array([p[kind] for p in points])
    error_K = np.array([p[f"{kind}_error"] for p in points])
    axes.errorbar(d_K, mean_K, yerr=2 * error_K, color=colour, fmt="o", markersize=3, linewidth=0.8, label=label)
    fit = found["fits"][kind]
    if fit is None:
        return
    along_K = np.linspace(0, d_K.max(), 100)
    axes.plot(along_K, form.basis(along_K) @ np.array([fit["alpha"], fit["beta"]]), color=colour, linestyle="--")
    if fit["peak"] is not None and fit["peak"] <= d_K.max():
        axes.plot([fit["peak"]], [fit["height"]], color=colour, marker="v", markersize=7)
