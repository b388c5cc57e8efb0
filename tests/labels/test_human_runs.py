"""Runs that wait for people: what they say is what is learnt from, and whatever stops the run changes nothing."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from gro.errors import Interrupted
from gro.jobs.interrupts import Interrupts
from gro.labels.items import Item
from gro.labels.store import Conflict, Store
from gro.raters.human import RATINGS
from gro.runs import RunReader
from gro.runs.progress import Progress
from jobs_on_sums import MODEL, cli, recipe, write_data
from labels.people import Person, best, labels, number, scores, waiting
from several_ranks import Ranks
from torture.attempts import Attempt, Ended, preload
from torture.compare import differences
from torture.trials import without_pictures

STEPS, PROMPTS = 4, 3
BANDIT = {"algorithm": {"name": "reinforce"}, "rewards": ["human"], "group_size": 1}
"""Algorithm 1 of bandit feedback: one answer to a prompt, and what a user says of it."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums."""
    preload()
    folder = tmp_path_factory.mktemp("people")
    write_data(folder)
    return folder


def written(base: Path, name: str, **keys: Any) -> Path:
    """A recipe of a run in which people are asked."""
    common = {
        "model": MODEL,
        "online": {"path": str(base / "sums.jsonl")},
        "sampling": {"max_new_tokens": 3},
        "prompts_per_step": PROMPTS,
        "optimizer": {"learning_rate": 1e-2},
        "training": {"steps": STEPS, "resume_every": 1},
    }
    return recipe(base / f"{name}.yaml", **(common | BANDIT | keys))


_begun: list[Attempt] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """A run that waits for people would wait for ever where its test has failed."""
    yield
    for attempt in _begun:
        attempt.kill()
    _begun.clear()


def begin(path: Path, run: Path, *overrides: str) -> Attempt:
    """`gro train` in a process of its own."""
    command = ["train", str(path), f"run={run}", *overrides]
    _begun.append(Attempt(command, run.parent, run.with_suffix(".log"), before=without_pictures))
    return _begun[-1]


def until(attempt: Attempt, true: Callable[[], bool], *people: Person) -> bool:
    """Lets these people answer until something is true; False where the run ended before."""
    while not attempt.over():
        if true():
            return True
        said = [person.answer() for person in people]
        if not any(said):
            time.sleep(0.01)
    return False


def finish(attempt: Attempt, *people: Person) -> Ended:
    """Lets these people answer until the run ends."""
    until(attempt, lambda: False, *people)
    return attempt.finish()


def undisturbed(path: Path, run: Path, *people: Person) -> Path:
    ended = finish(begin(path, run), *people)
    assert ended.code == 0, ended.said
    return run


def rollouts(run: Path) -> list[tuple[str, str, float | None]]:
    """Prompt, completion and reward of every sample, in order."""
    with RunReader(run) as reader:
        found = [record for step in reader.rollout_steps() for record in reader.rollouts(step)]
    return [(record.prompt, record.completion, record.reward) for record in found]


# --- what is learnt from ---------------------------------------------------------------------------------------------


def test_bandit_feedback_is_what_is_learnt_from(base):
    person = Person(base / "bandit", scores)
    run = undisturbed(written(base, "of-bandit"), base / "bandit", person)
    found = rollouts(run)
    assert len(found) == STEPS * PROMPTS
    assert [reward for *_, reward in found] == [number(text, 5) / 4 for _, text, _ in found]
    assert {item for item, _ in labels(run)} == {Item(prompt, [text]).id for prompt, text, _ in found}
    assert len({reward for *_, reward in found}) > 1
    said = run.with_suffix(".log").read_text()
    assert said.count(f"waiting for {PROMPTS} ratings: gro label bandit") >= 1
    assert "people are asked when the run waits for them" in said
    with RunReader(run) as reader:
        assert reader.metrics()["rewards/human/mean"][1].tolist() == pytest.approx(
            [fmean(r or 0.0 for *_, r in found[i : i + PROMPTS]) for i in range(0, len(found), PROMPTS)]
        )


