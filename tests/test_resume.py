"""The same command continues an interrupted run, to the bit: what `make torture` does at length, and what is said."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from gro.runs import RunReader
from gro.runs.files import read_json
from gro.runs.identity import versions
from gro.training.checkpoint import PREFIX
from gro.training.settings import Optimization
from jobs_on_sums import Done, cli, recipe, write_data
from torture.attempts import Attempt, preload
from torture.cases import CASES, STEPS, TRAINERS, prepare
from torture.compare import differences
from torture.trials import Quiet, quiet, without_pictures

QuietRun = Callable[[str], Quiet]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model that was taught the form of a sum."""
    preload()
    base = tmp_path_factory.mktemp("resume") / "base"
    prepare(base)
    return base


@pytest.fixture(scope="module")
def quiet_run(base: Path) -> QuietRun:
    """Runs that nobody disturbed, by the name of their case."""
    known: dict[str, Quiet] = {}

    def run(name: str) -> Quiet:
        if name not in known:
            known[name] = quiet(CASES[name], base, base.parent / name, twice=False)
        return known[name]

    return run


@pytest.fixture(scope="module")
def three(quiet_run: QuietRun) -> Path:
    """A run of preferences that was killed after its third state was written, so that two are there."""
    known = quiet_run("dpo")
    run = known.folder / "three"
    ended = known.attempt(run, strikes={known.save_of(3).stop: "SIGKILL"}).finish()
    assert ended.killed
    assert _states(run) == ["step-2", "step-3"]
    return run


@pytest.fixture
def killed(three: Path) -> Iterator[Path]:
    """A copy of it."""
    run = three.with_name("copy")
    shutil.copytree(three, run)
    yield run
    shutil.rmtree(run)


def _states(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "state").iterdir())


def _continued(known: Quiet, run: Path, *overrides: str) -> str:
    """What the same command says, after which the run is what it would have been."""
    ended = known.attempt(run, *overrides).finish()
    assert ended.code == 0, ended.said
    assert differences(known.run, run) == []
    return ended.said


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("P1", "P2", "N6")
@pytest.mark.parametrize("name", [*(case.name for case in TRAINERS), "awr-replay"])
def test_killed_on_its_way(name: str, quiet_run: QuietRun) -> None:
    """At an operation of its opening, at one of a save, while a state or model is being written, and anywhere."""
    known, noise = quiet_run(name), random.Random(name)
    run = known.folder / "killed"
    for place in (noise.randrange(3, known.save_of(1).start), noise.choice(known.save_of(2))):
        assert known.attempt(run, strikes={place: "SIGKILL"}).finish().killed
    attempt = known.attempt(run)
    attempt.wait(lambda: attempt.board.saves > 0 and attempt.board.inside > 0)
    attempt.kill()
    attempt = known.attempt(run)
    attempt.wait(lambda: attempt.cpu() > noise.uniform(0, known.ended.cpu))
    attempt.kill()
    _continued(known, run)


@pytest.mark.fault("P1")
@pytest.mark.parametrize("operation", ["commit", "report.html"])
def test_killed_at_the_very_end(operation: str, quiet_run: QuietRun) -> None:
    """Where only the word that it is finished is missing, or only the report."""
    known = quiet_run("dpo")
    places = [i for i, (what, name, _) in enumerate(known.operations) if operation in (what, name)]
    place = places[-2] if operation == "commit" else places[-1]  # the last transaction closes the run
    run = known.folder / f"end-{operation}"
    assert known.attempt(run, strikes={place: "SIGKILL"}).finish().killed
    assert not (run / "report.html").exists()
    said = _continued(known, run)
    assert ("nothing is left to do" in said) == (operation == "report.html")


@pytest.mark.fault("P2")
def test_killed_before_the_oldest_state_is_removed(quiet_run: QuietRun) -> None:
    """The last one, after which no other comes that would remove it."""
    known = quiet_run("dpo")
    run, save = known.folder / "rotation", known.save_of(STEPS - 1)
    doomed = next(i for i in save if known.operations[i][1].startswith(".step-3.tmp"))
    assert known.attempt(run, strikes={doomed: "SIGKILL"}).finish().killed
    assert _states(run) == ["step-3", "step-4", "step-5"]
    _continued(known, run)


@pytest.mark.fault("P1")
def test_killed_while_the_database_was_made(quiet_run: QuietRun) -> None:
    known = quiet_run("dpo")
    run, tables = known.folder / "early", next(i for i, (what, _, _) in enumerate(known.operations) if what == "commit")
    assert known.attempt(run, strikes={tables: "SIGKILL"}).finish().killed
    checked = cli("check", known.path, f"run={run}")
    assert "was stopped at its very beginning; the same command begins it anew" in checked.out.replace("\n", " ")
    _continued(known, run)


