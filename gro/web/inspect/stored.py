"""What a run directory says of each token without a model: recorded quantities, and those that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gro.runs.records import FACTORS, RolloutRecord, factor

Scale = Literal["signed", "positive", "negative", "ratio", "flag", "state"]
"""signed: 0 is in the middle.  positive, negative: 0 is an end.  ratio: 1 is in the middle, by its logarithm.
flag: yes or no.  state: −1, 0, 1 (and 2)."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number per token that can be looked at."""

    name: str
    label: str
    meaning: str
    scale: Scale
    term: int | None = None
    """Of which term of the equation it is a part, counted from 1; None: of none."""
    term_label: str = ""


QUANTITIES = (
    Quantity("coefficient", "coefficient c", "what the token's log-prob is multiplied by in the gradient", "signed"),
    Quantity("advantage", "advantage A", "how much better than expected", "signed"),
    Quantity("value", "value", "the critic's value of the state before the token", "signed"),
    Quantity("return", "return", "what the critic learns here", "signed"),
    Quantity("reward", "reward placement", "the reward stands at the last trained token", "signed"),
    Quantity("logp", "log-prob, policy", "before the update, at the temperature of the sample", "negative"),
    Quantity("old", "log-prob, old", "under the policy at the start of the step", "negative"),
    Quantity("ref", "log-prob, reference", "under the reference policy", "negative"),
    Quantity("sampler", "log-prob, sampler", "as the engine reported it when it sampled", "negative"),
    Quantity("entropy", "entropy", "of the policy's distribution in this state, in nats", "positive"),
    Quantity("ratio", "ratio to old", "exp(log-prob − old log-prob)", "ratio"),
    Quantity("gap", "ratio to sampler", "exp(log-prob − the sampler's): 1 but for rounding and restriction", "ratio"),
    Quantity("kl1", "KL to reference, k1", "u = log-prob − reference log-prob: unbiased, of either sign", "signed"),
    Quantity("kl3", "KL to reference, k3", "e^−u − 1 + u: never negative", "positive"),
    Quantity("trained", "loss mask", "whether the token carries loss", "flag"),
)
PARTS = (
    Quantity("share", "share", "who counts how much: one over a count of the whole update", "signed"),
    Quantity("w", "w", "the weight: how hard the term still pulls, given how far the token has come", "signed"),
    Quantity("v", "v", "the value: how the advantage becomes strength and sign", "signed"),
    Quantity("epsilon", "ε", "the anchor: what the log-likelihood is compared with", "signed"),
    Quantity("u", "u", "the log-likelihood above its anchor: what w is a function of", "signed"),
    Quantity("slope", "∂φ/∂ℓ", "how far the unit moves with this token: 1 for totals, 1/|y| for averages", "signed"),
    Quantity("c", "share · w · v · ∂φ/∂ℓ", "the term's part of the coefficient", "signed"),
    Quantity(
        "clip", "clip state", "−1, 1: below, above the region; 2: past the dual bound; there w is 0 or cut", "state"
    ),
)
"""Of each term."""
_SCORED = {
    "coefficient": "what the score is multiplied by in the gradient",
    "advantage": "how much better than expected",
    "reward": "the reward stands at the last token",
    "logp": "what the reward model gives to the answer, before the update; it stands at the last token",
    "trained": "whether the score is read at the token",
}
"""What there is of a reward model's run, and what it means there.  Its scores are recorded where others have log-probs,
since they are what is differentiated."""
_SCORE = "r"
"""Of the names of terms the unit that is a score, as `gro.objective.units` spells it: nothing here imports torch."""
_STORED = ("coefficient", "advantage", "value", "return", "logp", "old", "ref", "sampler", "entropy", "trained")
_MOST = 20.0
"""Log-ratios beyond this are cut before they are exponentiated, as in the objective."""


