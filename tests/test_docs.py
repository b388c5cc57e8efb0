"""The documentation is true: generated pages are current, examples run, recipes are sound, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gro.algorithms import build, names
from gro.cli import app
from gro.config import check_config
from gro.contradictions import advice
from gro.runs import RolloutRecord, Run, RunReader
from gro.runs.plain import dump_yaml, load_yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_EXAMPLES = [ROOT / "README.md", DOCS / "guide.md", DOCS / "invent.md"]


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def every_block(language: str) -> list[Any]:
    return [
        pytest.param(page, i, id=f"{page.name} {language} {i + 1}")
        for page in WITH_EXAMPLES
        for i in range(len(blocks(page, language)))
    ]


def file_name(block: str) -> str | None:
    """`mine.py` for a block that begins with `# mine.py`."""
    found = re.match(r"# ([\w-]+\.(?:py|yaml))\n", block)
    return found[1] if found else None


# --- generated pages -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> Iterator[Any]:
    """docs/generate.py as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))


def test_generated_pages_are_current(generate: Any):
    stale = [
        name
        for name, write in generate.pages().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text(encoding="utf-8") != write()
    ]
    assert not stale, f"run `make docs` and commit {stale}"


def test_the_proof_lists_every_algorithm_and_setting(generate: Any):
    text = (DOCS / "proof.md").read_text(encoding="utf-8")
    for name in names():
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][1:]
        settings = [row for row in rows if row[1].strip()]
        assert len(settings) == len(list(generate.proof.cases(name))), name
        assert all(re.fullmatch(r" ≤ 1e-1[024] ", error) for row in settings for error in row[-3:-1]), name
        assert re.search(r"^\d+ checks hold", section, re.MULTILINE), name


def test_a_wrong_declaration_is_not_published(generate: Any, monkeypatch: pytest.MonkeyPatch):
    (_, subject), *_ = generate.proof.cases("rloo")
    wrong = replace(subject.algorithm, terms=(replace(subject.algorithm.terms[0], scale=1.001),))
    monkeypatch.setattr(generate.proof, "cases", lambda name: iter([({}, replace(subject, algorithm=wrong))]))
    with pytest.raises(AssertionError, match="gradient"):
        list(generate.settings("rloo"))
    with pytest.raises(AssertionError, match="gradient"):
        generate.proof.conformance("rloo")


def test_there_is_a_page_for_every_algorithm_and_no_other():
    assert {path.stem for path in (DOCS / "algorithms").glob("*.md")} == {*names(), "README"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in names():
        assert f"(docs/algorithms/{name}.md)" in readme, f"the README's table lacks {name}"


def test_every_key_and_parameter_is_explained(generate: Any):
    for name in generate.pages():
        text = (DOCS / name).read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.startswith(("| `", "| **`"))]
        assert not [row for row in rows if row.endswith("|  |")], f"{name} has a row without a meaning"