@pytest.mark.fault("P4")
@pytest.mark.parametrize(("what", "words"), [("ENOSPC", "No space left on device"), ("EIO", "Input/output error")])
def test_the_disk_refuses_a_save(what: str, words: str, quiet_run: QuietRun) -> None:
    known = quiet_run("dpo")
    save, run = known.save_of(3), known.folder / f"refused-{what}"
    for place in (save.start, save.start + 2):  # making the directory, and in the middle of its content
        ended = known.attempt(run, strikes={place: what}).finish()
        assert ended.code == 2, ended.said
        assert re.search(rf"^error: cannot .*step-3.*{words}", ended.said, re.MULTILINE)
        assert "Traceback" not in ended.said
        assert _states(run) == ["step-1", "step-2"], "what was there is there, and nothing half written"
        if place == save.start:
            shutil.rmtree(run)
    _continued(known, run)


# --- asked to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("P3")
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("during", ["step", "save"])
def test_asked_to_stop(signal: str, during: str, quiet_run: QuietRun) -> None:
    """The step is ended, and its state saved, also where the recipe did not want one so soon."""
    known = quiet_run("dpo")
    run, save = known.folder / f"{signal}-{during}", known.save_of(2)
    place = {"step": known.save_of(1).start - 3, "save": save.start + 3}[during]
    rarely = "training.resume_every=null" if during == "step" else "training.resume_every=1"
    ended = known.attempt(run, rarely, strikes={place: signal}).finish()
    after = 1 if during == "step" else 3
    assert ended.code == 75, ended.said
    assert f"{signal}: stops after this step; once more, and it stops at once" in ended.said
    said = f"interrupted: {signal}: the state after step {after} is saved; the same command continues"
    assert ended.said.splitlines()[-1] == said
    assert _states(run)[-1] == f"step-{after}"
    assert f"continues after step {after}" in _continued(known, run)


@pytest.mark.fault("P3")
def test_asked_to_stop_twice_during_a_save(quiet_run: QuietRun) -> None:
    known = quiet_run("dpo")
    run, place = known.folder / "twice", known.save_of(3).start + 3
    ended = known.attempt(run, strikes={place: "SIGTERM", place + 1: "SIGINT"}).finish()
    assert ended.code == 75, ended.said
    assert re.fullmatch(
        r"interrupted: SIGINT: .*twice is not finished; the same command continues after step 2",
        ended.said.splitlines()[-1],
    )
    assert _states(run) == ["step-1", "step-2"], "what was half written is gone"
    assert "continues after step 2" in _continued(known, run)


@pytest.mark.fault("P3")
def test_asked_to_stop_before_the_first_step(quiet_run: QuietRun) -> None:
    known = quiet_run("dpo")
    run = known.folder / "soon"
    ended = known.attempt(run, strikes={12: "SIGTERM"}).finish()
    assert ended.code == 75, ended.said
    assert ended.said.splitlines()[-1].endswith("soon is not finished; the same command begins anew")
    _continued(known, run)


# --- a damaged state --------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit": ("weights.safetensors", _flip, "is damaged: its checksum is not that of what was written"),
    "cut off": ("optimizer.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes where"),
    "gone": ("state.json", Path.unlink, "is missing"),
    "no manifest": ("manifest.json", Path.unlink, "was never completed"),
}


@pytest.mark.fault("P6", "P2")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_falls_back_on_the_one_before(damage: str, quiet_run: QuietRun, killed: Path) -> None:
    name, spoil, words = DAMAGE[damage]
    spoil(killed / "state" / "step-3" / name)
    said = _continued(quiet_run("dpo"), killed)
    warning = next(line for line in said.splitlines() if line.startswith("warning: "))
    assert words in said
    assert "step-3" in said[said.index(warning) :]
    assert "continues after step 2" in said
    with RunReader(killed) as reader:
        assert any(words in event.message for event in reader.events() if event.level == "warning")


@pytest.mark.fault("P6")
def test_nothing_is_thrown_away_where_every_state_is_damaged(quiet_run: QuietRun, killed: Path) -> None:
    for step in (2, 3):
        _flip(killed / "state" / f"{PREFIX}{step}" / "weights.safetensors")
    done = _again(killed)
    assert done.code == 2
    assert done.out.count("warning: ") == 2
    assert "no state of it is whole" in done.err
    assert (killed / "state" / f"{PREFIX}3").is_dir()
    shutil.rmtree(killed / "state")
    assert "begins anew" in _continued(quiet_run("dpo"), killed)


# --- the same run? ----------------------------------------------------------------------------------------------------


def _again(run: Path, *overrides: str) -> Done:
    """The command of that run, in this process, with these changes."""
    return cli("train", run.parent / "dpo.yaml", f"run={run}", *overrides)