def test_the_best_of_a_group(base):
    """With a group shown at once; equal answers share, and where all are equal nobody is asked."""
    keys = {"algorithm": "grpo", "rewards": [{"reward": "human", "kind": "best"}], "group_size": 4}
    run = undisturbed(written(base, "of-best", **keys), base / "best", Person(base / "best", best))
    found = rollouts(run)
    groups = [found[i : i + 4] for i in range(0, len(found), 4)]
    assert len(groups) == STEPS * PROMPTS
    for group in groups:
        texts = [text for _, text, _ in group]
        winner = max(texts, key=lambda text: number(text, 1 << 30))
        expected = [float(text == winner) for text in texts] if len(set(texts)) > 1 else [0.5] * 4
        assert [reward for *_, reward in group] == expected


def test_what_everybody_skips_is_masked_and_no_failure(base):
    """Also a step of which all is skipped; beside another reward, which then counts for nothing either."""

    def rule(texts: list[str]) -> Any:
        return {"skip": True} if len(person.said) < PROMPTS + 1 else scores(texts)

    person = Person(base / "skipping", rule)
    rewards = ["human", {"reward": "length", "least": 1, "unit": "characters"}]
    keys = {"rewards": rewards, "reward_failure_stop_share": 0.0, "algorithm": "rloo", "group_size": 2}
    run = undisturbed(written(base, "of-skipping", **keys), base / "skipping", person)
    found = rollouts(run)
    skipped = {item for item, answer in labels(run) if "skip" in answer}
    assert len(skipped) == PROMPTS + 1
    for prompt, text, reward in found:
        expected = None if Item(prompt, [text]).id in skipped else number(text, 5) / 4 - (not text)
        assert reward == expected, (prompt, text)
    assert not (run / "failures").exists()
    with RunReader(run) as reader:
        assert reader.metrics()["rewards/failed"][1].tolist() == [0] * STEPS
        assert not any("failed" in event.message for event in reader.events())


# --- stopped and continued -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(base: Path) -> tuple[Path, Path]:
    """The recipe and a run of it that nobody disturbed."""
    path = written(base, "of-quiet")
    return path, undisturbed(path, base / "quiet", Person(base / "quiet"))


def same(quiet: tuple[Path, Path], run: Path) -> None:
    assert differences(quiet[1], run) == []
    assert (run / "model" / "model.safetensors").read_bytes() == (quiet[1] / "model/model.safetensors").read_bytes()


@pytest.mark.fault("P1", "P3")
def test_stopped_in_every_way_while_it_waits(base, quiet):
    """Killed with a part of the labels given, asked to stop, killed with all given; labels come while it is dead."""
    path, _ = quiet
    run = base / "disturbed"
    anna, ben = Person(run), Person(run, name="ben")
    attempt = begin(path, run)
    assert until(attempt, lambda: waiting(run) == PROMPTS)
    assert anna.answer()
    assert attempt.kill().killed

    attempt = begin(path, run)
    assert until(attempt, lambda: len(labels(run)) > PROMPTS, anna)  # the second step has begun
    os.kill(attempt.pid, signal.SIGINT)
    ended = attempt.finish()
    assert ended.code == 75, ended.said
    assert "the same command continues after step 1" in ended.said.splitlines()[-1]

    while ben.answer():  # with no run alive
        pass
    assert begin(path, run, "training.steps=4").kill().killed  # at once
    attempt = begin(path, run)
    assert until(attempt, lambda: len(labels(run)) >= 2 * PROMPTS + 1, ben)
    os.kill(attempt.pid, signal.SIGTERM)
    os.kill(attempt.pid, signal.SIGTERM)
    assert attempt.finish().code in (75, -signal.SIGTERM)  # the second may find it on its way out

    ended = finish(begin(path, run), anna, ben)
    assert ended.code == 0, ended.said
    same(quiet, run)
    assert len(labels(run)) == len({item for item, _ in labels(run)})
    assert {item for item, _ in labels(run)} == {item for item, _ in labels(quiet[1])}


@pytest.mark.fault("P3")
def test_a_state_is_written_where_people_were_waited_for(base, quiet):
    """Without a word of the recipe: or Ctrl-C, which ends the next waiting, would throw the step away."""
    run = base / "patient"
    attempt = begin(quiet[0], run, "training.resume_every=null")
    assert until(attempt, lambda: len(labels(run)) > PROMPTS, Person(run))  # the second step has begun
    os.kill(attempt.pid, signal.SIGINT)
    ended = attempt.finish()
    assert ended.code == 75, ended.said
    assert ended.said.splitlines()[-1].endswith("the same command continues after step 1")
    with RunReader(run) as reader:
        times = reader.metrics()
    assert times["waiting_time"][0].tolist() == [1]
    assert times["step_time"][1] > times["rollout_time"][1] > 0


