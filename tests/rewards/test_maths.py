"""Mathematical equality: right on ordinary answers, unmoved by hostile ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gro.rewards.batch import Trouble
from gro.rewards.maths import _nothing_is_evaluated, math_equal, maths
from gro.rewards.pool import Pool
from realdata import data_file
from rewards.bombs import BOMBS
from rewards.hostile import DEATHS, ERRORS, HANGS, HARMLESS
from rewards.hostile_code import ATTACKS, FORGERIES
from rewards.hostile_code import HANGS as CODE_HANGS
from rewards.ordinary import disagreements, generated, math_verify_says, of_gsm8k

HURRY = 0.5
"""Seconds that a hanging answer costs these tests."""
ROOT = Path(__file__).resolve().parents[2]

EQUAL = r"""
\frac{1}{2} & 0.5
\frac12 & \dfrac{2}{4}
1\frac{1}{2} & \frac{3}{2}
\sqrt{12} & 2\sqrt{3}
\frac{\sqrt{2}}{2} & \frac{1}{\sqrt{2}}
x^2+2x+1 & (x+1)^2
\sin^2 x+\cos^2 x & 1
\ln(e^2) & 2
\binom{5}{2} & 10
5! & 120
\{1,2,3\} & \{3,2,1\}
(1,2) & (1,2)
[0,1) & [0,1)
5 & x=5
12\text{ cm} & 12
90^\circ & 90
\$18.50 & 18.5
1{,}000 & 1000
2^{10} & 1024
1.5\times 10^3 & 1500
\text{Monday} & Monday
-\frac{7}{3} & -2.333333
\begin{aligned} 1 \end{aligned} & \begin{aligned} 1 \end{aligned}
a+b & b+a
\mathbb{R} & (-\infty,\infty)
72 & \(72\)
72 & $72$
72 & 72.
"""
DIFFERENT = r"""
\frac{1}{2} & 0.51
x^2-1 & (x-1)^2
(1,2) & (2,1)
[0,1) & [0,1]
\text{Monday} & \text{Tuesday}
3+4i & 4+3i
2\pi & 6
5 & x=6
72 & blue
72 & -
72 &  
10 & 10.0000001
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(part.strip(" ") for part in line.split(" & ")) for line in table.strip("\n").splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal(gold: str, answer: str) -> None:
    assert math_equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different(gold: str, answer: str) -> None:
    assert not math_equal(gold, answer)


def test_the_reward_reads_gold_and_completion() -> None:
    """All the ways to mark an answer; a row without a reference does not apply; a conversation is read too."""
    completions = ["so 48/2 = 24 and\n#### 72", "\\boxed{\\frac{144}{2}}", "it is 72.", "it is 71.", "no idea", "72"]
    answer = ["24+48\n#### 72"] * 5 + [None]
    assert maths(completions, answer=answer) == [1.0, 1.0, 1.0, 0.0, 0.0, None]
    assert maths(completions[:4], answer=answer[:4], last_number=False) == [1.0, 1.0, 0.0, 0.0]
    assert maths(["7"], solution=["7"], answer=["8"]) == [1.0]
    assert maths(["7"], column="answer", solution=["7"], answer=["8"]) == [0.0]
    messages = [[{"role": "assistant", "content": "#### 7"}]]
    assert maths(messages, solution=["7"]) == [1.0]
    with pytest.raises(ValueError, match=r"'solution' or 'answer'.*columns of the data: gold"):
        maths(["7"], gold=["7"])
    with pytest.raises(ValueError, match="reference answer is empty"):
        maths(["7"], solution=[" "])


