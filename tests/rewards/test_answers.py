"""Where the final answer stands, which text is a plain number, what is too large to look at."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gro.rewards.answers import LONGEST_ANSWER, Number, final_answer, gold_answer, plain_number, too_large


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48+24 = <<48+24=72>>72 clips.\n#### 72", "72"),
        ("#### 1,000", "1,000"),
        ("#### $18.50", "$18.50"),
        ("#### -3\n", "-3"),
        ("#### 72 clips", "72"),
        ("#### 72.", "72"),
        ("#### 1/2", "1/2"),
        ("#### \\frac{1}{2}", "\\frac{1}{2}"),
        ("####5", "5"),
        ("first #### 3 then\n#### 4", "4"),
        ("\\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}} and more", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\fbox{7}", "7"),
        ("\\boxed {8}", "8"),
        # Whichever comes later, in the order of the document.
        ("#### 5\nso \\boxed{6}", "6"),
        ("\\boxed{6}\n#### 5", "5"),
        ("#### \\boxed{9}", "9"),
        # A box that was cut off is no answer; the one before it is.
        ("\\boxed{1} no, \\boxed{2", "1"),
        ("####   \n\\boxed{4} ####", "4"),
    ],
)
def test_the_last_marked_answer_counts(text: str, answer: str) -> None:
    assert final_answer(text) == answer
    assert final_answer(text, last_number=False) == answer
    assert gold_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She sells 9 eggs for $18.", "18"),
        ("it was 8-3=5", "5"),
        ("from 5-10", "10"),
        ("minus: -7 degrees", "-7"),
        ("about 1,234.50 in all", "1,234.50"),
        ("12,34", "34"),
        ("it is 1/2", "1/2"),
        ("nearly 50%", "50%"),
        ("x2 and y3", None),
        ("version 1.2.3", "1.2"),
        ("none at all", None),
        ("", None),
    ],
)
def test_without_a_mark_the_last_number_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
    assert final_answer(text, last_number=False) is None


def test_a_gold_without_a_mark_is_the_whole_text() -> None:
    assert gold_answer(" x + 1 \n") == "x + 1"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", Number(Fraction(72), False, False)),
        ("-72.50", Number(Fraction(-145, 2), True, False)),
        ("+.5", Number(Fraction(1, 2), True, False)),
        ("5.", Number(Fraction(5), False, False)),
        ("$1,234,567", Number(Fraction(1234567), False, False)),
        ("-$5", Number(Fraction(-5), False, False)),
        ("\\$18", Number(Fraction(18), False, False)),
        ("$72$", Number(Fraction(72), False, False)),
        ("\\(72\\)", Number(Fraction(72), False, False)),
        ("3/4", Number(Fraction(3, 4), False, False)),
        ("20\\%", Number(Fraction(20), False, True)),
        ("0072", Number(Fraction(72), False, False)),
    ],
)
def test_plain_numbers(text: str, number: Number) -> None:
    assert plain_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "x", "1e5", "1,23", "1.2.3", "1/0", "--1", "2^3", "0x10", "²", "5" * 201, "1 or 2", "٣x"]
)
def test_what_is_no_plain_number(text: str) -> None:
    assert plain_number(text) is None


@given(st.fractions(max_denominator=10**6))
def test_a_fraction_is_read_exactly(value: Fraction) -> None:
    read = plain_number(f"{value.numerator}/{value.denominator}")
    assert read is not None
    assert read.value == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_a_decimal_is_read_exactly(value: object) -> None:
    read = plain_number(f"{value:f}")
    assert read is not None
    assert read.value == Fraction(str(value))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("72", "72.0", True),
        ("72", "72.0000001", False),
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("0.1", "0.1000001", True),
        ("2/4", "1/2", True),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("50%", "0.5", True),
        ("50%", "5", False),
        ("50%", "50%", True),
        ("-1", "1", False),
        ("10000000000000001", "10000000000000002", False),
    ],
)
def test_equality_of_numbers(a: str, b: str, equal: bool) -> None:
    left, right = plain_number(a), plain_number(b)
    assert left is not None
    assert right is not None
    assert left.equals(right) is equal


@pytest.mark.parametrize(
    "text",
    [
        "x" * (LONGEST_ANSWER + 1),
        "1" * 201,
        "2^{100000}",
        "2**100000",
        "2^{ -(123456)}",
        "9^{9^{9^{9}}}",
        "2^{2^{2^2}}",
        "2**2**2**2",
        "1000!",
        "(5!)!",
        "5!!",
        "((((((((((((((((((((((((((1))))))))))))))))))))))))))",
        "-" * 40,
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ],
)
def test_what_is_too_large(text: str) -> None:
    assert too_large(text)


@pytest.mark.parametrize(
    "text",
    [
        "72",
        "2^{10}",
        "x^2 + y^2 + z^2 + w^2",
        "e^{x^2}",
        "2^{3^{4}}",
        "(x^2)^2 (y^2)^2",
        "120!",
        "5! + 3!",
        "n!",
        "10^{-12}",
        r"\frac{\sqrt{1+\frac{1}{x}}}{\left(1-\frac{2}{y}\right)^{2}}",
        "1" * 200,
    ],
)
def test_what_is_not_too_large(text: str) -> None:
    assert not too_large(text)


@given(st.text(max_size=300))
def test_no_text_breaks_the_search(text: str) -> None:
    final_answer(text)
    gold_answer(text)
    too_large(text)
    number = plain_number(text)
    assert number is None or isinstance(number.value, Fraction)
