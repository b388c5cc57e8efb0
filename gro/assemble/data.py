"""All data of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gro.assemble.algorithm import build_algorithm
from gro.assemble.models import Start
from gro.config import Config
from gro.data.dataset import Dataset
from gro.data.encode import load_dataset
from gro.data.spec import DataSpec
from gro.errors import DataError, GroError
from gro.objective import Algorithm
from gro.runs.store import Run


@dataclass(frozen=True, slots=True)
class Data:
    """All data of a recipe, tokenised."""

    offline: tuple[tuple[Dataset, float], ...] = ()
    """With their weights."""
    online: Dataset | None = None
    held_out: Dataset | None = None

    @property
    def named(self) -> dict[str, Dataset]:
        """Every data set under its key in the recipe."""
        several = len(self.offline) > 1
        found = {f"offline.{i}" if several else "offline": d for i, (d, _) in enumerate(self.offline)}
        found |= {"online": self.online} if self.online else {}
        return found | ({"eval.data": self.held_out} if self.held_out else {})

    @property
    def ends(self) -> frozenset[int]:
        """Every token that ends a completion in training, so that sampling stops at the same."""
        return frozenset().union(*(dataset.ends for dataset in self.named.values()))


def load_data(config: Config, start: Start, run: Run | None = None) -> Data:
    """Reads and checks all data; rows that are skipped as asked for are kept in the run."""

    def reject(error: Exception, row: Mapping[str, Any] | None) -> None:
        if run is not None:
            run.reject({"why": str(error), "row": dict(row or {})})

    def load(spec: DataSpec) -> Dataset:
        return load_dataset(spec, start.tokenizer, end_ids=start.ends, reject=reject)

    def load_prompts(spec: DataSpec, algorithm: Algorithm) -> Dataset:
        if not algorithm.beside:
            return load(prompts_of(spec))
        try:
            return load(demonstrated(spec))
        except DataError as error:
            raise GroError(f"online: {algorithm.name} needs a demonstration with every prompt. {error}") from error

    return Data(
        offline=tuple((load(weighted.data), weighted.weight) for weighted in config.offline),
        online=load_prompts(config.online, build_algorithm(config)) if config.online else None,
        held_out=load(config.eval.data) if config.eval else None,
    )


def prompts_of(spec: DataSpec) -> DataSpec:
    """Online only the prompts of a file are used, whatever else is in it."""
    return replace(spec, kind="prompt_only") if spec.kind == "auto" else spec


def demonstrated(spec: DataSpec) -> DataSpec:
    """Unless demonstrations stand beside the samples."""
    return replace(spec, kind="prompt_completion") if spec.kind == "auto" else spec


def longest_offline(data: Data) -> int:
    """Most tokens of a prompt with one of its completions."""
    return max(dataset.report.longest for dataset, _ in data.offline)
