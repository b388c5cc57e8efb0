"""A reward model's calibration and scores, drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence

from gro.evaluation.judged import JudgedPair, calibration
from gro.runs.curves import COLOURS


def draw(pairs: Sequence[JudgedPair]) -> str:
    """SVG: how often the model is right against how sure it is, and the scores of chosen and rejected completions."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gro", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        bins = calibration(pairs)
        middle = [b.predicted for b in bins]
        observed = [b.observed.value for b in bins]
        low = [b.observed.value - (b.observed.value if b.observed.low is None else b.observed.low) for b in bins]
        high = [(b.observed.value if b.observed.high is None else b.observed.high) - b.observed.value for b in bins]
        left.plot([0.5, 1], [0.5, 1], color="#888888", linewidth=1, linestyle="--", label="calibrated")
        left.errorbar(middle, observed, yerr=[low, high], color=COLOURS[0], marker="o", markersize=4, linewidth=1.4)
        left.set_xlabel("how sure: σ|difference of the scores|")
        left.set_ylabel("how often right, 95 % interval")
        left.set_title("Calibration", loc="left", fontweight="bold")
        scores = [[p.chosen for p in pairs], [p.rejected for p in pairs]]
        right.hist(scores, bins=24, label=["chosen", "rejected"], color=list(COLOURS[:2]))
        right.set_xlabel("score")
        right.set_ylabel("completions")
        right.set_title("Scores", loc="left", fontweight="bold")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        page = io.StringIO()
        figure.savefig(page, format="svg", metadata={"Date": None})
    return page.getvalue()
