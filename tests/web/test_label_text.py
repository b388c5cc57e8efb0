"""How a text of a model is drawn on the page of `gro label`: tables of formulas and of Markdown, and texts made to cost
time."""

from __future__ import annotations

from typing import Any

import pytest

from web.browser import strict_page
from web.labelling import site, stored

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page, whose modules draw."""
    store = stored(tmp_path_factory.mktemp("text"))
    with site(store) as address, strict_page(browser) as page:
        page.goto(address)
        page.wait_for_selector(".completion")
        yield page


def drawn(page: Any, text: str, told: str) -> Any:
    """What an expression tells of the text's box, which is on the page meanwhile."""
    return page.evaluate(
        f"""async text => {{
            const {{ markdown }} = await import("/static/text.js");
            const box = markdown(text);
            document.querySelector(".completion .text").replaceChildren(box);
            return ({told})(box); }}""",
        text,
    )


ROWS = """box => [...box.querySelectorAll("mtable, table")].map((table) =>
    [...table.querySelectorAll("mtr, tr")].map((row) => [...row.children].map((cell) => cell.textContent)))"""
SIDES = """box => [...box.querySelectorAll("mtr")].map((row) => [...row.children].map((cell) => {
    const parts = [cell.firstElementChild, cell.lastElementChild, cell];
    const [first, last, all] = parts.map((e) => e.getBoundingClientRect());
    const [left, right] = [first.left - all.left, all.right - last.right].map(Math.round);
    return left === right ? "both" : left > right ? "right" : "left"; }))"""
SOURCES = "box => [...box.querySelectorAll('code.tex')].map((e) => e.textContent)"
FENCES = """box => [...box.querySelectorAll("mtable")].map((table) => [table.previousElementSibling?.textContent ?? "",
    table.nextElementSibling?.textContent ?? ""])"""
MATRIX = r"\begin{%s} 1 & -2 \\[2pt] 3 & 4 \end{%s}"
NUMBERS = [["1", "−2"], ["3", "4"]]


@pytest.mark.parametrize("name", ["align", "align*", "aligned", "split"])
@pytest.mark.parametrize("around", ["$${}$$", "$$\n{}\n$$", "\\[{}\\]", "{}", "So\n{}\nis it", "So {} is it", "{}."])
def test_aligned_equations(page, name, around):
    lines = f"\\begin{{{name}}}\nx &= 1 + 2 \\\\\n\n  &= 3 \\nonumber \\\\*\n\\end{{{name}}}"
    text = around.format(lines.replace("\n\n", "\n") if "is it" in around else lines)
    assert drawn(page, text, ROWS) == [[["x", "=1+2"], ["", "=3"]]]
    assert drawn(page, text, "box => box.querySelectorAll('code').length + box.textContent.includes('begin')") == 0


@pytest.mark.parametrize(
    ("name", "fences"),
    [
        ("matrix", ["", ""]),
        ("pmatrix", ["(", ")"]),
        ("bmatrix", ["[", "]"]),
        ("Bmatrix", ["{", "}"]),
        ("vmatrix", ["|", "|"]),
        ("Vmatrix", ["‖", "‖"]),
        ("cases", ["{", ""]),
        ("gathered", ["", ""]),
    ],
)
def test_matrices_and_cases(page, name, fences):
    text = f"Of $A = {MATRIX % (name, name)}$"
    assert drawn(page, text, ROWS) == [NUMBERS]
    assert drawn(page, text, FENCES) == [["=" if name in ("matrix", "gathered") else fences[0], fences[1]]]


def test_an_array_with_columns_and_a_table_in_a_table(page):
    text = r"$$\begin{array}{l|c r} a & b & c \\ aaaa & bbbb & cccc \end{array}$$"
    assert drawn(page, text, ROWS) == [[["a", "b", "c"], ["aaaa", "bbbb", "cccc"]]]
    assert drawn(page, text, SIDES) == [["left", "both", "right"], ["both"] * 3]
    text = r"$$\begin{aligned} y &= \begin{cases} %s \end{cases} \end{aligned}$$" % (MATRIX % ("matrix", "matrix"))
    assert drawn(page, text, ROWS)[-1] == NUMBERS
    text = r"$$\begin{aligned} x + y &= 1 \\ z &= 2 \end{aligned}$$"
    assert [row[0] for row in drawn(page, text, SIDES)] == ["both", "right"]
    said = r"$f(x) = \begin{cases} x^2 & \text{if } x > 0, \\ 0 & \text{else} \end{cases}$"
    assert drawn(page, said, ROWS) == [[["x2", "if\u00a0x>0,"], ["0", "else"]]]


