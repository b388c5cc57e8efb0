"""`gro overopt`, as a user runs it, on a recipe of seconds; and how it labels pairs."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from gro.jobs.pressure import numbers
from gro.jobs.proxies import Unit, first_wins, labelled
from gro.policy.reward_model import RewardModel
from gro.runs import RunReader
from gro.types import Completion, Group, Prompt
from jobs_on_sums import cli, recipe, sft, write_data

GOLD = """
def gold(completions, **_):
    return [float(sum(c in "02468" for c in text)) - 0.5 * (len(text) - 2) ** 2 for text in completions]

def fails(completions, **_):
    raise RuntimeError("no")
"""


def study(folder: Path, name: str = "study", **keys: Any) -> Path:
    """Two proxies of a few hundred parameters, against which the model of `sft` is trained for some steps."""
    rows = {"path": str(folder / "sums.jsonl"), "kind": "prompt_only"}
    settings = {
        "rewards": [f"{folder / 'gold.py'}:gold"],
        "overopt": {"sizes": [{"hidden_size": 8}, {}], "pairs": [24], "members": 2, "best_of": 8, "epochs": 2},
        "algorithm": {"name": "rloo", "kl": 0.0},
        "online": rows | {"stop": 80},
        "eval": {"data": rows | {"start": 80}, "limit": 6, "samples": 2},
        "group_size": 4,
        "sampling": {"max_new_tokens": 4},
        "training": {"steps": 9, "eval_every": 2},
        "optimizer": {"learning_rate": 3e-3},
    }
    return recipe(folder / f"{name}.yaml", model=str(folder / "sft"), **(settings | keys))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished study, and what it said."""
    folder = tmp_path_factory.mktemp("overopt")
    write_data(folder)
    (folder / "gold.py").write_text(GOLD)
    assert cli("train", sft(folder, training={"steps": 6})).code == 0
    ran = cli("overopt", study(folder))
    assert ran.code == 0, ran.err
    return folder, ran.out


def test_what_a_study_leaves(done: tuple[Path, str]):
    folder, said = done
    found = json.loads((folder / "study" / "overopt.json").read_text())
    assert [(p["size"], p["pairs"]) for p in found["proxies"]] == [("8×1", 24), ("policy", 24)]
    small, policy = (p["parameters"] for p in found["proxies"])
    assert small < policy
    for proxy in found["proxies"]:
        assert [p["at"] for p in proxy["best_of_n"]["points"]] == [1, 2, 3, 4, 6, 8]
        assert proxy["best_of_n"]["points"][1]["kl"] == pytest.approx(math.log(2) - 0.5)
        assert [p["at"] for p in proxy["rl"]["points"]] == [0, 2, 4, 6, 8], "whole intervals only"
        for method in ("best_of_n", "rl"):
            start, *rest = proxy[method]["points"]
            assert (start["gold"], start["proxy"], start["d"]) == (0.0, 0.0, 0.0)
            assert all(math.isfinite(value) for p in rest for value in p.values())
        proxies = [p["proxy"] for p in proxy["best_of_n"]["points"]]
        assert proxies == sorted(proxies), "more choice is never worse by the one who chooses"
        assert len(proxy["rl"]["disagreement"]) == 5
        assert set(proxy["rl"]["stops"]) == {"gold", "disagreement"}
        assert [len(a) for a in proxy["rl"]["answers"].values()] == [3, 3, 3]
    for picture in ("best-of-n", "rl"):
        assert "√KL from the start" in (folder / "study" / f"{picture}.svg").read_text()
    assert "best-of-n: gold = d(α − βd)" in said
    assert "rloo: gold = d(α − β log d)" in said
    assert "early stopping" in said


def test_its_parts_are_ordinary_runs(done: tuple[Path, str]):
    folder, _ = done
    found = json.loads((folder / "study" / "overopt.json").read_text())
    for name in ("8x1-24", "policy-24"):
        with RunReader(folder / "study" / "rl" / name) as run:
            assert run.status == "finished"
            assert run.metrics()["loss"][0].tolist() == list(range(1, 9))
            steps, golds = run.metrics()["eval_gold"]
            assert steps.tolist() == [0, 2, 4, 6, 8]
            proxy = next(p for p in found["proxies"] if f"{p['size']}-24".replace("×", "x") == name)
            assert (golds - golds[0]).tolist() == pytest.approx([p["gold"] for p in proxy["rl"]["points"]], abs=1e-9)
        members = [RewardModel.read(folder / "study" / "proxies" / name / str(m) / "model") for m in range(2)]
        pair = [Group(Prompt((1, 5)), (Completion((7, 2)), Completion((9, 2))))]
        scores = [m.scores(pair, 512).tolist() for m in members]
        assert scores[0] != scores[1], "members are not the same"
    pairs = [json.loads(line) for line in (folder / "study" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 24
    assert set(pairs[0]) == {"prompt", "chosen", "rejected"}
    again = cli("overopt", folder / "study.yaml")
    assert again.code == 2
    assert "finished run" in again.err


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"overopt": None}, "overopt: missing"),
        ({"rewards": []}, "rewards"),
        ({"training": {"steps": 4}}, "training.eval_every: 0"),
        ({"overopt": {"sizes": [{"hidden_sise": 8}], "pairs": [8]}}, "did you mean 'hidden_size'?"),
        ({"overopt": {"sizes": [{"hidden_size": 6, "heads": 2}], "pairs": [8]}}, "an even multiple of heads"),
        ({"overopt": {"sizes": [{}], "pairs": [8, 8]}}, "pairs: give at least one, and each once"),
        ({"overopt": {"sizes": [{}], "pairs": [8], "best_of": 2}}, "best_of: found 2"),
        (
            {"training": {"steps": 4, "eval_every": 2, "stop": {"by": "gold"}}},
            "a study trains to the end, and says where each rule would have stopped",
        ),
    ],
)
def test_recipes_that_are_no_study(done: tuple[Path, str], keys: dict[str, Any], says: str):
    folder, _ = done
    refused = cli("overopt", study(folder, "refused", **keys))
    assert refused.code == 2
    assert says in refused.err
    assert not (folder / "refused").exists()


