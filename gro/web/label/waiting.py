"""Labelling for a run that waits for it: what its recipe asks, and how far it is."""

from __future__ import annotations

from pathlib import Path

from gro.errors import GroError
from gro.labels.store import Store
from gro.labels.used import asking_now
from gro.raters.human import RATINGS
from gro.raters.spec import asking
from gro.runs import RunReader, files
from gro.runs.store import CONFIG, DATABASE


class WaitingRun:
    """A run whose reward is people.

    >>> WaitingRun(Path("runs/first")).status
    'running'
    """

    def __init__(self, path: Path) -> None:
        """Raises GroError where there is no run, or one that asks nobody."""
        self.path = path
        if not (path / CONFIG).is_file():
            raise GroError(f"{path} is a directory and no run; start gro train first, or give a file")
        config = files.read_yaml(path / CONFIG)
        try:
            asked, self._seed = asking(config["rewards"]), int(config["training"]["seed"])
        except (LookupError, TypeError):
            raise GroError(f"{path / CONFIG} is not the configuration of a run") from None
        if not asked:
            raise GroError(f"{path}: the recipe of this run asks nobody: none of its rewards is human")
        self._settings = next(iter(asked.values()))

    def store(self) -> Store:
        """Its file of labels; made where the run has not come so far."""
        return Store(self.path / RATINGS, self._settings.kind, per_item=self._settings.per_item, seed=self._seed)

    def keep_up(self, store: Store) -> None:
        """The run may have been begun anew since, and ask more or fewer people of each item."""
        if (now := asking_now(store)) is not None:
            store.per_item, store.seed = now["per_item"], now["seed"]

    @property
    def status(self) -> str:
        """running, interrupted or finished."""
        try:
            with RunReader(self.path) as reader:
                return reader.status
        except GroError:  # it was killed while its database was made, or is making it
            return "interrupted" if (self.path / DATABASE).is_file() else "running"


def labels_in(path: Path) -> Path:
    """The file of labels: that of a run where a run is given."""
    return path / RATINGS if path.is_dir() else path
