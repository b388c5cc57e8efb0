"""Mathematical equality of a completion's final answer with the reference answer.

Plain numbers are compared here, exactly.  The rest goes to math-verify, which parses LaTeX into sympy and simplifies
the difference.  What that may cost and do is fenced in four times:

- Its other parser (`parse_expr`) ends in Python's `eval`, and so does sympy's own reading of "5" in LaTeX.  While model
  text is inside, sympy reads digits by `_read_number` and has no way to evaluate anything else.
- A lexical sieve refuses what is too large to work out.
- Its own time limit uses SIGALRM, which does not interrupt a long operation on big integers; it is switched off.
- It runs in a worker process that is killed at the limit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import math_verify
import sympy
import sympy.physics.units

from gro.rewards.answers import LONGEST_ANSWER, final_answer, gold_answer, plain_number, too_large
from gro.rewards.functions import Params, reward
from gro.rewards.rules import gold_column, text_of

# Only LaTeX: the plain-expression extraction of math-verify calls sympy's parse_expr.
_LATEX = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)


def warm_up(_: Params) -> None:
    """The first LaTeX parse compiles expressions and the grammar's tables: about half a second."""
    math_equal(r"\frac{1}{2} + x", r"x + \frac{2}{4}")


@reward(samplewise=True, time_limit=5.0, options=("column", "last_number"), warm_up=warm_up)
def maths(
    completions: Sequence[Any],
    *,
    column: str | None = None,
    last_number: bool = True,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 where the completion's final answer equals the reference mathematically, else 0; None where a row has none.

    The completion's answer is its last `#### x` or `\\boxed{x}`, whichever comes later; without either its last number
    (not if last_number is False).  The reference is a column (`solution`, else `answer`), which may be a worked
    solution that ends in `#### 72` or `\\boxed{72}`.

    >>> maths(["so \\\\boxed{\\\\frac{2}{4}}", "it is 3"], solution=["#### 1/2", "4"])
    [1.0, 0.0]
    """
    golds = gold_column(columns, column)
    return [
        None if gold is None else _score(str(gold), text_of(completion), last_number)
        for completion, gold in zip(completions, golds, strict=True)
    ]


def _score(gold: str, completion: str, last_number: bool) -> float:
    right = gold_answer(gold)
    if not right or len(right) > LONGEST_ANSWER:
        raise ValueError(f"the reference answer is {'empty' if not right else 'too long'}: {gold[:80]!r}")
    given = final_answer(completion, last_number=last_number)
    return float(given is not None and math_equal(right, given))


def math_equal(gold: str, answer: str) -> bool:
    """Is `answer` the same mathematical object as `gold`?  Text or LaTeX, gold first: the comparison is not symmetric
    (`x = 5` is accepted for the gold 5).

    Answers too large to work out are wrong unless they are the gold text.  May run long on hostile input: call it
    through a worker.
    """
    if _squeezed(gold) == _squeezed(answer):
        return True
    right, given = plain_number(gold), plain_number(answer)
    if right is not None and given is not None:
        return right.equals(given)
    if not answer.strip() or too_large(answer):
        return False
    if right is not None and not re.search(r"[\d\\]", answer):
        return False  # letters alone are no number; the common wrong answer, and slow to find out by algebra
    golds = _parsed(gold)
    if not golds:
        return False  # not mathematics: only the same text counts
    with _nothing_is_evaluated():
        return math_verify.verify(golds, _parsed(answer), timeout_seconds=None)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> list[Any]:
    """The sympy objects in text or LaTeX; empty where it cannot be read.  Cached: a group shares its gold."""
    inner = text.strip().strip("$")
    with _nothing_is_evaluated():
        return math_verify.parse(
            f"\\boxed{{{inner}}}",
            _LATEX,
            fallback_mode="no_fallback",
            parsing_timeout=None,  # type: ignore[arg-type]
        )


def _squeezed(text: str) -> str:
    return "".join(text.split()).strip("$").casefold()


def _read_number(text: str, *_: Any, **__: Any) -> sympy.Number:
    """In the place of sympy's parse_expr: the digits that the LaTeX grammar found, and nothing else."""
    if not _DIGITS.fullmatch(text):
        raise ValueError("text is not evaluated here")
    return sympy.Float(text) if "." in text else sympy.Integer(text)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ValueError("text is not evaluated here")


_DIGITS = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)
_EVALUATORS = (
    # By import_module, since the attribute sympy.utilities.lambdify is a function.
    (importlib.import_module("sympy.parsing.sympy_parser"), "parse_expr", _read_number),
    (importlib.import_module("sympy.parsing.sympy_parser"), "eval_expr", _refuse),
    (importlib.import_module("sympy.utilities.lambdify"), "lambdify", _refuse),
)
"""Where sympy hands text to Python's eval and exec, and what stands there instead."""


@contextlib.contextmanager
def _nothing_is_evaluated() -> Iterator[None]:
    """While model text is inside math-verify, sympy has no way to run text as Python."""
    saved = [getattr(module, name) for module, name, _ in _EVALUATORS]
    for module, name, instead in _EVALUATORS:
        setattr(module, name, instead)
    try:
        yield
    finally:
        for (module, name, _), original in zip(_EVALUATORS, saved, strict=True):
            setattr(module, name, original)


# It warns once that its time limit is off, which is the point.
logging.getLogger("math_verify").setLevel(logging.ERROR)