@pytest.mark.fault("C4")
def test_settings_that_change_results_are_refused_one_by_one(killed: Path) -> None:
    changed = ["training.seed=3", "optimizer.learning_rate=1.0", "algorithm.beta=0.3", "prompts_per_step=2"]
    done = _again(killed, *changed)
    assert done.code == 2
    assert "holds another run" in done.err
    for line in ("training.seed: 0 → 3", "optimizer.learning_rate: 0.001 → 1.0", "prompts_per_step: 4 → 2"):
        assert line in done.err
    assert "algorithm.beta: nothing → 0.3" in done.err or "algorithm.beta: 0.1 → 0.3" in done.err


@pytest.mark.fault("C4")
def test_settings_of_logging_may_change(quiet_run: QuietRun, killed: Path) -> None:
    known = quiet_run("dpo")
    ended = known.attempt(killed, "training.record_groups=1", "training.save_every=4", "training.kl_every=1").finish()
    assert ended.code == 0, ended.said
    assert "note: " not in ended.said
    assert _bits(killed) == _bits(known.run)
    assert (killed / "checkpoints" / "step-4").is_dir()


@pytest.mark.fault("C4")
def test_settings_of_memory_may_change_the_last_bits_and_it_is_said(quiet_run: QuietRun, killed: Path) -> None:
    ended = quiet_run("dpo").attempt(killed, "training.tokens_per_micro=32", "slots=7").finish()
    assert ended.code == 0, ended.said
    note = "note: the continuation is not exact to the last bits: training.tokens_per_micro: 16384 → 32"
    assert note in ended.said.replace("\n", " ")


