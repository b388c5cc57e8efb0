"""Named alarms: what shows in a run's metrics that something has gone wrong, with the likely cause and the knob.

Each is a row of one table: a pure function of what was recorded so far, and words.  Its limit stands in
`alarm_limits.py`; when it is raised, in `watching.py`.  An alarm costs no more than comparing a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

EARLY = 5
"""So many first values are what later ones are compared with."""
_ROUNDING = 1e-4
"""Nats per token: a KL estimate this near to 0 says nothing about its sign."""
_FEWEST_TOKENS = 4
"""By fewer a mean length has not drifted, whatever the factor."""

Metrics = Mapping[str, float]


@dataclass(slots=True)
class History:
    """What alarms remember of earlier steps."""

    early: dict[str, list[float]] = field(default_factory=dict)
    """The first values of the metrics that later ones are compared with."""
    rewards: list[float] = field(default_factory=list)
    """Mean rewards of the steps since the last evaluation."""
    evaluations: list[tuple[float, float]] = field(default_factory=list)
    """(held-out reward, mean reward of the steps before it)."""


Measure = Callable[[Metrics, History], float | None]
"""The value that is compared with the limit; None where nothing is known."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One row of the table."""

    name: str
    says: str
    """With {value} and {limit}."""
    cause: str
    knob: str
    measure: Measure
    patience: int = 1
    """Measurements in a row past the limit."""
    below: bool = False
    """Raised below the limit, not above it."""
    reached: bool = False
    """Raised at the limit, too."""
    stops: int | None = None
    """So many measurements in a row end the run; None: none do."""
    half: float | None = None
    """The default limit where the model runs in half precision; None: the same."""
    of_whole: bool = True
    """Known only where samples are drawn from all of the policy's distribution, without top_p and top_k."""
    evaluated: bool = False
    """Measured at evaluations, not at steps."""

    def past(self, value: float, limit: float) -> bool:
        """Whether this value is one to be alarmed at; nan is none."""
        return (value < limit if self.below else value > limit) or (self.reached and value == limit)

    def message(self, value: float, limit: float) -> str:
        """For people."""
        return f"{self.name}: {self.says.format(value=value, limit=limit)}. {self.cause} {self.knob}"


# --- what is measured -------------------------------------------------------------------------------------------------


def _metric(name: str) -> Measure:
    return lambda metrics, _: metrics.get(name)


def _sampled(name: str) -> Measure:
    """Where completions were sampled: of rows of files neither KL nor length nor entropy is the policy's."""
    return lambda metrics, _: metrics.get(name) if "completions/clipped_ratio" in metrics else None


def _kl_below(metrics: Metrics, _: History) -> float | None:
    if "kl/k1" not in metrics:
        return None
    mean, error = metrics["kl/k1"], metrics["kl/k1_error"]
    return -mean / max(error, _ROUNDING / 100) if mean < -_ROUNDING else 0.0


def _against_early(name: str, metrics: Metrics, history: History) -> tuple[float, float] | None:
    """(now, the average of the first values), of sampled completions."""
    early, now = history.early.get(name, []), _sampled(name)(metrics, history)
    return None if now is None or len(early) < EARLY else (now, fmean(early))


def _entropy_left(metrics: Metrics, history: History) -> float | None:
    found = _against_early("entropy", metrics, history)
    return None if found is None or found[1] <= 0 else found[0] / found[1]


def _length_factor(metrics: Metrics, history: History) -> float | None:
    found = _against_early("completions/mean_length", metrics, history)
    if found is None:
        return None
    short, long = sorted(found)
    return 1.0 if long - short < _FEWEST_TOKENS else long / max(short, 1.0)


def _outside_range(metrics: Metrics, _: History) -> float | None:
    shares = [v for name, v in metrics.items() if name.startswith("rewards/") and name.endswith("/outside")]
    return max(shares, default=None)


def _duplicates(metrics: Metrics, _: History) -> float | None:
    """Two standard errors are allowed for chance."""
    if "duplicates/share" not in metrics:
        return None
    return metrics["duplicates/share"] - metrics["duplicates/expected"] - 2 * metrics["duplicates/error"]


def _held_out_lost(_: Metrics, history: History) -> float | None:
    """Of the gain since the first evaluation, but at least of a fifth of the highest reward, so that noise around a
    level is no loss."""
    seen = history.evaluations
    if len(seen) < 3:
        return None
    best = max(range(len(seen)), key=lambda i: seen[i][0])
    (gold, before), (now, since) = seen[max(best, 1)], seen[-1]
    gold = seen[best][0]
    scale = max(gold - seen[0][0], abs(gold) / 5)
    if scale <= 0 or not since > before:
        return 0.0
    return (gold - now) / scale


