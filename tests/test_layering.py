"""Imports point down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "gro"
LAYERS = [
    {"errors", "read_only", "schema", "types"},
    {"signatures"},
    {"objective"},
    {"algorithms"},
    {"conformance"},
    {"policy", "labels"},
    {"engines", "rewards", "data", "runs"},
    {"judges", "raters"},
    {"training"},
    {"evaluation"},
    {"recipe"},
    {"contradictions", "explain"},
    {"config"},
    {"assemble"},
    {"preflight"},
    {"jobs"},
    {"web"},
    {"quickstart"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """First components under gro that a file imports, but for the typing-only ones."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gro":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gro.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    relative = path.relative_to(ROOT)
    owner = relative.parts[0].removesuffix(".py")
    if owner in ("__init__", "__main__"):
        return
    for target in imports(path):
        assert target == owner or LEVEL[target] < LEVEL[owner], f"{relative} imports gro.{target}, which lies above it"


def test_every_module_has_a_layer():
    names = {p.name.removesuffix(".py") for p in ROOT.iterdir() if not p.name.startswith("__")}
    assert names <= set(LEVEL)


def test_the_objective_needs_torch_and_types_only():
    for path in (ROOT / "objective").glob("*.py"):
        assert imports(path) <= {"objective", "types"}