CODE = [
    "__import__('os').system('touch CANARY')",
    "__import__('os').popen('touch CANARY').read()",
    "open('CANARY','w')",
    "open('CANARY','w').write('1')",
    'eval(\'open("CANARY","w")\')',
    'exec(\'open("CANARY","w")\')',
    "(lambda: open('CANARY','w'))()",
    "[open('CANARY','w') for _ in [1]]",
    "().__class__.__base__.__subclasses__()[0]; open('CANARY','w')",
    "1 if open('CANARY','w') else 2",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('CANARY','w')",
    'S(\'open("CANARY","w")\')',
    'sympify(\'open("CANARY","w")\')',
    'parse_expr(\'open("CANARY","w")\')',
    'lambdify([], \'open("CANARY","w")\')()',
    "Function('open')('CANARY','w')",
    "f\"{open('CANARY','w')}\"",
    "print(1, file=open('CANARY','w'))",
    "1;open('CANARY','w')",
    "1\nopen('CANARY','w')",
    "1,open('CANARY','w')",
    "5 + open('CANARY','w').fileno()",
    "72 # \n__import__('pathlib').Path('CANARY').touch()",
    "72 or __import__('pathlib').Path('CANARY').touch()",
    "72 == __import__('pathlib').Path('CANARY').touch()",
    "x = __import__('pathlib').Path('CANARY').touch()",
    "\\text{__import__('os').system('touch CANARY')}",
    "\\mathrm{open('CANARY','w')}",
    "\\operatorname{open}('CANARY','w')",
    "\\operatorname{eval}(open('CANARY','w'))",
    "\\operatorname{system}(touch CANARY)",
    "\\input{|touch CANARY}",
    "\\write18{touch CANARY}",
    "\\immediate\\write18{touch CANARY}",
    "\\openout\\x=CANARY",
    "\\begin{verbatim}__import__('os').system('touch CANARY')\\end{verbatim}",
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY",
    "| touch CANARY",
    "&& touch CANARY",
    "\\frac{__import__('os').system('touch CANARY')}{1}",
    "\\sqrt{open('CANARY','w')}",
    "\\sum_{open('CANARY','w')}^{2} 1",
    "x_{__import__('os').system('touch CANARY')}",
    "f(open('CANARY','w'))",
    "\\{1, open('CANARY','w')\\}",
    "!!python/object/apply:os.system ['touch CANARY']",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "cos\nsystem\n(S'touch CANARY'\ntR.",
    "}} \\boxed{__import__('os').system('touch CANARY')}",
    "\\href{file://CANARY}{72}",
]
WRAPPINGS = ["\\boxed{%s}", "#### %s", "The final answer is $%s$. I hope", "%s", "answer: %s 72"]