_APART = (
    "Sampler and trainer compute different probabilities of the same tokens: other weights, precision or temperature, "
    "or a fault in one of them."
)
_SAME = "Run both in float32 to tell rounding from a fault; where it stays, correct for it or report it."

ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "ratio",
        "before the first update of the step a ratio to the old policy is off 1 by {value:.3g} (limit {limit:g})",
        "The same weights were scored twice and differ: dropout, a layer that looks across the batch, or weights that "
        "changed in between.",
        "Switch dropout off in the model; for a model whose numbers depend on the batch, raise training.alarms.ratio.",
        _metric("ratio/first"),
        stops=1,
        half=0.5,
    ),
    Alarm(
        "kl_negative",
        "the KL to the reference is estimated {value:.3g} standard errors below 0 (limit {limit:g})",
        "A KL is never negative, so these are no samples of this policy: sampled at another temperature, from other "
        "weights, or restricted by top_p or top_k.",
        "Look at sampling/*; set top_p: 1 and top_k: 0.",
        _kl_below,
        patience=2,
        of_whole=False,
    ),
    Alarm(
        "kl_explosion",
        "the KL to the reference is {value:.3g} nats per token (limit {limit:g})",
        "The policy has left its start far behind; rewards of such texts mean little.",
        "Lower optimizer.learning_rate, raise beta (or kl in the reward), or stop earlier (training.stop).",
        _sampled("kl"),
        patience=2,
    ),
    Alarm(
        "flat_groups",
        "no group has any variance in its rewards, so there is nothing to learn",
        "Every completion of a prompt gets the same reward: too hard, too easy, or a reward that does not tell them "
        "apart.",
        "Check the reward on samples, or start from a model that solves some of the task.",
        _metric("flat"),
        reached=True,
    ),
    Alarm(
        "truncated",
        "{value:.0%} of the completions were cut off (limit {limit:.0%})",
        "They cannot end within the limit of tokens, or the model has not learnt to end them.",
        "Raise sampling.max_new_tokens, or begin with a supervised run on demonstrations that end.",
        _metric("completions/clipped_ratio"),
    ),
    Alarm(
        "entropy_collapse",
        "the entropy is {value:.3g} times that of the first steps (limit {limit:g})",
        "The policy answers nearly always the same, so that groups no longer differ and learning ends.",
        "Lower optimizer.learning_rate, raise sampling.temperature, or add an entropy bonus or a KL.",
        _entropy_left,
        patience=3,
        below=True,
    ),
    Alarm(
        "length_drift",
        "the completions are {value:.3g} times longer or shorter than in the first steps (limit {limit:g})",
        "The reward may pay for length, or the share of the loss may favour it.",
        "Look at samples; a reward `overlong` or a share that does not divide by length; accept it by "
        "training.alarms.length_drift.",
        _length_factor,
        patience=3,
    ),
    Alarm(
        "reward_range",
        "{value:.0%} of the completions have a reward model's score outside the range of its own training rows (limit "
        "{limit:.0%})",
        "There the score is an extrapolation and says little: the usual beginning of over-optimisation.",
        "Raise the KL to the start, stop earlier (training.stop), or train the reward model on answers of this policy.",
        _outside_range,
        patience=2,
    ),
    Alarm(
        "reward_failed",
        "a reward failed on {value:.0f} completions (limit {limit:g})",
        "It raised, timed out or returned something unfit; such completions are left out of their group.",
        "See failures/ in the run; time_limit for slow ones, reward_failure_stop_share for how many are tolerated.",
        _metric("rewards/failed"),
    ),
    Alarm(
        "duplicates",
        "{value:.0%} more pairs of answers to a prompt are identical than their probabilities explain (limit "
        "{limit:.0%})",
        "The samples of a prompt are not independent: the same noise for several of them, or answers from a cache.",
        "Check the engine's seeds; the log-probs that it reports tell how many duplicates there should be.",
        _duplicates,
        patience=2,
    ),
    Alarm(
        "sampler_gap",
        "{value:.1%} of the tokens have probabilities more than 10 % apart (limit {limit:.1%})",
        _APART,
        _SAME,
        _metric("sampling/outside"),
        patience=2,
        of_whole=False,
    ),
    Alarm(
        "sampler_tail",
        "one token in 1000 differs by more than {value:.3g} nats (limit {limit:g})",
        _APART,
        _SAME,
        _metric("sampling/sampling_logp_difference/p99.9"),
        patience=2,
        of_whole=False,
    ),
    Alarm(
        "sampler_max",
        "a token's log-prob differs by {value:.3g} nats (limit {limit:g})",
        _APART,
        _SAME,
        _metric("sampling/sampling_logp_difference/max"),
        of_whole=False,
    ),
    Alarm(
        "sampler_apart",
        "{value:.0%} of the tokens have probabilities more than 10 % apart (limit {limit:.0%}), which rounding does "
        "not explain",
        _APART,
        _SAME,
        _metric("sampling/outside"),
        stops=3,
        of_whole=False,
    ),
    Alarm(
        "held_out_down",
        "{value:.0%} of the held-out reward's gain is lost while the reward in training rises (limit {limit:.0%})",
        "The reward is over-optimised: what raises it no longer helps on held-out data.",
        "Stop at the best step (training.stop: {by: gold}), raise the KL, or improve the reward.",
        _held_out_lost,
        patience=2,
        evaluated=True,
    ),
)
"""In the order of the page."""
