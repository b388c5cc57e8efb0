"""Final answers in text: where they stand, which are plain numbers, which are too large to look at.

Model text is only ever searched and converted digit by digit here, never evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST_ANSWER = 1_000
"""Characters.  An answer that needs more is not an answer, and the LaTeX parser is slower than linear."""
MOST_DIGITS = 200
"""Of one number; Python refuses to convert more than 4,300, and conversion is quadratic."""
DEEPEST_BRACKETS = 24
"""The LaTeX parser recurses about forty frames per bracket."""

_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER_IN_TEXT = re.compile(rf"(?<![\w.])(?:(?<![\d)])-)?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_PLAIN = re.compile(rf"([-+]?)(?:({_DIGITS})(\.\d*)?|(\.\d+))(?:/(\d+))?(%?)")
_UNIT_AFTER_NUMBER = re.compile(r"([-+]?[$€£]?[-+]?[\d.,]*\d%?)[.]?(?:[ \t]+[A-Za-z][A-Za-z \t.]*)?")


def gold_answer(text: str) -> str:
    """The answer in a reference solution: after the last `####` or in the last box; else the whole text.

    >>> gold_answer("48+24 = 72 clips.\\n#### 72")
    '72'
    """
    marked = _last_marked(text)
    return text.strip() if marked is None else marked


def final_answer(text: str, *, last_number: bool = True) -> str | None:
    """The answer that a completion gives: its last `#### x` or `\\boxed{x}`, whichever comes later.

    Without either it is the last number in the text, unless last_number is False.

    >>> final_answer("first 10, so it is \\\\boxed{\\\\frac{1}{2}}")
    '\\\\frac{1}{2}'
    """
    marked = _last_marked(text)
    if marked is not None or not last_number:
        return marked
    tail = text[-20 * LONGEST_ANSWER :]
    numbers = [m.group() for m in _NUMBER_IN_TEXT.finditer(tail)]
    return numbers[-1] if numbers else None


def _last_marked(text: str) -> str | None:
    hashes = next(reversed(list(_HASHES.finditer(text))), None)
    boxed = None
    # Boxes nest ("\boxed{\boxed{1}}"), and a cut-off one has no end: take the last that closes.
    starts = [m.end() for m in _BOXED.finditer(text)][-8:]
    for start in reversed(starts):
        if (end := _closing_brace(text, start)) is not None:
            boxed = (start, text[start:end])
            break
    after_hashes = hashes.group(1).strip() if hashes else ""
    if hashes and after_hashes and (boxed is None or hashes.start() > boxed[0]):
        if "\\boxed" in after_hashes and boxed is not None:
            return boxed[1].strip()
        number = _UNIT_AFTER_NUMBER.fullmatch(after_hashes)
        return number.group(1) if number else after_hashes
    return None if boxed is None else boxed[1].strip()


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for at in range(start, min(len(text), start + 4 * LONGEST_ANSWER)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    return None


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number as it was written."""

    value: Fraction
    decimal: bool
    """It was written with a decimal point, so it may be rounded."""
    percent: bool

    def equals(self, other: Number) -> bool:
        """Exact where one of them is an integer; else to six decimals, if one was written so.  9 % is 9 or 0.09."""
        if self.percent != other.percent:
            plain, percent = (other, self) if self.percent else (self, other)
            scaled = Number(percent.value / 100, True, False)
            raw = Number(percent.value, percent.decimal, False)
            return plain.equals(raw) or plain.equals(scaled)
        whole = self.value.denominator == 1 or other.value.denominator == 1
        if (self.decimal or other.decimal) and not whole:
            return round(self.value, 6) == round(other.value, 6)
        return self.value == other.value


def plain_number(text: str) -> Number | None:
    """`1,234.50`, `$18`, `-3/4`, `20\\%`; None for anything else."""
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return None
    text = text.removeprefix("\\(").removesuffix("\\)").strip("$ \t\n")
    text = text.replace("\\$", "").replace("$", "").replace("€", "").replace("£", "").replace("\\%", "%")
    text = text.replace(" ", "").removesuffix(".")
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, only_decimals, divisor, percent = match.groups()
    if divisor is not None and int(divisor) == 0:
        return None
    digits = (whole or "0").replace(",", "") + (decimals or only_decimals or "")
    value = Fraction(digits.removesuffix(".")) / int(divisor or 1)
    return Number(-value if sign == "-" else value, "." in digits, bool(percent))


def too_large(text: str) -> bool:
    """Would working this out take unreasonable time or memory?  Towers of powers, long numbers, factorials.

    A lexical sieve for the common bombs; what passes still runs under the time limit of its process.
    """
    if len(text) > LONGEST_ANSWER or re.search(rf"\d{{{MOST_DIGITS + 1}}}", text):
        return True
    if re.search(r"([^\d\s])\1{30}", text):  # degenerate models write -------- and xxxxxxxx, which sympy multiplies out
        return True
    if re.search(r"\d{4,}\s*\}*\s*!|!\s*\)*\s*!|\}\s*!", text):  # 1000!, 5!!, (5!)!
        return True
    if re.search(r"(?:\^|\*\*)[{(\s-]*\d{5,}", text):  # 2^{100000}
        return True
    return _depth(text) > DEEPEST_BRACKETS or _tower(text) > 2


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def _tower(text: str) -> int:
    """How many powers are stacked: 2 for `2^{3^4}` and `2^3^4`, 1 for `x^2 + (y^2)^2`."""
    tallest = 0
    bases = [0]
    """Powers below each open bracket."""
    chains = [0]
    """Powers chained since the last operand inside it: a^b^c."""
    exponent_next = False
    previous = ""
    for character in text.replace("**", "^"):
        if character.isspace():
            continue
        if character == "^":
            chains[-1] += 1
            tallest = max(tallest, bases[-1] + chains[-1])
            exponent_next = True
        elif character in "{([":
            if not exponent_next:
                chains[-1] = 0
            bases.append(bases[-1] + chains[-1])
            chains.append(0)
            exponent_next = False
        elif character in "})]":
            if len(bases) > 1:
                bases.pop()
                chains.pop()
            exponent_next = False
        else:
            if not exponent_next and not (character.isdigit() and previous.isdigit()):
                chains[-1] = 0
            exponent_next = False
        previous = character
    return tallest