def quantities_of(terms: Sequence[str]) -> list[Quantity]:
    """What can be looked at in a run whose terms have these labels."""
    if not scored(terms):
        return [*QUANTITIES, *parts_of(terms)]
    known = [replace(one, meaning=_SCORED[one.name]) for one in QUANTITIES if one.name in _SCORED]
    parts = [replace(part, meaning=part.meaning.replace("log-likelihood", "score")) for part in parts_of(terms)]
    return [*(replace(one, label="score", scale="signed") if one.name == "logp" else one for one in known), *parts]


def scored(terms: Sequence[str]) -> bool:
    """Whether a run whose terms have these labels is a reward model's: a score has no actions.

    >>> scored(["βσ(−βsu) · r, paired"])
    True
    """
    return any(label.rpartition(" · ")[2].startswith(f"{_SCORE}, ") for label in terms)


def parts_of(terms: Sequence[str]) -> list[Quantity]:
    """What can be looked at of the terms with these labels.

    >>> [q.name for q in parts_of(["clip(r) · ℓ_t, scored"])][:3]
    ['term0.share', 'term0.w', 'term0.v']
    """
    return [
        replace(part, name=factor(k, part.name), term=k + 1, term_label=label)
        for k, label in enumerate(terms)
        for part in PARTS
    ]


def quantities(record: RolloutRecord) -> dict[str, np.ndarray]:
    """By name, one float64 per token; a quantity that the run does not know is left out.

    >>> quantities(RolloutRecord(..., reward=1.0, tokens={"logp": [-1.0], "old": [-1.0]}))["ratio"]
    array([1.])
    """
    found = {name: np.asarray(record.tokens[name], np.float64) for name in _STORED if name in record.tokens}
    logp = found.get("logp")
    if logp is not None:
        for name, base in (("ratio", "old"), ("gap", "sampler")):
            if base in found:
                found[name] = np.exp(np.clip(logp - found[base], -_MOST, _MOST))
        if "ref" in found:
            u = logp - found["ref"]
            found["kl1"] = u
            found["kl3"] = np.expm1(np.clip(-u, -_MOST, _MOST)) + u
    if record.reward is not None and record.role == "sample" and len(record.completion_ids):
        found["reward"] = _placed(record)
    return found | _parts(record)


def _parts(record: RolloutRecord) -> dict[str, np.ndarray]:
    """The factors of each term, and their product; one that was a number at no token is not recorded, and is NaN."""
    found: dict[str, np.ndarray] = {}
    none = np.full(len(record.completion_ids), np.nan)
    for k in range(sum(name.endswith(".share") for name in record.tokens)):
        mine = {name: factor(k, name) for name in FACTORS}
        have = {n: np.asarray(record.tokens[full], np.float64) for n, full in mine.items() if full in record.tokens}
        have = dict.fromkeys(("share", "w", "v", "u", "slope"), none) | have
        have["c"] = have["share"] * have["w"] * have["v"] * have["slope"]
        if "epsilon" not in have:  # measured token by token
            have["epsilon"] = np.where(have["slope"] != 0, record.tokens.get("logp", none) - have["u"], 0.0)
        found |= {factor(k, name): value for name, value in have.items()}
    return found


def _placed(record: RolloutRecord) -> np.ndarray:
    """The reward at the last token that carries loss, and 0 elsewhere: nothing is paid on the way."""
    length = len(record.completion_ids)
    trained = np.asarray(record.tokens.get("trained", np.ones(length)), np.float64) > 0
    placed = np.zeros(length)
    if trained.any():
        placed[np.flatnonzero(trained)[-1]] = record.reward
    return placed


def numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """As JSON has them: what is not finite is null."""
    return [float(v) if np.isfinite(v) else None for v in values]


def summary_of(record: RolloutRecord) -> dict[str, Any]:
    """A completion in a list of them."""
    return {
        "row": record.row,
        "text": record.completion,
        "role": record.role,
        "reward": record.reward,
        "rewards": dict(record.rewards),
        "finish": record.finish,
        "length": len(record.completion_ids),
        "temperature": record.temperature,
        "version": record.version,
    }
