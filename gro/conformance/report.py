"""Results as lines of text."""

from __future__ import annotations

from gro.conformance.check import Measurement, Result

VERDICTS = ("holds", "FAILS", "–")


def verdict(result: Result) -> str:
    """One of VERDICTS; the last for a claim that does not apply."""
    return "–" if not result.applies else "holds" if result.holds else "FAILS"


def line(result: Result) -> str:
    """Verdict, name, claim and numbers; of what fails also where, and what to do."""
    head = f"{verdict(result):5}  {result.check.name:18}  "
    if not result.applies:
        return f"{head}does not apply"
    claim = result.check.claim.rstrip(".")
    if result.holds:
        assert result.worst is not None
        number = _allowed(result.worst)
        return f"{head}{claim}{f': off by {result.worst.error:.1g}, {number}' if number else ''}"
    found = f"raised {result.raised}" if result.raised else _found(result.worst)
    return f"{head}{claim}\n{'':7}found: {found}\n{'':7}to do: {result.check.advice}"


def _found(worst: Measurement | None) -> str:
    assert worst is not None
    if worst.found:
        return worst.found if worst.found == worst.where else f"{worst.found} ({worst.where})"
    return f"off by {worst.error:.1g}, {_allowed(worst) or 'must be exact'} ({worst.where})"


def _allowed(worst: Measurement) -> str:
    return f"{worst.limit:.2g} allowed".replace("e-0", "e-") if worst.limit else ""