@pytest.fixture(scope="module")
def graders() -> Iterator[Pool]:
    with Pool("maths", time_limit=20.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def hurried() -> Iterator[Pool]:
    with Pool("maths", time_limit=HURRY) as pool:
        yield pool


@pytest.mark.fault("R7")
def test_code_in_an_answer_is_never_run(graders: Pool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = [wrapping % code.replace("CANARY", str(canary)) for code in CODE for wrapping in WRAPPINGS]
    # Between them, ordinary answers that must keep their scores.
    completions = [text for pair in zip(hostile, ["#### 72"] * len(hostile), strict=True) for text in pair]
    batch = graders.score({"completions": completions, "answer": ["72"] * len(completions)})

    assert not canary.exists()
    assert [batch.scores[row] for row in range(1, len(completions), 2)] == [1.0] * len(hostile)
    assert all(not isinstance(batch.scores[row], Trouble) for row in range(0, len(completions), 2))


@pytest.mark.fault("R7")
def test_code_in_the_reference_is_never_run_either(graders: Pool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    golds = [code.replace("CANARY", str(canary)) for code in CODE]
    graders.score({"completions": ["\\boxed{x+1}"] * len(golds), "answer": golds})
    assert not canary.exists()


@pytest.mark.fault("R7")
def test_sympy_cannot_evaluate_text_while_model_text_is_inside(tmp_path: Path) -> None:
    """The other half of the proof: with the guard off, the same text is run, so the canary is able to sing."""
    import sympy

    canary = tmp_path / "canary"
    text = f"__import__('pathlib').Path('{canary}').touch()"
    with _nothing_is_evaluated(), pytest.raises(Exception, match="not evaluated"):
        sympy.sympify(text)
    assert not canary.exists()
    sympy.sympify(text)
    assert canary.exists()


@pytest.mark.fault("R7")
def test_no_text_of_an_answer_is_compiled() -> None:
    """An audit hook sees all text that is compiled in the interpreter: only what sympy writes for its polynomials."""
    code = """
import sys, json
from gro.rewards.maths import math_equal
pairs = json.load(sys.stdin)
seen = []
def hook(event, args):
    if event == "compile" and isinstance(args[0], (str, bytes)):
        seen.append(args[0] if isinstance(args[0], str) else args[0].decode(errors="replace"))
    elif event in ("os.system", "subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "socket.connect"):
        seen.append(event)
sys.addaudithook(hook)
for gold, answer in pairs: math_equal(gold, answer)
print(json.dumps(seen))
"""
    table = [*pairs(EQUAL), *pairs(DIFFERENT), *(("72", code) for code in CODE)]
    result = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(table), cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert [text for text in json.loads(result.stdout) if not text.startswith("def monomial_")] == []


@pytest.mark.fault("R4", "R5", "R7")
def test_the_corpora_are_as_large_as_they_are_said_to_be() -> None:
    assert len({*BOMBS}) + len(HANGS) + len(CODE_HANGS) >= 200
    assert sum(map(len, (HANGS, DEATHS, ERRORS, HARMLESS, FORGERIES, ATTACKS, CODE_HANGS))) >= 140
    assert len({*CODE}) >= 50


@pytest.mark.fault("R4")
@pytest.mark.parametrize(
    ("gold", "every"),
    [("72", 16), pytest.param("72", 1, marks=pytest.mark.slow), pytest.param("x^2-1", 1, marks=pytest.mark.slow)],
)
def test_bombs_end_within_the_limit_and_hurt_nobody_else(hurried: Pool, gold: str, every: int) -> None:
    right = f"\\boxed{{{gold}}}"
    for bomb in BOMBS[::every]:
        began = time.monotonic()
        batch = hurried.score({"completions": [right, f"\\boxed{{{bomb}}}", right, right], "answer": [gold] * 4})
        took = time.monotonic() - began
        assert [batch.scores[row] for row in (0, 2, 3)] == [1.0, 1.0, 1.0], bomb
        guilty = batch.scores[1]
        # Wrong, or failed with a name; never right.
        assert guilty == 0.0 or (isinstance(guilty, Trouble) and guilty.kind in ("hung", "died", "raised")), bomb
        assert batch.lost < HURRY + 2, bomb
        assert took < HURRY + 10, bomb  # with a new process, on a busy machine


@pytest.mark.data
@pytest.mark.parametrize("every", [400, pytest.param(5, marks=pytest.mark.slow)])
def test_agrees_with_math_verify_on_gsm8k(every: int) -> None:
    cases = of_gsm8k(data_file("gsm8k.jsonl"), every)
    assert len(cases) > 200
    assert len(differ := disagreements(cases)) <= 0.005 * len(cases), differ[:10]


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_agrees_with_math_verify_on_a_generated_corpus(every: int) -> None:
    cases = generated()
    assert len({*cases}) >= 500
    assert {math_equal(gold, answer) for gold, answer in cases[::every]} == {True, False}
    assert len(differ := disagreements(cases[::every])) <= 0.005 * len(cases), differ[:10]


def test_agrees_with_math_verify_on_latex() -> None:
    quirks = {"72."}  # math-verify does not read a number with a full stop
    cases = [pair for pair in pairs(EQUAL) + pairs(DIFFERENT) if pair[1] not in quirks]
    cases += [(answer, gold) for gold, answer in cases if answer]
    assert [(g, a) for g, a in cases if math_equal(g, a) != math_verify_says(g, a)] == []


@pytest.mark.data
def test_every_gsm8k_solution_is_right_and_a_perturbed_one_wrong() -> None:
    rows = [json.loads(line) for line in data_file("gsm8k.jsonl").read_text().splitlines()]
    solutions = [row["answer"] for row in rows]
    with Pool("maths") as pool:
        right = pool.score({"completions": solutions, "answer": solutions})
        perturbed = [text.rpartition("#### ")[0] + "#### 1" + text.rpartition("#### ")[2] for text in solutions]
        wrong = pool.score({"completions": perturbed, "answer": solutions})
    assert set(right.scores.values()) == {1.0}
    assert set(wrong.scores.values()) == {0.0}
