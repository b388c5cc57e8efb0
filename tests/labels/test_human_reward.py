"""What people say as a reward, by hand: every kind, ties, equal texts, skips; and what is used stays as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from gro.errors import GroError, Interrupted
from gro.labels.answers import KINDS, rewards, worths
from gro.labels.export import labelled
from gro.labels.items import Item, digest
from gro.labels.store import Conflict, Sent, Store
from gro.labels.used import ask, missing, use
from gro.raters.human import RATINGS, Asking, Human, pieces
from gro.raters.spec import HumanSettings, problems
from gro.rewards.batch import Trouble
from gro.rewards.functions import TrainerState
from gro.rewards.rewards import Rewards
from gro.types import Completion, Group, Prompt
from labels.people import spoken

SKIP = {"skip": True}


def columns(*groups: list[str], chat: bool = False) -> dict[str, list[Any]]:
    """What a reward sees of these groups."""
    rows = [(g, text) for g, texts in enumerate(groups) for text in texts]
    return {
        "prompts": [f"prompt {g}" if not chat else [{"role": "user", "content": f"prompt {g}"}] for g, _ in rows],
        "completions": [[{"role": "assistant", "content": text}] if chat else text for _, text in rows],
        "completion_ids": [[1] for _ in rows],
        "prompt_ids": [[g] for g, _ in rows],
        "group_index": [g for g, _ in rows],
    }


class Room:
    """A reward that asks, and people in a thread who answer."""

    def __init__(self, folder: Path, group_size: int, **settings: Any) -> None:
        self.path, self.settings = folder / RATINGS, HumanSettings.parse(settings)
        self.said: list[str] = []
        self.asking = Asking(self.path, group_size, 0, how="gro label run", says=self.said.append)
        self.human = Human(self.settings, self.asking)

    def store(self) -> Store:
        return Store(self.path, self.settings.kind, per_item=self.settings.per_item)

    def answer(self, who: str, answers: dict[str, Any]) -> None:
        """All that there is for this person; `answers`: by the texts in alphabetical order, joined; what is right for
        that order."""
        store = self.store()
        while (offered := store.offer(who)) is not None:
            texts = [spoken(text) for text in offered.completions]
            said: Any = answers["|".join(sorted(texts))]
            order = sorted(texts)
            if "choice" in said and said["choice"] != "tie":
                said = {"choice": texts.index(order[said["choice"]])}
            for key in ("scores", "ranks"):
                if key in said:
                    said = {key: [said[key][order.index(text)] for text in texts]}
            store.label(Sent(who, offered.item, offered.lease, f"{who} {offered.item}", said))
        store.close()

    def score(self, asked: dict[str, list[Any]], *people: dict[str, Any]) -> list[Any]:
        """The scores, after these people have said what they have to say; a Trouble by its kind."""
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(self.human.score, asked, TrainerState(global_step=1))
            for i, answers in enumerate(people):
                while not self.said and not asking.done():
                    wait([asking], 0.01)
                self.answer(f"person {i}", answers)
            try:
                batch = asking.result(60)
            finally:
                self.human.stop_waiting()
        scores = [batch.scores[row] for row in range(len(asked["completions"]))]
        return [score.kind if isinstance(score, Trouble) else score for score in scores]


# --- what an answer is worth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("score5", {"scores": [1, 2, 3, 4, 5]}, [0, 0.25, 0.5, 0.75, 1]),
        ("score10", {"scores": [1, 4, 10]}, [0, 1 / 3, 1]),
        ("pairs", {"choice": 0}, [1, 0]),
        ("pairs", {"choice": 1}, [0, 1]),
        ("pairs", {"choice": "tie"}, [0.5, 0.5]),
        ("best", {"choice": 2}, [0, 0, 1, 0]),
        ("ranking", {"ranks": [3, 1, 2]}, [0, 1, 0.5]),
        ("ranking", {"ranks": [1, 1]}, [0.5, 0.5]),
        ("ranking", {"ranks": [1, 1, 3, 3]}, [5 / 6, 5 / 6, 1 / 6, 1 / 6]),
        ("ranking", {"ranks": [1, 2, 2, 2, 5]}, [1, 0.5, 0.5, 0.5, 0]),
    ],
)
def test_answers_between_0_and_1(kind, answer, expected):
    n = len(expected)
    assert rewards(KINDS[kind], worths(KINDS[kind], answer, n)) == pytest.approx(expected)


def test_scores_of_single_answers(tmp_path):
    room = Room(tmp_path, 1)
    assert room.score(
        columns(["a"], ["b"], [""]), {"a": {"scores": [5]}, "b": {"scores": [2]}, "": {"scores": [1]}}
    ) == [1.0, 0.25, 0.0]
    assert (room.said[0], room.said[-1]) == ("waiting for 3 ratings: gro label run", "")


def test_scores_in_messages_and_several_together(tmp_path):
    room = Room(tmp_path, 3, kind="score10", together=2)
    said = {"a|b": {"scores": [10, 1]}, "c": {"scores": [4]}}
    assert room.score(columns(["b", "a", "c"], chat=True), said) == pytest.approx([0, 1, 1 / 3])
    assert room.store().read("SELECT count(*) FROM items") == [(2,)]


def test_pairs_of_four_are_two_pairs(tmp_path):
    room = Room(tmp_path, 4, kind="pairs", together=2)
    said = {"a|b": {"choice": 0}, "c|d": {"choice": "tie"}}
    assert room.score(columns(["b", "a", "c", "d"]), said) == [0, 1, 0.5, 0.5]


def test_equal_texts_are_shown_once_and_share(tmp_path):
    room = Room(tmp_path, 4, kind="ranking")
    asked = columns(["a", "b", "a", "c"], ["x", "x", "x", "x"], ["y", "y", "z", "z"])
    said = {"a|b|c": {"ranks": [2, 1, 3]}, "y|z": {"ranks": [1, 1]}}
    assert room.score(asked, said) == [0.5, 1, 0.5, 0, *[0.5] * 4, *[0.5] * 4]
    texts = [sorted(item.completions) for item in labelled(room.store())]
    assert texts == [["a", "b", "c"], ["y", "z"]]


def test_nobody_is_asked_where_there_is_nothing_to_compare(tmp_path):
    room = Room(tmp_path, 3, kind="best")
    assert room.score(columns(["x", "x", "x"])) == [0.5] * 3
    assert not room.path.exists()


def test_the_mean_of_several_people(tmp_path):
    room = Room(tmp_path, 3, kind="best", per_item=3)
    said = [{"a|b|c": {"choice": i}} for i in (0, 0, 2)]
    assert room.score(columns(["c", "a", "b"]), *said) == pytest.approx([1 / 3, 2 / 3, 0])


def test_a_skip_is_no_reward_and_no_zero(tmp_path):
    room = Room(tmp_path, 2, per_item=2)
    said = [{"a": SKIP, "b": SKIP}, {"a": SKIP, "b": {"scores": [4]}}]
    assert room.score(columns(["a", "b"]), *said) == ["skipped", 0.75]


def test_the_same_answer_is_never_asked_about_twice(tmp_path):
    room = Room(tmp_path, 1)
    assert room.score(columns(["a"], ["b"]), {"a": {"scores": [5]}, "b": {"scores": [3]}}) == [1, 0.5]
    waited = room.asking.waited
    assert waited > 0
    assert room.score(columns(["a"])) == [1]
    assert room.asking.waited == waited
    again = Room(tmp_path, 1)
    assert again.score(columns(["a"], ["b"])) == [1, 0.5]
    assert again.said == []
    assert again.asking.waited == 0


def test_pieces_never_mix_groups():
    asked = columns(["a", "b", "c"], ["a", "b"]) | {"prompts": ["same"] * 5}
    found = [(piece.item.completions, list(piece.rows.values())) for piece in pieces(asked, 2, leave_out={1: None})]
    assert found == [(["a", "c"], [[0], [2]]), (["a", "b"], [[3], [4]])]


# --- what is used ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two items of which the first has a label, for two people each."""
    store = Store(tmp_path / RATINGS, "score5", per_item=2)
    store.add([Item("p", ["a"]), Item("p", ["b"])])
    return store