@pytest.mark.parametrize(
    "formula",
    [
        r"\begin{tikzpicture} a & b \end{tikzpicture}",
        r"\begin{matrix} a & b",
        r"\begin{matrix} a \end{pmatrix}",
        r"\begin{array} a & b \end{array}",
        r"\begin{array}{p{3cm}} a & b \end{array}",
        r"\begin{constructor} a \end{constructor}",
        r"{ \begin{matrix} a } \end{matrix}",
        r"a & b \\ c",
        r"\end{matrix}",
        r"\begin",
        r"\begin{matrix} \macro & b \end{matrix}",
    ],
)
def test_what_is_not_understood_stays_as_it_is_written(page, formula):
    assert drawn(page, f"So ${formula}$ here", SOURCES) == [formula]
    bare = formula.replace("\\\\", "\\")  # in text two of them are one
    assert bare in drawn(page, f"So {formula} here", "box => box.textContent")


def test_a_table_follows_a_line_of_text(page):
    text = "The numbers:\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\nEnd"
    assert drawn(page, text, ROWS) == [[["a", "b"], ["1", "2"]]]
    assert drawn(page, text, "box => [...box.children].map((e) => e.tagName)") == ["P", "TABLE", "P"]
    for none in ("a | b | c\n--- | ---", "a\n|\n|", "|\n|"):  # no head of as many cells, or no dashes
        assert drawn(page, none, "box => box.textContent") == none


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ("| $|x|$ | 2 |", ["|x|", "2"]),
        (r"| \(|x|\) | $P(A|B)$", ["|x|", "P(A|B)"]),
        ("| `a|b` |", ["`a", "b`"]),
        (r"| `a\|b` | c\|d |", ["a|b", "c|d"]),
        ("| $5 | $6 |", ["$5", "$6"]),
        ("| `$HOME` | `$PATH` |", ["$HOME", "$PATH"]),
        ("| US$ | AU$", ["US$", "AU$"]),
        (r"| \$|x\$ |", ["$", "x$"]),
        ("1 |", ["1"]),
        ("|| 2", ["", "2"]),
    ],
)
def test_bars_that_end_a_cell_and_bars_that_do_not(page, row, cells):
    assert drawn(page, f"| a | b |\n|---|---|\n{row}", ROWS) == [[["a", "b"], cells]]


DEEP = r"\begin{matrix} a & " * 28 + r"\end{matrix}" * 28
HOSTILE = {
    "begins": r"\begin{align}" * 7000,
    "lines of begins": "\\begin{align}\n" * 7000,
    "ends": r"$\end{align}$" * 7000,
    "deep": f"$${DEEP}$$\n\n" * 30,
    "many": r"$$\begin{matrix}" + "&" * 1900 + r"\end{matrix}$$",
    "cells": "|a" * 45_000 + "\n" + "|-" * 45_000,
    "dashes": "a | b\n" * 20_000 + "-" * 90_000,
    "spaces": "|\n|" + " " * 100_000 + "-x",
    "dollars": "| a\n|--\n| $" + "a$1" * 30_000,
    "opened": "| a\n|--\n|" + r"\(" * 50_000,
    "heading": "# " + "a " * 10 + " " * 90_000 + "b",
    "fence": "~~~" + " " * 50_000 + "a" * 50_000 + "`",
    "tildes": "~" * 100_000 + "`",
    "displays": "$$x\n" * 25_000,
    "columns": r"$$\begin{array}{" + "l" * 1900 + r"}a\end{array}$$",
}


@pytest.mark.fault("W4")
@pytest.mark.parametrize("what", HOSTILE)
def test_no_text_of_a_hundred_thousand_characters_stops_the_page(page, what):
    """The test's own limit is the only one in seconds; each of these takes minutes where it is looked at again and
    again."""
    text = HOSTILE[what] + "\n\nthe end"
    assert drawn(page, text, "box => box.getBoundingClientRect().height > 0 && box.textContent.slice(-7)") == "the end"
    if what == "deep":
        assert (
            drawn(page, text, "box => [...box.querySelectorAll('code.tex')].map((e) => e.textContent)") == [DEEP] * 30
        )
