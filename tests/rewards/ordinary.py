"""Ordinary references and answers, right and wrong: how often `maths` and math-verify say the same.

python tests/rewards/ordinary.py [gsm8k.jsonl]
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from gro.rewards.answers import gold_answer
from gro.rewards.maths import math_equal

Pair = tuple[str, str]


def of_a_number(gold: str) -> Iterator[str]:
    """What models write for a whole number, right and wrong."""
    plain = gold.replace(",", "")
    value = int(plain)
    yield from (gold, plain, f"{plain}.0", f"\\${gold}", f"{gold} dollars", f"{gold}\\text{{ dollars}}", f"x={plain}")
    yield from (f"\\frac{{{2 * value}}}{{2}}", f"{value // 2}\\cdot 2", f"\\text{{{plain}}}", f"{plain}^\\circ")
    yield from (f"{value + 1}", f"{value + 0.5}", f"-{plain}", f"{value / 100}", f"{value * 10}")
    yield f"{value}0\\text{{ m}}"


def generated() -> list[Pair]:
    """More than 500 pairs: numbers, fractions, roots, units, percentages, sets, tuples, intervals, expressions."""
    pairs = [(str(n), answer) for n in (2, 7, 18, 64, 144, 1250, 99_999) for answer in of_a_number(str(n))]
    pairs += [pair for a in range(1, 9) for b in (2, 3, 7, 12) for pair in _fraction(Fraction(a, b))]
    pairs += [pair for n in (2, 3, 5, 6, 7, 10) for pair in _root(n)]
    pairs += [pair for n in range(3, 15) for pair in _measured(n)]
    pairs += [pair for n in range(1, 9) for pair in _collection(n)]
    pairs += [pair for n in range(1, 9) for pair in _expression(n)]
    return pairs


def _fraction(value: Fraction) -> Iterator[Pair]:
    a, b = value.numerator, value.denominator
    gold = f"\\frac{{{a}}}{{{b}}}"
    yield from ((gold, f"\\dfrac{{{3 * a}}}{{{3 * b}}}"), (gold, f"{a}/{b}"), (gold, f"\\frac{{{b}}}{{{a + b}}}"))
    yield from ((gold, f"-{gold}"), (f"-{gold}", f"\\frac{{-{a}}}{{{b}}}"), (gold, f"{a}\\div {b}"))


def _root(n: int) -> Iterator[Pair]:
    yield from ((f"\\sqrt{{{4 * n}}}", f"2\\sqrt{{{n}}}"), (f"\\sqrt{{{n}}}", f"{n}^{{1/2}}"))
    yield from ((f"\\frac{{1}}{{\\sqrt{{{n}}}}}", f"\\frac{{\\sqrt{{{n}}}}}{{{n}}}"), (f"\\sqrt{{{n}}}", f"\\sqrt{n}"))
    yield from ((f"\\sqrt{{{n}}}", f"\\sqrt{{{n + 1}}}"), (f"{n}\\pi", f"\\pi\\cdot {n}"), (f"{n}\\pi", f"{3 * n}"))
    yield from ((f"1+\\sqrt{{{n}}}", f"\\sqrt{{{n}}}+1"), (f"1+\\sqrt{{{n}}}", f"1-\\sqrt{{{n}}}"))


def _measured(n: int) -> Iterator[Pair]:
    for unit in ("cm", "m", "hours", "km/h"):
        yield f"{n}\\text{{ {unit}}}", f"{n}"
        yield f"{n}", f"{n}\\text{{ {unit}}}"
        yield f"{n}", f"{n + 1}\\text{{ {unit}}}"
    yield from ((f"{n}\\%", f"{n}\\%"), (f"{n}\\%", f"{n + 1}\\%"))
    yield from ((f"{n}^\\circ", f"{n}"), (f"{n}^\\circ", f"{n + 2}"))


def _collection(n: int) -> Iterator[Pair]:
    a, b, c = n, n + 2, n + 5
    gold = f"\\{{{a},{b},{c}\\}}"
    yield from ((gold, f"\\{{{c}, {a}, {b}\\}}"), (gold, f"\\{{{a},{b}\\}}"), (gold, f"\\{{{a},{b},{c + 1}\\}}"))
    yield from ((f"({a},{b})", f"({a}, {b})"), (f"({a},{b})", f"({b},{a})"), (f"({a},{b})", f"({a},{b},{c})"))
    yield from ((f"[{a},{b})", f"[{a}, {b})"), (f"[{a},{b})", f"({a},{b})"), (f"({a},\\infty)", f"({a}, \\infty)"))
    yield from ((f"({a},\\infty)", f"[{a},\\infty)"), (f"\\frac{{{a}}}{{{b}}},{c}", f"{c},\\frac{{{a}}}{{{b}}}"))


def _expression(n: int) -> Iterator[Pair]:
    yield from ((f"x^2+{2 * n}x+{n * n}", f"(x+{n})^2"), (f"x^2-{n * n}", f"(x-{n})(x+{n})"), (f"{n}x+1", f"1+{n}x"))
    yield from ((f"x^2+{n}", f"x^2-{n}"), (f"{n}", f"x={n}"), (f"{n}", f"x={n + 1}"), (f"x={n}", f"x = {n}"))
    yield from ((f"\\frac{{x}}{{{n + 1}}}", f"\\frac{{1}}{{{n + 1}}}x"), (f"{n}a+b", f"b+{n}a"), (f"{n}a", f"{n}b"))
    yield from ((f"2^{{{n}}}", f"{2**n}"), (f"10^{{-{n}}}", f"\\frac{{1}}{{{10**n}}}"), (f"{n}!", f"{n + 1}!"))
    yield from ((f"{n}+{n + 1}i", f"{n + 1}i+{n}"), (f"{n}+{n + 1}i", f"{n}-{n + 1}i"))
    yield f"e^{{{n}}}", f"e^{{{n + 1}}}"


def of_gsm8k(path: Path, every: int) -> list[Pair]:
    """The forms of each different answer among every so many rows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    golds = {gold_answer(json.loads(line)["answer"]) for line in lines[::every]}
    return [(gold, answer) for gold in sorted(golds) for answer in of_a_number(gold)]


def disagreements(pairs: Sequence[Pair]) -> list[Pair]:
    """Where `maths` says another thing than math-verify."""
    return [(gold, answer) for gold, answer in pairs if math_equal(gold, answer) != math_verify_says(gold, answer)]


def math_verify_says(gold: str, answer: str) -> bool:
    from math_verify import parse, verify
    from sympy.core.cache import clear_cache

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    clear_cache()  # else the two would share simplifications
    return verify(parse(f"$\\boxed{{{gold}}}$"), parse(f"$\\boxed{{{answer}}}$"))


if __name__ == "__main__":
    corpora = {"generated": generated()}
    corpora |= {path: of_gsm8k(Path(path), every=5) for path in sys.argv[1:]}
    for title, pairs in corpora.items():
        differ = disagreements(pairs)
        print(f"{title}: {len(pairs)} pairs, {100 - 100 * len(differ) / len(pairs):.2f} % agree; not: {differ}")