def test_what_is_asked_no_more_is_taken_away(store):
    """Not what somebody has answered, nor what was used."""
    offered = store.offer("carl")
    assert offered is not None
    assert offered.item == Item("p", ["a"]).id
    ask(store, [Item("p", ["b"]), Item("p", ["c"])])
    assert store.read("SELECT completions FROM items ORDER BY place") == [('["b"]',), ('["c"]',)]
    with pytest.raises(Conflict, match="there is no such item"):
        store.label(Sent("carl", offered.item, offered.lease, "carl's own", SKIP))
    for _ in range(2):
        give(store, "anna", SKIP)
    give(store, "ben", SKIP)
    assert use(store, [Item("p", ["b"]).id]) is not None
    ask(store, [Item("p", ["d"])])
    assert store.read("SELECT completions FROM items ORDER BY place") == [('["b"]',), ('["c"]',), ('["d"]',)]


def give(store: Store, who: str, answer: Any) -> tuple[str, int]:
    offered = store.offer(who)
    assert offered is not None
    number = store.label(Sent(who, offered.item, offered.lease, f"{who} {offered.item}", answer))["label"]
    return offered.item, number


def test_only_what_all_have_answered_is_used(store):
    ids = [Item("p", ["a"]).id, Item("p", ["b"]).id]
    assert missing(store, ids) == 4
    give(store, "anna", {"scores": [1]})
    give(store, "ben", SKIP)
    give(store, "anna", {"scores": [3]})
    assert (missing(store, ids), missing(store, ids[:1])) == (1, 0)
    assert use(store, ids) is None
    assert store.last("anna") is not None
    give(store, "ben", {"scores": [2]})
    sha = digest("a"), digest("b")
    assert use(store, ids) == {
        ids[0]: [([sha[0]], {"scores": [1]})],
        ids[1]: [([sha[1]], {"scores": [3]}), ([sha[1]], {"scores": [2]})],
    }


