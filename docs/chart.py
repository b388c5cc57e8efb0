"""A curve as a small picture, light and dark."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from curves import REWARD, Curve

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 404, 30, 152
STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#424a53}.panel{fill:#fff;stroke:#d1d9e0}.grid{stroke:#e4e8ec}"
    ".curve{fill:none;stroke:#0b5fa5;stroke-width:2}@media(prefers-color-scheme:dark){text{fill:#b6c0cc}"
    ".panel{fill:#0d1117;stroke:#3d444d}.grid{stroke:#262c36}.curve{stroke:#7cc0ff}}</style>"
)


def svg(name: str, curve: Curve) -> str:
    """The picture as SVG text: a reward from 0 to 1, log-odds from 0 to where they came."""
    top = 1.0 if curve.measured == REWARD else float(math.ceil(max(curve.values)))
    steps = len(curve.values) - 1
    points = " ".join(f"{_x(i, steps):.1f},{_y(v, top):.1f}" for i, v in enumerate(curve.values))
    label = f"{name}: {curve.measured} by step, from {curve.values[0]:g} to {curve.values[-1]:g}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(label)}">',
        f"<title>{escape(label)}</title>",
        STYLE,
        f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>',
        f'<text x="{LEFT}" y="20">{escape(curve.measured)}</text>',
        *(_rule(share * top, top) for share in (0.0, 0.5, 1.0)),
        *(f'<text x="{_x(i, steps):.1f}" y="168" text-anchor="middle">{i}</text>' for i in (0, steps // 2, steps)),
        f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="183" text-anchor="middle">steps</text>',
        f'<polyline class="curve" points="{points}"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _rule(value: float, top: float) -> str:
    y = _y(value, top)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _x(step: int, steps: int) -> float:
    return LEFT + (RIGHT - LEFT) * step / steps


def _y(value: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * value / top
