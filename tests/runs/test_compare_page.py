from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError
from gro.runs import RolloutRecord, Run
from gro.runs.compare import Comparison, find_runs, write_comparison
from gro.runs.series import short_names
from jobs_on_sums import cli
from runs.test_report import HOSTILE, Page


def made(
    path: Path, rewards: Sequence[float] = (), *, seed: int = 0, rate: float = 1e-3, alarm: str = "", **more: float
) -> Path:
    """A run that answered the prompts `2+2=` and `asked of <its path>` at every step."""
    config = {"run": str(path), "algorithm": {"name": "grpo"}, "training": {"seed": seed}, "optimizer": {"lr": rate}}
    with Run.open(path, config) as run:
        run.record(0, {"eval_reward": 0.125})
        for step, reward in enumerate(rewards, 1):
            run.record_rollouts(
                step, [_answer(0, "2+2=", f"{path.name} at {step}"), _answer(1, f"asked of {path}", "x")]
            )
            run.record(step, {"reward": reward, "kl": step / 8, "num_tokens": 1000.0 * step, **more})
        run.record(len(rewards), {"eval_reward": 0.875})
        if alarm:
            run.event("warning", alarm, 2)
        run.finish()
    return path


def _answer(group: int, prompt: str, completion: str, **more: Any) -> RolloutRecord:
    common: dict[str, Any] = {"reward": 0.5, "finish": "stop", "prompt_ids": [1], "completion_ids": [2]}
    return RolloutRecord(group=group, row=group, prompt=prompt, completion=completion, **common | more)


def page_of(paths: Sequence[Path], **options: Any) -> tuple[str, Page]:
    compared = Comparison.read(paths, **options)
    written = write_comparison(compared, paths[0].parent / "compare.html", compared.panels())
    return written.read_text(), Page(written.read_text())


def test_what_a_comparison_says(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"s{seed}", [0.25, 0.5, 0.75 + seed / 64], seed=seed) for seed in (0, 1)]
    paths.append(made(tmp_path / "fast", [0.5, 1.0, 0.625], rate=1e-2, alarm="entropy fell", grad_norm=3.0))
    text, page = page_of(paths)
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "base", "form", "a"})
    assert "default-src 'none'" in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Reward", "Reward, held out", "KL to the reference", "Reward against KL", "Gradient norm"]
    words = re.sub(r"\s+", " ", page.text)
    assert "3 runs compared" in words
    # name, algorithm, status, steps, tokens, last and highest reward, held out: first and last
    assert "s1 grpo finished 3 3,000 0.7656 0.7656 reward 0.125 0.875" in words
    assert "fast grpo finished 3 3,000 0.625 1 reward 0.125 0.875" in words
    assert "grpo lr=0.001 (2 seeds)" in words
    assert "95 % confidence interval" in words
    # 0.75 and 0.7656, 1/64 apart: 0.7578 ± 12.7062/128; all held-out rewards are the same
    assert "runs Reward Reward, held out KL to the reference grpo lr=0.001 (2 seeds) 0.7578 (0.6585 to 0.8571)" in words
    assert "0.875 (0.875 to 0.875) 0.375 (0.375 to 0.375)" in words
    # two seeds first, as they are drawn; where the runs lie is no difference
    assert "training.seed 0 1 0 optimizer.lr 0.001 0.001 0.01" in words
    assert str(tmp_path) not in words
    assert "s0 at 3" in words
    assert "s0 at 2" not in words
    assert "asked of" not in words  # one run's prompt
    assert re.search(r"Alarms fast \(1\) warning step 2 entropy fell", words)


def test_runs_apart(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"s{seed}", [0.25, 0.5], seed=seed) for seed in (0, 1)]
    text, _ = page_of(paths, by_seed=False)
    assert "confidence" not in text
    assert len(re.findall(r'<li><svg class="swatch"', text)) == 2


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"s{seed}", [0.25, 0.5], seed=seed) for seed in (0, 1)]
    assert page_of(paths)[0] == page_of(paths)[0]


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    paths = []
    for name in ("<b>&one", "<script>two\u202e"):
        config = {"algorithm": HOSTILE, HOSTILE: HOSTILE + name}
        with Run.open(tmp_path / name, config) as run:
            for step in (1, 2):
                row = _answer(0, HOSTILE, HOSTILE, rewards={HOSTILE: 1.0, "b": 2.0})
                run.record_rollouts(step, [row])
                run.record(step, {HOSTILE: 1.0, "reward": 0.5, "kl": 0.5, f"rewards/{HOSTILE}/mean": 0.5})
            run.event("error", HOSTILE, 1)
        paths.append(run.path)
    compared = Comparison.read(paths)
    text = write_comparison(compared, tmp_path / "c.html", compared.panels(every=True)).read_text()
    page = Page(text)
    assert page.tags.isdisjoint({"script", "img", "b&one"})
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for never in ("62615533", "\x1b", "\u202e", "\x00"):
        assert never not in text
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").replace("\x00", "\\x00")
    assert page.text.count(shown) >= 10
    assert "<script>two\\u202e" in page.text