@pytest.mark.fault("W9")
def test_what_was_used_cannot_be_taken_back(store):
    item, number = give(store, "anna", {"scores": [1]})
    store.undo("anna", number)
    offered = store.offer("anna")
    assert offered is not None
    again = store.label(Sent("anna", item, offered.lease, "second key", {"scores": [5]}))["label"]
    give(store, "ben", SKIP)
    before = use(store, [item])
    assert before is not None
    assert [answer for _, answer in before[item]] == [{"scores": [5]}]
    with pytest.raises(Conflict, match="the run has learnt from this label already, so it stays"):
        store.undo("anna", again)
    assert store.last("anna") is None
    assert store.last("ben") is None
    assert use(store, [item]) == before


@pytest.mark.fault("W9")
def test_a_label_that_comes_late_is_not_saved(store):
    item, _ = give(store, "anna", SKIP)
    late = store.offer("carl")
    assert late is not None
    assert give(store, "ben", SKIP)[0] == late.item == item
    assert use(store, [item]) == {item: []}
    with pytest.raises(Conflict, match="the run has gone on without this answer"):
        store.label(Sent("carl", item, late.lease, "carl's own", {"scores": [5]}))
    offered = store.offer("carl")
    assert offered is not None
    assert offered.item != item
    assert use(store, [item]) == {item: []}


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_the_waiting_can_be_ended(tmp_path):
    room = Room(tmp_path, 1)
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(room.human.score, columns(["a"]), TrainerState(global_step=1))
        while not room.said:
            wait([asking], 0.01)
        room.human.stop_waiting()
        with pytest.raises(Interrupted):
            asking.result(60)


class Broken:
    """A reward that fails as a whole."""

    name = "broken"

    def score(self, columns: Any, state: TrainerState) -> Any:
        raise GroError("the judge is not at home")

    def close(self) -> None: ...


def test_people_are_not_waited_for_where_another_reward_fails(tmp_path):
    group = Group(Prompt((1,)), (Completion((2,), (True,)),))
    room = Room(tmp_path, 1)
    inside = {"human": lambda params: room.human, "broken": lambda params: Broken()}
    with Rewards(["human", "broken"], str, inside=inside) as rewards, pytest.raises(GroError, match="not at home"):
        rewards.score([group], step=1)
    assert room.human._stopped.is_set()


def test_before_the_run_listens_nobody_is_asked(tmp_path):
    human = Human(HumanSettings(), Asking(tmp_path / RATINGS, 1, 0))
    assert human.score(columns(["a", "b"]), TrainerState(global_step=0)).scores == {0: None, 1: None}
    assert not (tmp_path / RATINGS).exists()


def test_a_file_of_another_kind_is_refused(tmp_path):
    Store(tmp_path / RATINGS, "pairs").close()
    with pytest.raises(GroError, match="holds labels of the kind 'pairs', not 'score5'"):
        Room(tmp_path, 1).score(columns(["a"]))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "group_size", "expected"),
    [
        ({}, 8, 1),
        ({"together": 4}, 8, 4),
        ({"kind": "pairs"}, 2, 2),
        ({"kind": "pairs", "together": 2}, 6, 2),
        ({"kind": "ranking"}, 9, 9),
        ({"kind": "best", "together": 3}, 6, 3),
        ({"kind": "pairs"}, 4, "group_size: 4, but pairs shows 2 completions at once; together says how many"),
        ({"kind": "pairs"}, 1, "group_size: 1, but pairs shows 2 completions at once"),
        ({"kind": "ranking"}, 12, "group_size: 12, but ranking shows 2 to 9 completions at once"),
        ({"kind": "best", "together": 4}, 6, "together: 4 does not divide group_size 6"),
        ({"together": 10}, 16, "together: 10, but score5 shows 1 to 9 completions at once"),
        ({"together": 4}, 2, "together: 4, but group_size is 2"),
    ],
)
def test_how_many_are_shown(settings, group_size, expected):
    parsed = HumanSettings.parse(settings)
    if isinstance(expected, int):
        assert parsed.shown(group_size) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            parsed.shown(group_size)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "stars"}, "rewards.0.kind: 'stars' is no 'score5'"),
        ({"knd": "pairs"}, "rewards.0.knd: human has no such parameter, did you mean 'kind'?"),
        ({"per_item": 0}, "rewards.0.per_item: 0 is no whole number ≥ 1"),
        ({"simulated": True}, "rewards.0.simulated: True is no keys and values or null"),
        ({"simulated": {}}, "rewards.0.simulated.reward: missing"),
        ({"simulated": {"reward": "maths", "spreed": 1}}, "simulated has no such parameter, did you mean 'spread'?"),
        ({"simulated": {"reward": "maths", "flip": 1.5}}, "rewards.0.simulated.flip: 1.5 is no finite number"),
        ({"simulated": {"reward": "maths", "low": 1.0}}, "low is 1 and high 1; low must be below high"),
        ({"simulated": {"reward": 3}}, "rewards.0.simulated: an item of rewards"),
        ({"per_item": 4, "simulated": {"reward": "maths"}}, "rewards.0.per_item: 4, but simulated.raters is 3"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    (line,) = problems(settings, "rewards.0")
    assert said in line