def _bits(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.fault("P1")
def test_other_versions_and_threads_are_said(killed: Path) -> None:
    other = versions() | {"torch": "2.12.0", "threads": 64}
    with mock.patch("gro.runs.store.versions", return_value=other):
        done = _again(killed)
    assert done.code == 0, done.err
    said = done.out.replace("\n", " ")
    now = versions()
    assert "note: exact continuation is not promised" in said
    assert f"torch: '{now['torch']}' → '2.12.0'; threads: {torch.get_num_threads()} → 64" in said


@pytest.mark.fault("C5")
def test_a_finished_run_says_so(quiet_run: QuietRun) -> None:
    """With 0: a script of several commands can be given again."""
    known = quiet_run("dpo")
    before = _bits(known.run)
    done = _again(known.run)
    assert done.code == 0
    assert f"holds a finished run of this recipe (last step {STEPS}); nothing is left to do" in done.out
    assert _bits(known.run) == before
    other = _again(known.run, "training.seed=1")
    assert other.code == 2
    assert f"holds a finished run (last step {STEPS}" in other.err


ANSWERS = """
def digits(completions, **columns):
    texts = [messages[0]["content"] for messages in completions]
    return [float(sum(c.isdigit() for c in text)) for text in texts]
"""
MINE = """
from gro.algorithms import build


def shy(beta: float = 0.02):
    return build("grpo", beta=beta)
"""
TEMPLATE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


@pytest.fixture(scope="module")
def everything(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interrupted run with data, a template, a start, a reward and an algorithm of the user's own."""
    folder = tmp_path_factory.mktemp("everything")
    write_data(folder)
    shutil.copytree(base / "sft" / "model", folder / "start")
    (folder / "start" / "manifest.json").unlink()  # as models from elsewhere are
    (folder / "reward.py").write_text(ANSWERS)
    (folder / "mine.py").write_text(MINE)
    (folder / "chat.jinja").write_text(TEMPLATE)
    data = {"path": str(folder / "sums.jsonl"), "stop": 20, "chat": True, "chat_template": str(folder / "chat.jinja")}
    path = recipe(
        folder / "job.yaml",
        model=str(folder / "start"),
        algorithm={"name": f"{folder}/mine.py:shy"},
        online=data,
        rewards=[f"{folder}/reward.py:digits"],
        sampling={"max_new_tokens": 2},
        group_size=2,
        training={"steps": 3, "resume_every": 1},
    )
    attempt = Attempt(["train", str(path)], folder, folder / "log", before=without_pictures)
    assert attempt.wait(lambda: attempt.board.saves > 0), attempt.finish().said
    assert attempt.kill().killed
    return path


CHANGES = {
    "data": ("sums.jsonl", lambda t: t.replace('"1+2="', '"1+2= "'), "online: file 1"),
    "template": ("chat.jinja", lambda t: t.replace("assistant: ", "assistant:"), "online: chat template"),
    "start": ("start/config.json", lambda t: t + " ", "model: config.json"),
    "reward": ("reward.py", lambda t: t.replace("float(", "1.0 + float("), "rewards.0"),
    "algorithm": ("mine.py", lambda t: t.replace("0.02", "0.03"), "algorithm"),
}


@pytest.mark.fault("D14", "D10", "C4")
@pytest.mark.parametrize("what", CHANGES)
def test_other_content_under_the_same_names_is_refused(what: str, everything: Path) -> None:
    """Naming the file, and both hashes."""
    import hashlib

    name, change, key = CHANGES[what]
    file = everything.parent / name
    before = file.read_text()
    file.write_text(change(before))
    try:
        done = cli("train", everything)
    finally:
        file.write_text(before)
    assert done.code == 2
    assert "was begun with other content" in done.err
    if what == "template":  # of which more than the file is hashed
        pattern = rf"{key} \({re.escape(str(file))}\) had sha256 [0-9a-f]{{64}}, and now [0-9a-f]{{64}}"
        assert re.search(pattern, done.err)
        assert done.err.count("had sha256") == 1
    else:
        then, now = (hashlib.sha256(text.encode()).hexdigest() for text in (before, change(before)))
        assert f"{key} ({file}) had sha256 {then}, and now {now}. Restore it" in done.err


@pytest.mark.fault("D14")
def test_restored_content_continues(everything: Path) -> None:
    run = everything.with_suffix("")
    shutil.copytree(run, copy := everything.parent / "copy")
    done = cli("train", everything, f"run={copy}")
    assert done.code == 0, done.err
    assert "continues after step" in done.out


def test_content_may_be_put_right_before_anything_was_recorded(everything: Path, tmp_path: Path) -> None:
    """A reward that fails when it is tried is put right, and the same command goes on with the other file."""
    reward = everything.parent / "wrong.py"
    reward.write_text("def digits(completions, **columns):\n    return [None / 2 for _ in completions]\n")
    command = ("train", everything, f"run={tmp_path / 'run'}", f"rewards=['{reward}:digits']")
    assert cli(*command).code == 2
    reward.write_text(ANSWERS)
    done = cli(*command, "training.steps=1")
    assert done.code == 0, done.err


# --- the first step afterwards ----------------------------------------------------------------------------------------


def _lines(said: str) -> dict[str, str]:
    """By their number, the lines of steps without what is a measurement of time."""
    lines = [line for line in said.splitlines() if line.startswith("step ") and "/" in line]
    return {line.split()[1]: re.sub(r"  (tokens/s|eta) \S+", "", line) for line in lines}


@pytest.mark.fault("N6")
@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_the_first_step_afterwards_is_the_uninterrupted_one(name: str, quiet_run: QuietRun) -> None:
    """Warm-up, cosine, the coefficient of the KL that moves by itself, the baseline, the critic, the rows."""
    known = quiet_run(name)
    run = known.folder / "resumed"
    ended = known.attempt(run, strikes={known.save_of(3).stop: "SIGKILL"}).finish()
    assert ended.killed
    whole, rest = _lines(known.ended.said), _lines(_continued(known, run))
    assert list(rest) == [f"{step}/{STEPS}" for step in range(4, STEPS + 1)]
    assert rest == {step: whole[step] for step in rest}
    with RunReader(run) as reader, RunReader(known.run) as before:
        ours, theirs = reader.metrics(), before.metrics()
    updates = {"ppo": 4, "reinforce": 1}[name]
    schedule = Optimization(learning_rate=1e-3, warmup_steps=2, schedule="cosine")
    factors = [schedule.factor(u, STEPS * updates) for u in range(3 * updates, 4 * updates)]
    assert ours["learning_rate"][1][3] == pytest.approx(1e-3 * sum(factors) / updates, rel=1e-9)
    states = [read_json(known.run / "state" / f"{PREFIX}{step}" / "state.json")["state"] for step in (4, 5)]
    moving = {"ppo": "kl_coefficient", "reinforce": "mean"}[name]
    assert states[0][moving] != states[1][moving], "it moves"
    if name == "ppo":
        assert ours["kl_coefficient"][1].tolist() == theirs["kl_coefficient"][1].tolist()


@pytest.mark.fault("R9")
def test_a_reward_that_cannot_be_repeated_is_said(base: Path, tmp_path: Path) -> None:
    """Such a run may be continued, but is not promised to be the one that it would have been."""
    (tmp_path / "dice.py").write_text(
        "import random\n\n\ndef dice(completions, **columns):\n    return [random.random() for _ in completions]\n"
    )
    path = CASES["grpo"].recipe(base, tmp_path)
    done = cli("train", path, f"rewards=['{tmp_path}/dice.py:dice']", "training.steps=1")
    assert done.code == 0, done.err
    words = "reward 'dice' gives the same completions different scores when asked twice"
    with RunReader(tmp_path / "grpo") as reader:
        assert any(words in event.message for event in reader.events() if event.level == "warning")
    assert words in (done.out + done.err).replace("\n", " ")
