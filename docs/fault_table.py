"""The table of faults in docs/reliability.md: `python docs/fault_table.py` writes it again, as `make docs` does.

The tests of a fault are those that carry its marker, read from their source without importing it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cells import markdown_table
from faults import FAULTS, SECTIONS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGE = DOCS / "reliability.md"
BEGIN, END = "<!-- faults: written by docs/fault_table.py -->", "<!-- end of faults -->"


@dataclass(frozen=True, order=True)
class Marked:
    """A test that proves a fault's row."""

    file: str
    """Relative to the repository."""
    name: str
    slow: bool


def page() -> str:
    """The page as it stands, with the table of today."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for the table: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def table() -> str:
    """A section for each kind of fault."""
    lines: list[str] = []
    for letter, title in SECTIONS.items():
        rows = [(id, fault) for id, fault in FAULTS.items() if id.rstrip("0123456789") == letter]
        lines += ["", f"### {title}", ""]
        lines += markdown_table(
            ("", "fault", "what happens", "tests"),
            ((id, fault.what, fault.happens, _shown(marked().get(id, []))) for id, fault in rows),
        )
    return "\n".join(lines[1:])


def _shown(tests: list[Marked]) -> str:
    """By file, each name once."""
    files: dict[str, list[str]] = {}
    for test in sorted(set(tests)):
        files.setdefault(test.file, []).append(f"`{test.name}`" + (" (slow)" if test.slow else ""))
    return "; ".join(f"[{Path(f).name}](../{f}): {', '.join(names)}" for f, names in files.items()) or "to come"


@cache
def marked() -> dict[str, list[Marked]]:
    """The tests of every fault that is named by a marker."""
    found: dict[str, list[Marked]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for id, test in _of_file(path):
            found.setdefault(id, []).append(test)
    return found


def _of_file(path: Path) -> Iterator[tuple[str, Marked]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(ROOT).as_posix()
    seen: set[ast.Call] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not function.name.startswith("test"):
            continue
        markers = [node for d in function.decorator_list for node in ast.walk(d)]
        slow = any(ast.unparse(d) == "pytest.mark.slow" for d in function.decorator_list)
        for call in filter(_is_marker, markers):
            assert isinstance(call, ast.Call)
            seen.add(call)
            for argument in call.args:
                yield str(ast.literal_eval(argument)), Marked(name, function.name, slow)
    for node in ast.walk(tree):
        if _is_marker(node) and node not in seen:
            raise ValueError(f"{name}, line {node.lineno}: pytest.mark.fault belongs in a decorator of a test")  # type: ignore[attr-defined]


def _is_marker(node: ast.AST) -> bool:
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault"
    return named and ast.unparse(node.func) == "pytest.mark.fault"  # type: ignore[attr-defined]


def main() -> None:
    """Writes the page if the table has changed."""
    text = page()
    if text != PAGE.read_text(encoding="utf-8"):
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
