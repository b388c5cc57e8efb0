"""The figures of all trials as tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any


def summary(lines: list[dict[str, Any]]) -> tuple[str, bool]:
    """Markdown, and whether nothing went wrong."""
    trials: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "what" in line:
            trials[line["case"]].append(line)
    random = {case: [t for t in found if t["what"] == "random"] for case, found in trials.items()}
    struck = {case: [t for t in found if t["what"] != "random"] for case, found in trials.items()}
    text = [*_random(random), "", *_struck(struck)]
    problems = [f"- {t['case']}, {t['what']}: {p}" for found in trials.values() for t in found for p in t["problems"]]
    text += ["", f"{len(problems)} problems", *problems]
    return "\n".join(text) + "\n", not problems


def _random(random: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        "| job | runs | random kills | at any time (inside a save) | between two states (inside) | "
        "aimed at a save (inside) | inside a save | equal to the bit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for case, found in random.items():
        counts = Counter(runs=len(found), equal=sum(not trial["problems"] for trial in found))
        for kill in (kill for trial in found for kill in trial["kills"]):
            moment = kill["moment"]
            counts.update(["kills", moment, *(["inside", f"{moment} inside"] if kill["inside"] else [])])
        total += counts
        rows.append(_row(case, counts))
    return [*rows, _row("all", total)]


def _row(case: str, counts: Counter[str]) -> str:
    share = counts["inside"] / counts["kills"] if counts["kills"] else 0.0
    moments = " | ".join(f"{counts[name]} ({counts[f'{name} inside']})" for name in ("anywhere", "step", "save"))
    return (
        f"| {case} | {counts['runs']} | {counts['kills']} | {moments} | {counts['inside']}, {share:.0%} | "
        f"{counts['equal']} of {counts['runs']} |"
    )


def _struck(struck: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        "| job | killed in place of an operation | recovered to the bit | ENOSPC | recovered | EIO | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for case, found in struck.items():
        counts: Counter[str] = Counter()
        for trial in found:
            what = trial["what"].split()[0]
            counts[what] += 1
            counts[f"{what} fine"] += not trial["problems"]
        total += counts
        if counts:
            rows.append(_strikes(case, counts))
    return [*rows, _strikes("all", total)] if total else []


def _strikes(case: str, counts: Counter[str]) -> str:
    cells = [f"{counts[what]} | {counts[f'{what} fine']}" for what in ("SIGKILL", "ENOSPC", "EIO")]
    return f"| {case} | {' | '.join(cells)} |"
