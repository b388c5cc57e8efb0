"""Answers that cannot be worked out, or only in a time that no reward has: by hand, and by the family."""

from __future__ import annotations

from collections.abc import Iterator

_BY_HAND = [
    r"\dfrac{5^{5^{5^{5^5}}}}{16}",
    r"9^{9^{9}}",
    r"9^{9^{9^{9}}}",
    r"2^{1000000000}",
    r"(10^{10})^{10^{10}}",
    r"((9^{9})^{9})^{9999}",
    "1000000!",
    "((5!)!)!",
    "(999!)^{999}",
    "99!!!!!!",
    r"\binom{1000000}{500000}",
    r"\sum_{n=1}^{100000000}\frac{1}{n}",
    r"\prod_{n=1}^{1000000} n",
    r"\int_0^1 e^{x^x} dx",
    r"\int \sin(x^x)\cos(e^x) dx",
    r"\lim_{x\to 0} \frac{\sin(\sin(\sin(x)))}{x^{x}}",
    "(" * 500 + "1" + ")" * 500,
    "{" * 300 + "1" + "}" * 300,
    r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\frac{1}{" * 60 + "2" + "}" * 60,
    "1" * 100_000,
    "9" * 5_000,
    "-" * 900 + "1",
    "x" * 900,
    "x+" * 450 + "1",
    "+".join(f"x^{i}" for i in range(1, 150)),
    r"(x+y+z+w+a+b+c)^{99}",
    r"(x+1)^{9999}",
    r"\sin(" * 20 + "x" + ")" * 20,
    r"x^{x^{x^{x^x}}}=2",
    r"|x-1|+|x-2|+|x-3|+|x-4|<5",
    r"\begin{pmatrix}" + r"\\".join("&".join(["x^2+1"] * 8) for _ in range(8)) + r"\end{pmatrix}",
    r"\det\begin{pmatrix}"
    + r"\\".join("&".join(f"x_{{{i}{j}}}" for j in range(6)) for i in range(6))
    + r"\end{pmatrix}",
    r"\operatorname{zeros}(100000,100000)",
    r"\operatorname{gcd}(10^{9999},3^{9999})",
    r"[1,2]\cup" * 40 + "[3,4]",
    r"\Gamma(10^{6})",
    "1e999999999",
    r"\left(" * 50,
    r"\boxed{" * 200,
    "####" * 5_000,
    "٣" * 500,
    "\\" * 2_000,
    "$" * 2_000,
]


def _families() -> Iterator[str]:
    for base, top in ((2, 10), (3, 7), (9, 9), (10, 10), (1.5, 99)):
        for height in (3, 4, 6):
            yield "^{".join([str(base)] * height) + f"^{{{top}" + "}" * height
            yield "(" * height + str(base) + f"^{{{top}}})" * height
            yield "**".join([str(base)] * height + [str(top)])
    for n in (170, 999, 5_000, 10**6, 10**12):
        yield f"{n}!"
        yield f"\\frac{{{n}!}}{{{n - 1}!}}"
        yield f"\\binom{{{n}}}{{{n // 2}}}"
        yield f"\\sum_{{k=1}}^{{{n}}} k^{{{n}}}"
        yield f"\\prod_{{k=1}}^{{{n}}} (k+x)"
        yield f"{n}^{{{n}}} \\bmod 7"
        yield f"\\sqrt[{n}]{{{n}^{{{n}}}+1}}"
    for depth in (12, 20, 40):
        yield "\\frac{1}{1+" * depth + "x" + "}" * depth
        yield "\\sqrt{1+" * depth + "x" + "}" * depth
        yield "\\left(" * depth + "1" + "\\right)" * depth
        yield "\\ln(" * depth + "x" + ")" * depth
        yield "e^{" * depth + "x" + "}" * depth
        yield "|" * depth + "x" + "|" * depth
        yield "-(" * depth + "1" + ")" * depth
        yield "\\text{" * depth + "1" + "}" * depth
    for terms in (20, 60, 120):
        yield "*".join(f"(x+{n})" for n in range(terms))
        yield "+".join(f"\\frac{{1}}{{x+{n}}}" for n in range(terms))
        yield "+".join(f"\\sqrt{{{n}+x}}" for n in range(terms))
        yield ",".join(f"x_{{{n}}}^2" for n in range(terms))
        yield "\\{" + ",".join(f"\\sin({n})^2+\\cos({n})^2" for n in range(terms)) + "\\}"
        yield "=".join(["x"] * terms)
        yield "<".join(["x"] * terms)
        yield "\\cup".join(f"({n},{n + 1})" for n in range(terms))
        yield "^".join(["2"] * terms)
        yield "".join(f"\\sin({n}x)" for n in range(terms))
    for function in ("\\sin", "\\arctan", "\\Gamma", "\\exp", "\\log_2", "\\zeta"):
        yield f"\\int_0^1 {function}(x^{{x^x}}) dx"
        yield f"\\lim_{{x\\to 0}} {function}({function}({function}(x)))^{{1/x}}"
        yield f"\\frac{{d^{{50}}}}{{dx^{{50}}}} {function}(x^2)^{{9}}"
        yield f"{function}(10^{{99}})-{function}(10^{{99}}+1)"
    for character in "(){}[]^_\\$%&#|,.;-+*/=<>!x0":
        yield character * 300


BOMBS = [*_BY_HAND, *_families()]
