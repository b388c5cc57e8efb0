"""From updates to what a run remembers and a person sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from gro.objective import Algorithm, Term
from gro.objective.credit import EQUAL
from gro.objective.factors import label_of, pushing
from gro.policy.policy import Policy
from gro.rewards.ranges import ScoreRange
from gro.runs.plain import exact
from gro.runs.progress import Progress
from gro.runs.records import TERMS
from gro.runs.store import Run
from gro.training.batching import Minibatch
from gro.training.critic import CriticUpdate
from gro.training.learner import Update
from gro.training.metrics import (
    describe_duplicates,
    describe_pairs,
    describe_rollouts,
    gap,
    k1_to,
    kl_to,
    outside_ranges,
)
from gro.training.prepare import Reference
from gro.training.rollout_records import rollout_records
from gro.training.settings import Portions
from gro.training.stopping import GOLD, Watch
from gro.training.watching import Alarms, Raised
from gro.types import rows_of

Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """One step of the loop: what was learnt from, the updates on it, and how long it took."""

    minibatch: Minibatch
    updates: Sequence[Update | CriticUpdate]
    rollout_seconds: float
    seconds: float
    observed: Mapping[str, float] = field(default_factory=dict)
    """What the source saw beyond the groups that are learnt from, and what moved after the updates."""
    waiting_seconds: float = 0.0
    """How long it waited for people besides, which says nothing of the speed."""

    @property
    def first(self) -> Update | None:
        """The policy's first update; None where the policy rested."""
        return next((update for update in self.updates if isinstance(update, Update)), None)