def test_which_runs(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a" / "run", [1.0]), made(tmp_path / "b" / "run", [1.0])
    (tmp_path / "a" / "notes").mkdir()
    assert find_runs([tmp_path / "a", two, one, one / ".." / "run"]) == {one: True, two: True}
    assert find_runs([tmp_path / "b"]) == {two: False}
    (tmp_path / "best").symlink_to(two)
    assert find_runs([tmp_path / "best", two]) == {tmp_path / "best": True}  # once, as it was called first
    assert short_names([one, two]) == ["a/run", "b/run"]
    assert short_names([Path("/x/y"), Path("/y"), Path("/x/z")]) == ["x/y", "/y", "z"]
    for path, why in ((tmp_path / "c", "does not exist"), (tmp_path / "a" / "notes", "neither a run directory nor")):
        with pytest.raises(GroError, match=why):
            find_runs([path])


def test_a_run_of_another_version_is_left_out_of_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    paths = [made(tmp_path / name, [1.0]) for name in ("a", "b", "later")]
    with sqlite3.connect(paths[2] / "run.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    (made(tmp_path / "torn", [1.0]) / "config.yaml").write_text("{")
    compared = Comparison.read([tmp_path])
    assert [run.name for run in compared.runs] == ["a", "b"]
    page = write_comparison(compared, tmp_path / "c.html", []).read_text()
    assert page.count("left out: ") == 2
    assert re.search("left out: .*later.*left out: .*torn", page, re.DOTALL)
    with pytest.raises(GroError, match="later"):
        Comparison.read(paths)


def test_more_runs_than_files_may_be_open(tmp_path: Path) -> None:
    """A run has three open while it is read: its database, the log of that and its index."""
    first = made(tmp_path / "runs" / "run-00", [0.25, 0.5], alarm="entropy fell")
    for number in range(1, 40):
        shutil.copytree(first, tmp_path / "runs" / f"run-{number:02}")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    command = "from gro.cli import main; sys.argv[1:] = ['compare', 'runs', '--smooth', '0']; main()"
    done = subprocess.run(
        [sys.executable, "-c", limited + command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "compare.html").read_text()
    assert "40 runs compared" in text
    assert "left out" not in text
    assert text.count("entropy fell") == 40


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = made(tmp_path / "one", [1.0])
    with pytest.raises(GroError, match="found one only; gro report draws one run"):
        Comparison.read([one, one])
    other = tmp_path / "other"
    with Run.open(other, {}) as run:
        run.record(1, {"loss": 0.5})
    with pytest.raises(GroError, match="no metric was recorded by two of these runs"):
        Comparison.read([one, other])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        made(tmp_path / "runs" / f"s{seed}", [0.25, 0.5], seed=seed)
    done = cli("compare", "runs", "--pictures", "figures", "--format", "svg", "--smooth", "0")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == ["compare.html", "figures: 4 pictures"]
    assert "2 runs compared" in (tmp_path / "compare.html").read_text()
    names = {"reward.svg", "reward_held_out.svg", "kl.svg", "frontier.svg"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    done = cli("report", "runs/s0", "-o", "one.html", "--every", "--pictures", "figures", "--format", "pdf")
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["one.html", "figures: 4 pictures"]  # num_tokens is the fourth
    assert (tmp_path / "figures" / "num_tokens.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "runs" / "s0" / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["report", "run", "-o", "absent/x.html"], "--output: the folder .*absent does not exist"),
        (["compare", "run", "-o", "absent/x.html"], "--output: the folder .*absent does not exist"),
        (["report", "run", "--format", "gif"], "--format: expected one of png, svg, pdf, found 'gif'"),
        (["report", "run", "--format", "svg"], "--format: it is of the files in --pictures"),
        (["report", "run", "--pictures", "absent/x"], "--pictures: the folder .*absent does not exist"),
        (["report", "run", "--pictures", "run/run.db"], "--pictures: run/run.db is a file, expected a folder"),
        (["report", "."], "is not a run directory"),
        (["compare", "absent"], "absent does not exist"),
        (["compare", "run"], "found run only"),
    ],
)
def test_what_commands_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], why: str) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "run", [0.5])
    before = sorted(tmp_path.rglob("*"))
    done = cli(*command)
    assert done.code != 0
    assert re.search(why, done.err), done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.name.startswith("run.db-")] == before


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "windows.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        made(tmp_path / "runs" / f"s{seed}", [0.25, 0.5], seed=seed)
    exec(compile(example, "windows.md", "exec", dont_inherit=True), {"__name__": "example"})
    assert (tmp_path / "frontier.pdf").read_bytes().startswith(b"%PDF")
    assert "2 runs compared" in (tmp_path / "compare.html").read_text()


def test_the_command_smooths_as_the_pages_do() -> None:
    from gro.cli import reporting
    from gro.runs.panels import DEFAULT_SMOOTHING

    assert reporting.SMOOTH == DEFAULT_SMOOTHING
