"""What jobs found, on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gro.evaluation.estimates import Estimate
from gro.evaluation.selection import Selection
from gro.jobs.evaluate import Evaluation
from gro.jobs.generate import Best, Generated
from gro.runs.terminal import number, printable, samples_table

_SHOWN = 20
"""Answers shown, at most."""
_TIED = {"logp_accuracy", "win_rate"}
"""Metrics in which there can be ties."""


def show_answers(out: Console, answers: Sequence[Generated], max_new_tokens: int) -> None:
    """Every answer with how it ended and how probable it was."""
    for answer in answers:
        end = "stopped by itself" if answer.finish == "stop" else f"cut off after {max_new_tokens} tokens"
        reward = "" if answer.reward is None else f", reward {number(answer.reward)}"
        out.print(Text(f"[{end}, {answer.mean_logp:.2f} nats per token{reward}]", style="dim"), soft_wrap=True)
        out.print(Text(printable(answer.text)), soft_wrap=True)


def show_best(out: Console, best: Best, max_new_tokens: int) -> None:
    """The best answers, and what the best of n is worth."""
    show_answers(out, best.answers[:_SHOWN], max_new_tokens)
    if len(best.answers) > _SHOWN:
        out.print(Text(f"… and {len(best.answers) - _SHOWN} more"))
    table = Table("best of", "KL, at most", "reward", "95 % interval", "prompts")
    for point in best.points:
        kl = f"{point.kl:.3f} nats"
        table.add_row(str(point.n), kl, number(point.reward.value), interval(point.reward), str(point.prompts))
    out.print(table)
    if best.failed:
        out.print(Text(f"{best.failed} of {best.samples} samples have no reward and are left out"))


def show_selection(out: Console, selection: Selection, path: object) -> None:
    """What was written, and what was not."""
    out.print(Text(f"{path}: {len(selection.rows)} rows"), soft_wrap=True)
    for what, left_out in (("samples", selection.samples_left_out), ("prompts", selection.prompts_left_out)):
        if left_out:
            out.print(Text(f"{what} left out: {_counted(left_out)}"), soft_wrap=True)


def show_evaluation(out: Console, found: Evaluation) -> None:
    """Metrics with their intervals, and a few answers."""
    out.print(Text(f"model: {found.model}"), soft_wrap=True)
    if found.reference is not None:
        out.print(Text(f"reference: {found.reference}"), soft_wrap=True)
    if found.versus is not None:
        by = f", judged by {found.versus.judge}" if found.versus.judge else ""
        out.print(Text(f"against: {found.versus.model}{by}"), soft_wrap=True)
    table = Table("metric", "value", "95 % interval")
    for name, estimate in found.metrics.items():
        table.add_row(name, number(estimate.value), interval(estimate))
    out.print(table)
    out.print(Text(f"{found.rows} rows" + ("; ties count one half" if _TIED & found.metrics.keys() else "")))
    if found.answers:
        rows = [{"prompt": p, "answer": a, "reward": "failed" if r is None else r} for p, a, r in found.answers[:5]]
        out.print(samples_table(rows))


def interval(estimate: Estimate) -> str:
    """The interval and how it was made; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.4g} to {estimate.high:.4g} ({estimate.method})"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