@pytest.mark.fault("P1")
def test_from_a_state_before_what_was_used(base, quiet):
    """Steps are done again from the labels that they were done with, which nobody can take back meanwhile."""
    path, _ = quiet
    run = base / "again"
    person = Person(run)
    attempt = begin(path, run, "training.resume_every=9")
    assert until(attempt, lambda: len(labels(run)) > 2 * PROMPTS, person)  # two steps done, and no state written
    assert attempt.kill().killed
    assert not list((run / "state").glob("step-*"))
    store = Store(run / RATINGS, "score5")
    (used,) = store.read("SELECT min(id) FROM labels")[0]
    with pytest.raises(Conflict, match="the run has learnt from this label"):
        store.undo("anna", used)
    last = store.last("anna")
    assert last is not None
    store.undo("anna", last)  # of the third step, which has not been done
    store.close()
    ended = finish(begin(path, run), person, Person(run, name="ben"))
    assert ended.code == 0, ended.said
    same(quiet, run)


@pytest.mark.slow
@pytest.mark.fault("P1")
@pytest.mark.parametrize("seed", range(6))
def test_killed_anywhere(base, quiet, seed):
    """At random moments of processor time, with people answering all the while."""
    path, _ = quiet
    run, noise = base / f"random-{seed}", random.Random(seed)
    person = Person(run)
    for _ in range(4):
        attempt, limit = begin(path, run), noise.uniform(0.2, 4)
        if until(attempt, lambda attempt=attempt, limit=limit: attempt.cpu() > limit, person):
            attempt.kill()
        attempt.finish()
    ended = finish(begin(path, run), person)
    assert ended.code == 0, ended.said
    same(quiet, run)


# --- simulated people ------------------------------------------------------------------------------------------------


def simulated(**settings: Any) -> dict[str, Any]:
    """A recipe's keys."""
    inner = {"reward": "regex", "pattern": "^[0-9]"}
    return {"rewards": [{"reward": "human", "simulated": {"reward": inner} | settings}]}


@pytest.mark.fault("P1")
def test_simulated_people_say_the_same_after_a_kill(base):
    noise = {"spread": 0.4, "flip": 0.2, "skip": 0.1, "bias_spread": 0.1}
    path = written(base, "of-simulated", **simulated(**noise))
    quiet = path, undisturbed(path, base / "simulated")
    run = base / "simulated-killed"
    attempt = begin(path, run)
    assert until(attempt, lambda: len(labels(run)) > PROMPTS)
    attempt.kill()
    assert finish(begin(path, run)).code == 0
    same(quiet, run)
    assert len({reward for *_, reward in rollouts(run)}) > 2


