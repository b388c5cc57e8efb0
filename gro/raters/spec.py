"""What can be said about the reward `human`.  Light to import: recipes are checked with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gro import signatures
from gro.errors import GroError
from gro.labels.answers import KINDS, Kind
from gro.rewards.spec import RewardSpec
from gro.schema import Count, NotNegative, Positive, Share

HUMAN = "human"
"""The name under which a recipe asks for it."""


@dataclass(frozen=True)
class Simulated:
    """Raters that are made from another reward; `gro.raters.simulated` has the formulas.

    >>> Simulated("exact_match", spread=0.1, flip=0.05)
    """

    reward: Any
    """What they would say without any noise: an item as in a recipe's `rewards`."""
    raters: Count = 3
    """Of whom per_item answer each item."""
    spread: NotNegative = 0.0
    """Standard deviation of what a rater sees, on the scale from 0 to 1."""
    bias_spread: NotNegative = 0.0
    """Standard deviation over raters of what each always adds."""
    skew: Positive = 1.0
    """Above 1 they are harsh, below 1 lenient."""
    flip: Share = 0.0
    """Share of answers that are given blindly."""
    skip: Share = 0.0
    """Share of answers that are skips."""
    low: float = 0.0
    """The inner reward that is worst."""
    high: float = 1.0
    """The inner reward that is best."""

    def __post_init__(self) -> None:
        """Raises ValueError where there is no scale."""
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be below high")


@dataclass(frozen=True)
class HumanSettings:
    """How people are asked.

    >>> HumanSettings.parse({"kind": "pairs"}, "rewards.0")
    """

    kind: Literal["score5", "score10", "pairs", "best", "ranking"] = "score5"
    """What is asked."""
    together: Count | None = None
    """Completions of a group that are shown at once; None: one to be scored, the whole group to be compared."""
    per_item: Count = 1
    """People that each of them waits for."""
    simulated: Mapping[str, Any] | None = None
    """The keys of `Simulated`; None: people are asked."""

    @property
    def asked(self) -> Kind:
        """The kind itself."""
        return KINDS[self.kind]

    @property
    def raters(self) -> Simulated | None:
        """The simulated ones."""
        return None if self.simulated is None else Simulated(**self.simulated)

    def shown(self, group_size: int) -> int:
        """How many completions are shown at once; ValueError, beginning with the key, where that does not fit."""
        kind, name = self.asked, self.kind
        key = "group_size" if self.together is None else "together"
        shown = self.together or (1 if kind.top else group_size)
        if not kind.fewest <= shown <= kind.most:
            most = f"{kind.fewest} to {kind.most}" if kind.fewest < kind.most else str(kind.most)
            raise ValueError(f"{key}: {shown}, but {name} shows {most} completions at once{self._instead(group_size)}")
        if shown > group_size:
            raise ValueError(f"together: {shown}, but group_size is {group_size}: a prompt has no more completions")
        if not kind.top and group_size % shown:
            raise ValueError(
                f"together: {shown} does not divide group_size {group_size}: some completions would be compared with "
                "fewer others than the rest"
            )
        return shown

    def _instead(self, group_size: int) -> str:
        if self.asked.top or self.together is not None or group_size == 1:
            return ""
        return "; together says how many of the group are" if group_size % 2 == 0 else "; take another group_size"

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = HUMAN) -> HumanSettings:
        """From a recipe; GroError naming every wrong key."""
        if found := problems(values, where):
            raise GroError("\n".join(found))
        return cls(**values)


def problems(values: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with these settings, one line for each; the inner reward of simulated raters is not looked into."""
    found = signatures.of(HumanSettings).problems(where, HUMAN, values)
    inner = values.get("simulated")
    if not isinstance(inner, Mapping):
        return found
    found += signatures.of(Simulated).problems(f"{where}.simulated", "simulated", inner)
    if found:
        return found
    try:
        settings = HumanSettings(**values)
        raters = settings.raters
        assert raters is not None
        RewardSpec.parse(raters.reward)
    except ValueError as error:
        return [f"{where}.simulated: {error}"]
    if settings.per_item > raters.raters:
        return [f"{where}.per_item: {settings.per_item}, but simulated.raters is {raters.raters}"]
    return []


def asking(items: Sequence[Any]) -> dict[int, HumanSettings]:
    """Of a list of rewards those that ask people, by their place."""
    specs = {i: RewardSpec.parse(item) for i, item in enumerate(items)}
    return {i: HumanSettings.parse(spec.params) for i, spec in specs.items() if spec.name_or_path == HUMAN}