def test_labels_are_as_noisy_as_asked_for():
    """Bradley–Terry: σ(gap / temperature), the gap in gold's standard deviations."""
    assert first_wins(0.7, 0.5) == pytest.approx(0.8021838885585818)
    assert first_wins(-0.7, 0.5) == pytest.approx(1 - 0.8021838885585818)
    assert [first_wins(gap, 0.0) for gap in (-1.0, 0.0, 1e-9)] == [0.0, 0.5, 1.0]
    assert first_wins(-1e6, 1e-3) == pytest.approx(0.0)
    groups = [Group(Prompt((1,)), (Completion((2,), reward=3.4), Completion((3,), reward=2.0)))] * 4000
    pairs = labelled(groups, Unit(10.0, 2.0), 0.5, seed=3)
    assert {tuple(c.reward for c in g.completions) for g in pairs} == {(1.0, -1.0), (-1.0, 1.0)}
    share = sum(g.completions[0].reward == 1.0 for g in pairs) / 4000
    assert share == pytest.approx(0.8021838885585818, abs=4 * math.sqrt(0.8 * 0.2 / 4000))
    assert labelled(groups[:50], Unit(10.0, 2.0), 0.5, seed=3) == pairs[:50], "fewer pairs are among the more"
    assert labelled(groups, Unit(10.0, 2.0), 0.5, seed=4) != pairs
    assert all(g.completions[0].reward == 1.0 for g in labelled(groups, Unit(10.0, 2.0), 0.0, seed=3))
    unknown = Group(Prompt((1,)), (Completion((2,), reward=None), Completion((3,), reward=2.0)))
    assert labelled([unknown], Unit(0.0, 1.0), 0.0, seed=3) == []


def test_a_unit():
    unit = Unit.of([1.0, 3.0, 5.0])
    assert (unit.mean, unit.std) == (3.0, 2.0)
    assert [unit(v) for v in (3.0, 7.0)] == [0.0, 2.0]
    assert Unit.of([4.0, 4.0]) == Unit(4.0, 1.0)


def test_how_many_samples():
    assert numbers(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)
    assert numbers(4) == (1, 2, 3, 4)


STUDIES = Path(__file__).parents[1] / "recipes" / "studies"


def reviews() -> Any:
    """The module of the small world, which is no part of the library."""
    spec = importlib.util.spec_from_file_location("reviews", STUDIES / "reviews.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reader_of_reviews():
    liked = reviews().gold

    def bounded(x: float, words: int = 5) -> float:
        return 6 * math.tanh((x + 0.5 * math.tanh(words / 10)) / 6)

    # a thing of the place praised, blamed; a thing of another place; with "very"
    assert liked([" the soup was kind ."], ["cafe"]) == pytest.approx([bounded(1.2 + 0.8)])
    assert liked([" the soup was rude ."], ["cafe"]) == pytest.approx([bounded(-0.7 + 0.8)])
    assert liked([" the soup was kind ."], ["hotel"]) == pytest.approx([bounded(1.2 - 0.6)])
    assert liked([" the soup was very kind ."], ["cafe"]) == pytest.approx([bounded(1.3 * 1.2 + 0.8, 6)])
    once, again, gushing = liked(
        [" the soup was kind ." + " the cake was great ." * n for n in (0, 1, 6)], place=["cafe"] * 3
    )
    assert again > once > gushing, "more praise is better, and far too much of it is not"


def test_the_recipes_of_the_small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With their own data and ranges: a start of two steps, and the study checked."""
    monkeypatch.chdir(tmp_path)
    rows = list(reviews().rows())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [row["prompt"] for row in rows]
    assert not set(prompts[:1280]) & set(prompts[1280:])
    (tmp_path / "recipes").symlink_to(STUDIES.parent)
    short = ("training.steps=2", "prompts_per_step=4", "training.eval_every=0", "eval.limit=2")
    trained = cli("train", "recipes/studies/reviews-sft.yaml", *short, "model.create.hidden_size=16")
    assert trained.code == 0, trained.err
    checked = cli("check", "recipes/studies/reviews.yaml")
    assert checked.code == 0, checked.err
    assert "the recipe is sound" in checked.out