@pytest.mark.slow
def test_bandit_feedback_of_simulated_people_teaches(base):
    """REINFORCE from coarse, noisy scores of single answers: the model learns to begin with a digit."""
    keys = simulated(spread=0.2, flip=0.1) | {
        "prompts_per_step": 16,
        "training": {"steps": 60, "resume_every": 1000},
        "optimizer": {"learning_rate": 2e-2},
    }
    done = cli("train", written(base, "of-learning", **keys))
    assert done.code == 0, done.err
    texts = [text for _, text, _ in rollouts(base / "of-learning")]
    begins = [text[:1].isdigit() for text in texts]
    first, last = begins[: len(begins) // 6], begins[-len(begins) // 6 :]
    assert sum(last) / len(last) > sum(first) / len(first) + 0.4


# --- several processes -----------------------------------------------------------------------------------------------


def together(path: Path, run: Path, person: Person, then: Callable[[Ranks], object] | None = None) -> list[Ended]:
    """`gro train` in two processes; `then`: what is done where it waits in the second step, after the first label."""
    with Ranks(2, ["train", str(path), f"run={run}"], run.parent, name=run.name) as ranks:

        def begun() -> bool:
            if then is None or len(labels(run)) <= PROMPTS:
                person.answer()
                return False
            return "waiting for" in ranks.said()

        if ranks.wait(begun) and then is not None:
            then(ranks)
        return [ended for ended in ranks.finish() if ended is not None]


@pytest.mark.slow
@pytest.mark.fault("P3")
def test_two_processes_ask_once_and_stop_together(base):
    path = written(base, "of-two", training={"steps": 2})
    alone, run, stopped = base / "alone", base / "two", base / "two-stopped"
    undisturbed(path, alone, Person(alone))
    assert [ended.code for ended in together(path, run, Person(run))] == [0, 0]
    assert rollouts(run)[:PROMPTS] == rollouts(alone)[:PROMPTS]
    items = [item for item, _ in labels(run)]
    assert len(items) == len(set(items))
    assert set(items[:PROMPTS]) == {item for item, _ in labels(alone)[:PROMPTS]}

    person = Person(stopped)
    for asked, how in ((1, signal.SIGTERM), (0, signal.SIGINT)):
        for ended in together(path, stopped, person, partial(Ranks.signal, rank=asked, number=how)):
            assert ended.code == 75, ended.said
            assert ended.said.splitlines()[-1].endswith("is not finished; the same command continues after step 1")
    assert [ended.code for ended in together(path, stopped, person)] == [0, 0]
    assert differences(run, stopped) == []


# --- what somebody sees who looks on ----------------------------------------------------------------------------------


def test_one_line_for_each_wait_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(2, stream=stream) as show:
        for left in (2, 1):
            show.waiting(f"waiting for {left} ratings: gro label run")
        show.waiting("")
        show.step(1, {})
        show.waiting("waiting for 3 ratings: gro label run")
    lines = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert lines == ["waiting for 2 ratings: gro label run", "step 1/2", "waiting for 3 ratings: gro label run"]


@pytest.mark.fault("P3")
def test_a_signal_while_it_waits_stops_at_once_and_one_before_it_too():
    with Interrupts() as interrupts, interrupts.patient():
        with pytest.raises(Interrupted, match="SIGTERM"), interrupts.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked is None
        signal.raise_signal(signal.SIGTERM)  # patient again
        assert interrupts.asked == "SIGTERM"
        with pytest.raises(Interrupted, match="SIGTERM"), interrupts.at_once():
            raise AssertionError("it was asked to stop before")


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rewards": [{"reward": "human", "kind": "pairs"}], "group_size": 4}, "group_size: 4, but pairs shows 2"),
        ({"rewards": [{"reward": "human", "together": 3}], "group_size": 2}, "rewards.0.together: 3, but group_size"),
        ({"rewards": ["human", "human"]}, "rewards: 2 of them are human, and a run has one file of ratings"),
        ({"rewards": [{"reward": "human", "simulated": {"reward": "human"}}]}, "simulated from a reward that is none"),
        ({"rewards": [{"reward": "human", "simulated": {"reward": "mathz"}}]}, "unknown reward 'mathz', did you mean"),
        ({"algorithm": "remax", "rewards": [{"reward": "human", "kind": "best"}], "group_size": 2}, "a greedy one"),
        ({"eval": {"data": {"path": "sums.jsonl"}}}, "eval.rewards: none given, and people are asked about training"),
        ({"eval": {"data": {"path": "sums.jsonl"}, "rewards": ["human"]}}, "eval.rewards: human, but people"),
    ],
)
def test_recipes_that_are_refused(base, keys, said, monkeypatch):
    monkeypatch.chdir(base)
    for command in ("check", "train"):
        done = cli(command, written(base, "of-refused", **keys))
        assert done.code == 2
        assert said in done.err


def test_other_commands_ask_nobody(base, quiet):
    path, run = quiet
    checked = cli("check", path, f"run={base / 'never'}")
    assert checked.code == 0, checked.err
    assert "rewards: human: people are asked when the run waits for them" in checked.out.replace("\n", " ")
    generated = cli("generate", run, "--prompt", "1+1=", "--best-of", "2", "--reward", "human")
    assert generated.code == 2
    assert "people are asked while gro train goes on" in generated.err
    exported = cli("label-export", run, "--as", "rewarded")
    assert exported.code == 0
    assert exported.out.count("\n") == len(labels(run))
    assert not (base / "never").exists()