class Recorder:
    """Writes steps to the run, shows them, and raises alarms."""

    ended: str | None = None
    """Why alarms end the run after this step; None: they do not."""

    def __init__(
        self,
        run: Run,
        progress: Progress,
        policy: Policy,
        algorithm: Algorithm,
        portions: Portions,
        monitor: Reference | None = None,
        *,
        restricted: bool = False,
        ranges: Mapping[str, ScoreRange] | None = None,
    ) -> None:
        """monitor: the starting policy, to measure the KL to it where the algorithm does not read it.  restricted:
        samples are drawn with top_p or top_k, and so from another distribution than the one that is trained.
        ranges: between which scores the rows lie on which a reward was trained, by its name."""
        self.ranges = dict(ranges or {})
        self.run, self.progress, self.policy = run, progress, policy
        self.algorithm, self.portions, self.monitor = algorithm, portions, monitor
        self.evaluations: dict[int, dict[str, float]] = {}
        self._stop = Watch(portions.stop) if portions.stop is not None else None
        half = policy.autocast is not None or policy.model.dtype not in (torch.float32, torch.float64)
        stops = {"flat_groups": portions.flat_steps}
        self._alarms = Alarms(portions.alarms, half=half, whole=not restricted, stops=stops)
        self._ending: dict[str, float] = {}
        """What the alarms measured that end it, by their names."""
        self._kl: float | None = None
        self._seen = 0
        run.keep(TERMS, [label_of(term) for term in pushing(algorithm)])

    def step(self, step: int, result: StepResult) -> None:
        """Record step `step` (counted from 1)."""
        metrics = self._metrics(step, result)
        if self._stop is not None:
            metrics |= self._stop.step(step, result.minibatch.groups)
        records = rollout_records(
            result.first, result.minibatch, self.algorithm, self.portions.record_groups, self.policy.tokenizer.decode
        )
        self.run.record_rollouts(step, records)
        self.run.record(step, metrics)
        self.progress.step(step, metrics)
        known = {} if self._kl is None else {"kl": self._kl}  # measured every so often; it holds until the next time
        self._alarm(step, self._alarms.step(known | metrics | self._flat(result, metrics)))

    def evaluated(self, step: int, evaluate: Evaluate | None) -> None:
        """Evaluate the policy as it is after `step` steps, and record it."""
        if evaluate is None:
            return
        metrics = {f"eval_{name}": value for name, value in evaluate().items()}
        self.evaluations[step] = metrics
        if self._stop is not None:
            self._stop.evaluated(step, metrics)
        self.run.record(step, metrics)
        shown = "  ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in metrics.items())
        self.progress.note(f"held out, after step {step}: {shown}")
        if GOLD in metrics:
            self._alarm(step, self._alarms.evaluated(metrics[GOLD]))

    def stops(self, step: int) -> bool:
        """Whether the recipe's rule ends the run after this step; then it is said why."""
        why = self._stop.reason() if self._stop is not None else None
        if why is not None and step < self.portions.steps:
            self._warn(step, f"stopped early: {why}")
        return why is not None

    def state(self) -> dict[str, Any]:
        """What later records, alarms and stops depend on, in plain values; a number that is not finite is text."""
        evaluations = {str(step): {n: exact(v) for n, v in m.items()} for step, m in self.evaluations.items()}
        return {
            "evaluations": evaluations,
            "alarms": self._alarms.state(),
            "ended": {"said": self.ended, "values": {name: exact(v) for name, v in self._ending.items()}},
            "kl": None if self._kl is None else exact(self._kl),
            "num_tokens": self._seen,
            "stop": None if self._stop is None else self._stop.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave; `ended` says where alarms had ended the run, and would by today's limits."""
        found = state["evaluations"]
        self.evaluations = {int(step): {n: float(v) for n, v in m.items()} for step, m in found.items()}
        self._alarms.load(state["alarms"])
        self._seen = int(state["num_tokens"])
        self._kl = None if state["kl"] is None else float(state["kl"])
        if self._stop is not None and state["stop"] is not None:
            self._stop.load(state["stop"])
        ended = state.get("ended", {"values": {}})
        if self._alarms.still_end({name: float(value) for name, value in ended["values"].items()}):
            self.ended = ended["said"]

    def count_alarms(self) -> dict[str, int]:
        """How often each alarm was raised; says so where any was."""
        counts = self._alarms.counts
        if counts:
            said = ", ".join(f"{name} ({n} times)" if n > 1 else name for name, n in counts.items())
            self.progress.note(f"alarms in this run: {said}")
        return counts

    def _metrics(self, step: int, result: StepResult) -> dict[str, float]:
        updates, first = result.updates, result.first
        names = {name for update in updates for name in update.metrics}
        metrics = {n: fmean(u.metrics[n] for u in updates if n in u.metrics) for n in sorted(names)}
        groups = result.minibatch.groups
        metrics |= describe_rollouts(groups) | describe_duplicates(groups) | outside_ranges(groups, self.ranges)
        metrics |= {**result.observed, **self._early_stop(result)}
        if first is not None:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("sampling/")}
            metrics |= self._on_policy(step, result, first)
        if first is not None and "paired" in self.algorithm.roles:
            metrics |= describe_pairs(first.logp_BT, first.batch, implicit_beta(self.algorithm))
        if first is not None and self._due(step) and self.monitor is not None:
            metrics |= self._kl_to_start(step, first)
        tokens = sum(len(g.prompt.ids) + sum(len(c.ids) for c in g.completions) for g in groups)
        self._seen += tokens
        if result.waiting_seconds:
            metrics["waiting_time"] = result.waiting_seconds
        return metrics | {
            "num_tokens": float(self._seen),
            "tokens/s": tokens / result.seconds,
            "step_time": result.seconds,
            "rollout_time": result.rollout_seconds,
        }

    def _due(self, step: int) -> bool:
        return bool(self.portions.kl_every) and (step == 1 or step % self.portions.kl_every == 0)

    def _early_stop(self, result: StepResult) -> dict[str, float]:
        """How many passes were made over the step's batch, where the algorithm can end them."""
        moved = [u.declined for u in result.updates if isinstance(u, Update)]
        if self.algorithm.max_kl is None or not moved:
            return {}
        parts = min(self.portions.minibatches, len(result.minibatch.groups))
        return {"stopped_early": float(any(moved)), "epochs_done": moved.count(False) / parts}

    def _on_policy(self, step: int, result: StepResult, first: Update) -> dict[str, float]:
        """What only the first update shows, which alone saw the weights that sampled."""
        metrics: dict[str, float] = {}
        if result.minibatch.batch.old_BT is not None and "ratio/max" in first.metrics:
            metrics["ratio/first"] = max(first.metrics["ratio/max"] - 1, 1 - first.metrics["ratio/min"])
        fresh_BT = _fresh(step, first)
        if first.batch.sampler_BT is not None:
            metrics |= gap(first.logp_BT, first.batch.sampler_BT, fresh_BT)
        if first.batch.ref_BT is not None:
            metrics |= k1_to(first.batch.ref_BT, first.logp_BT, fresh_BT)
        return metrics

    def _kl_to_start(self, step: int, update: Update) -> dict[str, float]:
        """KL to the starting policy on this step's samples, at the weights that drew them."""
        assert self.monitor is not None
        samples_BT = update.batch.mask_BT & update.batch.samples_B[:, None]
        if "kl" in update.metrics or not bool(samples_BT.any()):
            return {}
        start_BT = self.monitor.score(update.groups, self.portions.micro_tokens)
        self._kl = kl_to(start_BT, update.logp_BT, samples_BT)
        return {"kl": self._kl} | k1_to(start_BT, update.logp_BT, _fresh(step, update))

    def _demonstrated(self, result: StepResult) -> bool:
        """Whether there were demonstrations that the algorithm learns from."""
        roles = {c.role for group in result.minibatch.groups for c in group.completions}
        return "targets" in self.algorithm.roles and "target" in roles

    def _flat(self, result: StepResult, metrics: Mapping[str, float]) -> dict[str, float]:
        """The share of groups without variance, where nothing can be learnt from such: not where completions are
        compared with those of other prompts, or where there are demonstrations to learn from."""
        if metrics.get("pairs") == 0.0 and not self._demonstrated(result):
            return {"flat": 1.0}
        if self._demonstrated(result) or "frac_reward_zero_std" not in metrics:
            return {"flat": 0.0}
        alike = self.algorithm.compares or metrics.get("reward_std", 0.0) <= EQUAL
        return {"flat": metrics["frac_reward_zero_std"] if alike else 0.0}

    def _alarm(self, step: int, raised: Sequence[Raised]) -> None:
        """Says which alarms are raised, and remembers those that end the run."""
        for one in raised:
            if one.new:
                self._warn(step, one.message, alarm=one.alarm.name, value=exact(one.value), limit=exact(one.limit))
        ending = [one for one in raised if one.ends]
        if not ending:
            return
        first = ending[0]
        others = "".join(f"\nAlso {one.message}" for one in raised if one is not first)
        keys = " and ".join(one.key for one in ending)
        self.ended = f"stopped at step {step}, the {_nth(first.steps)} such step in a row: {first.message}{others}"
        self.ended += f"\nWith another limit ({keys}) the same command goes on"
        self._ending = {one.alarm.name: one.value for one in ending}

    def _warn(self, step: int, message: str, **data: Any) -> None:
        self.run.event("warning", message, step, **data)
        self.progress.note(f"step {step}: {message}")


def implicit_beta(algorithm: Algorithm) -> float:
    """What an implicit reward, a log-ratio to the reference, is multiplied by: the preference weight's β, or 1."""
    weights = (t.weight for t in algorithm.terms if isinstance(t, Term) and t.rows == "paired")
    return next((beta for w in weights if (beta := getattr(w, "beta", None)) is not None), 1.0)


def _fresh(step: int, update: Update) -> Tensor:
    """bool [B, T]: trained tokens that were sampled from the weights of this update, and not replayed or read."""
    weights = step - 1
    fresh = [c.role == "sample" and c.finish != "given" and c.version == weights for _, _, c in rows_of(update.groups)]
    return update.batch.mask_BT & torch.tensor(fresh, device=update.batch.mask_BT.device)[:, None]


def _nth(number: int) -> str:
    """
    >>> _nth(1), _nth(25)
    ('first', '25th')
    """
    if number <= 3:
        return ("first", "second", "third")[number - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"
