"""A run's alarms: which are raised at a step, once for an episode, and which of them end the run.

An episode begins when a limit has been passed for `patience` measurements in a row, and ends after ten within it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gro.runs.plain import exact
from gro.training.alarm_limits import AlarmLimits
from gro.training.alarms import ALARMS, EARLY, Alarm, History, Metrics

_CALM = 10
"""So many measurements within the limit end an episode: a value that hovers at its limit is reported once."""
_REMEMBERED = ("entropy", "completions/mean_length")
"""Metrics whose first values are kept."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm at this step."""

    alarm: Alarm
    value: float
    limit: float
    new: bool
    """An episode begins; else it goes on."""
    ends: bool
    """The run stops."""
    steps: int
    """Measurements in a row."""

    @property
    def message(self) -> str:
        """For people."""
        return self.alarm.message(self.value, self.limit)

    @property
    def key(self) -> str:
        """Of the setting with which a run that it has ended goes on."""
        return "training.flat_steps" if self.alarm.stops is None else f"training.alarms.{self.alarm.name}"


@dataclass(slots=True)
class _Episode:
    """Where one alarm stands."""

    past: int = 0
    """Measurements in a row past the limit."""
    calm: int = 0
    """Measurements in a row within it."""
    on: bool = False
    raised: int = 0
    """Episodes so far."""


class Alarms:
    """Is told of every step and evaluation, and says which alarms are raised."""

    def __init__(
        self, limits: AlarmLimits, *, half: bool = False, whole: bool = True, stops: Mapping[str, int] | None = None
    ) -> None:
        """half: the model runs in half precision.  whole: samples are drawn without top_p and top_k.  stops: after how
        many measurements an alarm ends the run, where the table does not say."""
        self._limits: dict[str, float] = {}
        standard = AlarmLimits()
        for alarm in ALARMS:
            limit = getattr(limits, alarm.name)
            if half and alarm.half is not None and limit == getattr(standard, alarm.name):
                limit = alarm.half
            if limit is not None and (whole or alarm.of_whole):
                self._limits[alarm.name] = limit
        self._stops = dict(stops or {})
        self._history = History()
        self._episodes = {alarm.name: _Episode() for alarm in ALARMS}

    def step(self, metrics: Metrics) -> list[Raised]:
        """The alarms that are on after a step with these metrics."""
        found = list(self._look(metrics, evaluated=False))
        for name in _REMEMBERED:
            early = self._history.early.setdefault(name, [])
            if len(early) < EARLY and math.isfinite(metrics.get(name, math.nan)):
                early.append(metrics[name])
        if math.isfinite(metrics.get("reward", math.nan)):
            self._history.rewards.append(metrics["reward"])
        return found

    def evaluated(self, reward: float) -> list[Raised]:
        """After an evaluation with this held-out reward."""
        if not math.isfinite(reward):
            return []
        history = self._history
        before = fmean(history.rewards) if history.rewards else math.nan
        history.evaluations.append((reward, before))
        history.rewards = []
        return list(self._look({}, evaluated=True))

    @property
    def counts(self) -> dict[str, int]:
        """How often each was raised, of those that were."""
        return {name: episode.raised for name, episode in self._episodes.items() if episode.raised}

    def still_end(self, values: Mapping[str, float]) -> bool:
        """Whether one of these, which ended the run at these values, ends it by the limits of now; of one that would
        not, its last measurement was within the limit."""
        found = False
        for alarm in ALARMS:
            if alarm.name not in values:
                continue
            limit, episode = self._limits.get(alarm.name), self._episodes[alarm.name]
            if limit is None or not alarm.past(values[alarm.name], limit):
                episode.past = 0
            found = found or self._ends(alarm, episode)
        return found

    def _ends(self, alarm: Alarm, episode: _Episode) -> bool:
        stops = self._stops.get(alarm.name, alarm.stops)
        return stops is not None and episode.past >= stops

    def _look(self, metrics: Metrics, *, evaluated: bool) -> Iterator[Raised]:
        for alarm in ALARMS:
            limit = self._limits.get(alarm.name)
            if limit is None or alarm.evaluated != evaluated:
                continue
            value = alarm.measure(metrics, self._history)
            if value is None or math.isnan(value):
                continue
            episode = self._episodes[alarm.name]
            if not alarm.past(value, limit):
                episode.past, episode.calm = 0, episode.calm + 1
                episode.on = episode.on and episode.calm < _CALM
                continue
            episode.past, episode.calm = episode.past + 1, 0
            new = not episode.on and episode.past >= alarm.patience
            episode.on = episode.on or new
            episode.raised += new
            ends = self._ends(alarm, episode)
            if episode.on or ends:
                yield Raised(alarm, value, limit, new, ends, episode.past)

    def state(self) -> dict[str, Any]:
        """What was seen so far, in plain values."""
        history = self._history
        return {
            "early": {name: [exact(v) for v in values] for name, values in history.early.items()},
            "rewards": [exact(v) for v in history.rewards],
            "evaluations": [[exact(v) for v in pair] for pair in history.evaluations],
            "episodes": {name: [e.past, e.calm, e.on, e.raised] for name, e in self._episodes.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._history = History(
            {name: [float(v) for v in values] for name, values in state["early"].items()},
            [float(v) for v in state["rewards"]],
            [(float(gold), float(before)) for gold, before in state["evaluations"]],
        )
        for name, (past, calm, on, raised) in state["episodes"].items():
            self._episodes[name] = _Episode(past, calm, on, raised)
