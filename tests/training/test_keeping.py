"""When the state of a run is written, by a clock that is moved by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gro.training.checkpoint import Keeper
from gro.training.processes import ALONE


class Times:
    """A run that waits for people, and whose states take ten seconds to write."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.now, self.waited, self.folder = 1000.0, 50.0, folder
        carried: Any = SimpleNamespace(
            shard=1, processes=ALONE, recorder=SimpleNamespace(ended=None), check=lambda step: None, save=self.save
        )
        self.keep = Keeper(folder, carried, waited=lambda: self.waited, clock=lambda: self.now, **how)

    def save(self, folder: Path, step: int, state: Any) -> None:
        (folder / "state.json").write_text("{}")
        self.now += 10

    def step(self, number: int, *, worked: float = 1.0, waited: float = 0.0) -> bool:
        """Whether a state was written after a step that took so long."""
        self.now, self.waited = self.now + worked + waited, self.waited + waited
        self.keep(number, {})
        return (self.folder / "state" / f"step-{number}").is_dir()


def test_a_state_is_written_where_people_were_waited_for_longer_than_it_takes(tmp_path: Path) -> None:
    times = Times(tmp_path)
    assert not times.step(1)
    assert times.step(2, waited=0.5)  # what it takes is not known yet
    assert not times.step(3, waited=6)
    assert times.step(4, waited=5)  # 11 since the last
    assert not times.step(5)


def test_a_state_is_written_every_ten_minutes_or_as_the_recipe_says(tmp_path: Path) -> None:
    times = Times(tmp_path / "minutes")
    assert [times.step(number, worked=250) for number in range(1, 8)] == [False, False, True, False, False, True, False]
    times = Times(tmp_path / "steps", every=2)
    assert [times.step(number, worked=900, waited=900) for number in range(1, 5)] == [False, True, False, True]