def of_page(name: str, title: str) -> str:
    """What stands under a title of an algorithm's page."""
    text = (DOCS / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


@pytest.mark.parametrize("name", names())
def test_every_algorithm_has_a_recipe_for_its_defaults(name: str):
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", of_page(name, "A recipe"), re.MULTILINE | re.DOTALL)
    config = check_config(load_yaml(recipe), name, needs=())
    meant, published = build(name), build(str(config.algorithm["name"]), **config.parameters)
    assert (published.name, published.credit, published.terms) == (name, meant.credit, meant.terms)
    assert (published.critic, published.step) == (meant.critic, meant.step)
    assert list(advice(config, published)) == []
    command = "gro reward-model" if published.scores else "gro train"
    assert f"`{command}`" in of_page(name, "A recipe")


@pytest.mark.parametrize("name", names())
def test_every_algorithm_says_when_to_use_it_and_what_to_watch(name: str):
    said = of_page(name, "When to use it")
    assert 2 <= len(re.findall(r"[.;:](?: |$)", said)) <= 8, said
    assert of_page(name, "Metrics to watch").count("\n| `") >= 1


# --- curves ----------------------------------------------------------------------------------------------------------


def test_every_algorithm_of_a_policy_has_a_curve_that_rises(generate: Any):
    curves = generate.published()
    assert set(curves) == {name for name in names() if not build(name).scores}
    for name, curve in curves.items():
        assert curve.measured == (LOG_ODDS if build(name).pairs else "expected reward")
        assert curve.values[-1] > curve.values[0] + (1.5 if build(name).pairs else 0.15), name


LOG_ODDS = "log-odds of the better completion, nats"


@pytest.mark.parametrize("name", ["sft", "grpo", "dpo"])
def test_curves_are_what_the_algorithms_do(name: str, generate: Any):
    found, published = importlib.import_module("curves").curve(name), generate.published()[name]
    assert found.measured == published.measured
    assert found.values == pytest.approx(published.values, abs=0.05)


def test_a_picture_shows_its_curve(generate: Any):
    height = {"a": (0.25, 0.5, 1.0), "b": (0.25, 0.0, 0.125)}
    for values in height.values():
        picture = generate.chart.svg("x", importlib.import_module("curves").Curve("expected reward", values))
        points = re.findall(r"([\d.]+),([\d.]+)", re.findall(r'points="(.*?)"', picture)[0])
        lines = {float(n): float(y) for y, n in re.findall(r'y1="([\d.]+)".*?>([\d.]+)</text>', picture)}
        read = [(lines[0.0] - float(y)) / (lines[0.0] - lines[1.0]) for _, y in points]
        assert read == pytest.approx(values, abs=0.01)
        assert [float(x) for x, _ in points] == pytest.approx([40, 222, 404], abs=1)
        assert len(picture.encode()) < 6000


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name, and a run to be read, as working directory."""
    monkeypatch.chdir(tmp_path)
    for page in WITH_EXAMPLES:
        for block in blocks(page, "python"):
            if (name := file_name(block)) is not None:
                Path(name).write_text(block, encoding="utf-8")
    with Run.open("runs/grpo", {"run": "runs/grpo"}) as run:
        tokens = {"coefficient": [0.1, -0.2]}
        run.record_rollouts(1, [RolloutRecord(0, 0, "2+2=", [1, 5], "4", [7, 2], reward=1.0, tokens=tokens)])
        run.record(1, {"reward": 1.0})
    return tmp_path


@pytest.mark.parametrize(("page", "i"), every_block("python"))
def test_python_examples_run(
    page: Path, i: int, written: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    # dont_inherit: or this file's __future__ imports would hold in the example.
    code = compile(blocks(page, "python")[i], f"{page.name}, example {i + 1}", "exec", dont_inherit=True)
    monkeypatch.setitem(sys.modules, "example", ModuleType("example"))  # dataclasses look up their module
    exec(code, {"__name__": "example"})


@pytest.mark.parametrize("spec", ["mine.py:my_objective", "fading.py:fading", "listwise.py:listwise"])
def test_invented_objectives_are_verified(spec: str, written: Path):
    result = CliRunner().invoke(app, ["algorithms", "--verify", spec])
    assert result.exit_code == 0, result.output
    for check in ("gradient", "value", "improves"):
        assert re.search(rf"^holds  {check} .*off by ", result.output, re.MULTILINE), result.output


def test_what_the_guide_says_is_printed_is_printed(written: Path):
    result = CliRunner().invoke(app, ["algorithms", "--verify", "mine.py:my_objective", "cap=3"])
    (excerpt,) = blocks(DOCS / "invent.md", "text")
    for line in excerpt.splitlines():
        assert re.search(rf"^{re.escape(line)}(: off by .*)?$", result.output, re.MULTILINE), line


def test_the_trap_that_the_guide_names_is_found(written: Path):
    masked = "u_BX[:, 0].masked_fill(~scored_B, 0.0)"
    text = Path("listwise.py").read_text(encoding="utf-8")
    assert masked in text
    Path("listwise.py").write_text(text.replace(masked, "u_BX[:, 0]"), encoding="utf-8")
    result = CliRunner().invoke(app, ["algorithms", "--verify", "listwise.py:listwise"])
    assert result.exit_code == 1
    assert [line.split("  ")[1] for line in result.output.splitlines() if line.startswith("FAILS")] == ["idle rows"]


def test_the_declaration_on_the_readme_is_the_one_that_trains():
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(blocks(ROOT / "README.md", "python")[0], namespace)
    shown, registered = namespace["dpo"](0.3), build("dpo", beta=0.3)
    assert (shown.credit, shown.terms) == (registered.credit, registered.terms)


def paths_in(value: Any) -> Iterator[str]:
    """Data files that a recipe names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            found = item if isinstance(item, list) else [item]
            yield from (p for p in found if key == "path" and str(p).endswith(".jsonl"))
            yield from paths_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from paths_in(item)


def recipe_of(page: Path, i: int) -> dict[str, Any]:
    """Block i, over the latest whole recipe before it where it is only a part of one."""
    parts = [load_yaml(block) for block in blocks(page, "yaml")[: i + 1]]
    whole = [part for part in parts if "run" in part][-1]
    return {**whole, **parts[-1]}


@pytest.mark.parametrize(("page", "i"), every_block("yaml"))
def test_recipes_are_sound(page: Path, i: int, written: Path):
    recipe = recipe_of(page, i)
    for path in paths_in(recipe):
        Path(path).touch()
    assert check_config(recipe, f"{page.name}, recipe {i + 1}").run == recipe["run"]


def test_an_algorithm_of_ones_own_trains(written: Path):
    """The first invented objective, with a reward of the guide, through the whole loop."""
    rows = [f'{{"prompt": "{a}+{b}=", "answer": "{a + b}"}}\n' for a in range(10) for b in range(10)]
    Path("sums.jsonl").write_text("".join(rows), encoding="utf-8")
    size = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 270, "max_positions": 32}
    recipe = {
        "run": "runs/mine",
        "model": {"create": size, "device": "cpu"},
        "algorithm": {"file": "mine.py:my_objective", "pull": 0.02},
        "online": {"path": "sums.jsonl"},
        "rewards": [{"reward": "my_rewards.py:brief", "limit": 6}],
        "prompts_per_step": 2,
        "group_size": 4,
        "sampling": {"max_new_tokens": 8},
        "training": {"steps": 2, "epochs": 2, "tokens_per_micro": 24},
    }
    Path("mine.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    result = CliRunner().invoke(app, ["train", "mine.yaml"])
    assert result.exit_code == 0, result.output
    with RunReader("runs/mine") as run:
        assert run.status == "finished"
        assert run.metrics()["grad_norm"][1].min() > 0
        assert run.metrics()["kl"][1].max() > 0


@pytest.mark.parametrize(("page", "i"), every_block("sh"))
def test_commands_exist(page: Path, i: int):
    known = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in blocks(page, "sh")[i].splitlines():
        program, _, rest = line.partition(" ")
        if program == "gro":
            assert rest.split()[0] in known, line
        elif program == "make":
            assert rest.split()[0] in targets, line


# --- links and words -------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """Without code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {"".join(c for c in t.lower().replace(" ", "-") if c.isalnum() or c in "-_") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        aim = (page.parent / name).resolve() if name else page
        assert aim.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(aim), f"{target}: no such heading"


def own_files() -> list[Path]:
    """Everything that is ours and text."""
    folders = ("gro", "docs", "recipes", "tests", "bench", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    skipped = {"__pycache__", "results"}
    kinds = {".py", ".md", ".yaml", ".toml", ".txt", ".jinja", ".svg", ""}
    return [
        p for p in found if p.suffix in kinds and not skipped & {*p.relative_to(ROOT).parts} and p != Path(__file__)
    ]


EVERYWHERE = {
    "a path of somebody's machine": r"(?<![\w.~/}])/(?:work|opt|root|home)/",
    "a host of a package registry": r"\b(?:pypi\.(?:org|python)|files\.pythonhosted|download\.pytorch|conda\.anaconda)",
}
IN_PAGES = EVERYWHERE | {
    "a temporary path": r"(?<![\w.])/tmp\b",
    "how the work was organised": r"(?i)\b(?:agents?|sessions?|issue #\d+)\b",
}


@pytest.mark.parametrize("path", own_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_project_is_spoken_of(path: Path):
    text = path.read_text(encoding="utf-8", errors="replace")
    for what, pattern in (IN_PAGES if path.suffix == ".md" else EVERYWHERE).items():
        found = re.search(pattern, text)
        assert found is None, f"{what}: {text[max(0, found.start() - 40) : found.end() + 40]!r}"
