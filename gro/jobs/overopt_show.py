"""A study of over-optimisation on a terminal, from what its file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_study(out: Console, study: Mapping[str, Any]) -> None:
    """Coefficients and turning points of every proxy by either method, and what the rules of early stopping save."""
    out.print(Text("gold and proxy: standard deviations of the start's samples from their mean"))
    out.print(Text("highest, end: gold at a distance √KL; ↓: lower by more than two standard errors"))
    titles = {"best_of_n": "best-of-n: gold = d(α − βd)", "rl": f"{study['algorithm']}: gold = d(α − β log d)"}
    for method, title in titles.items():
        out.print(_curves(study, method, title))
    out.print(_stops(study))


def _curves(study: Mapping[str, Any], method: str, title: str) -> Table:
    table = _table(title, "proxy", "pairs", "α", "β", "R²", "fitted peak", "highest", "end", "proxy")
    for proxy in study["proxies"]:
        found = proxy[method]
        fit, turn, last = found["fits"]["gold"], found["turn"], found["points"][-1]
        coefficients = ["–"] * 4 if fit is None else _fitted(fit)
        table.add_row(
            *(proxy["size"], str(proxy["pairs"]), *coefficients),
            f"{turn['reward']:.2f}\nat {turn['d']:.2f}",
            f"{last['gold']:.2f}{' ↓' if turn['turned'] else ''}\nat {last['d']:.2f}",
            f"{last['proxy']:.2f}",
        )
    return table


def _fitted(fit: Mapping[str, Any]) -> list[str]:
    coefficients = (f"{fit[name]:.2f}\n± {fit[f'{name}_error']:.2f}" for name in ("alpha", "beta"))
    peak = "none" if fit["peak"] is None else f"at {fit['peak']:.3g}\n± {fit['peak_error']:.2g}"
    return [*coefficients, f"{fit['r2']:.2f}", peak]


def _stops(study: Mapping[str, Any]) -> Table:
    title = "early stopping: gold reward, and the step"
    table = _table(title, "proxy", "pairs", "highest", "end", "by gold", "by disagreement")
    for proxy in study["proxies"]:
        found = proxy["rl"]
        turn, last, stops = found["turn"], found["points"][-1], found["stops"]
        table.add_row(
            *(proxy["size"], str(proxy["pairs"])),
            *(f"{turn['reward']:.2f} at {turn['at']}", f"{last['gold']:.2f} at {last['at']}"),
            *(_stop(stops.get(rule)) for rule in ("gold", "disagreement")),
        )
    return table


def _stop(stop: Mapping[str, float] | None) -> str:
    return "goes on" if stop is None else f"{stop['gold']:.2f} at {stop['at']}"


def _table(title: str, *columns: str) -> Table:
    """Narrow enough for a terminal of 80 characters."""
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
