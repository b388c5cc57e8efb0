"""The factors of every coefficient of a recorded step: c = Σ_k share · w · v · ∂φ/∂ℓ, from the run directory alone.

The objective is asked again, on the log-probs and advantages that were recorded.  A run records some groups of an
update, and a share is one over a count of the whole update; but each term is linear in its share, so the factors that
are missing, one for each term, follow from the recorded coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gro.errors import GroError
from gro.evaluation.material import Material, recorded
from gro.evaluation.microscope import Factors, decompose
from gro.objective import Algorithm, EntropyBonus, FromLoss, Term, counts
from gro.objective.weights import ClippedRatio, TruncatedRatio
from gro.runs import RunReader
from gro.training.batching import Minibatch, collate
from gro.types import Batch

TOLERANCE = 1e-4
"""Of the product, relative to the largest coefficient: what float32 arrays cannot say better."""
ALIKE = 1e-3
"""Terms whose coefficients are this close to being in proportion cannot be told apart from float32 sums."""
KNOWN = ("old", "ref", "value", "return")


@dataclass(frozen=True, slots=True, eq=False)
class TermParts:
    """One term of the equation; by the number of the row, then by factor, a number for each token."""

    label: str
    rows: Mapping[int, Mapping[str, Tensor]]
    clips: bool
    """Whether there is a factor `clip`: −1 below the lower bound, 0 inside, 1 above the upper, 2 past the dual one."""
    determined: bool
    """Whether the share is known: a term that pushes nothing here does not tell it."""


@dataclass(frozen=True, slots=True, eq=False)
class StepParts:
    """All terms of a step's first update, for the rows that were recorded."""

    terms: tuple[TermParts, ...]
    error: float
    """Largest difference between the sum of the products and a recorded coefficient, by the largest coefficient."""
    notes: tuple[str, ...]


def parts_of(reader: RunReader, step: int, algorithm: Algorithm, *, whole: bool) -> StepParts:
    """The factors of every recorded token of a step.  whole: all groups of the update were recorded.

    Raises GroError where the run did not record what the algorithm reads.
    """
    material, _ = recorded(reader, step, limit=1_000_000)
    names = [record.row for record in reader.rollouts(step)]
    minibatch, logp_BT, c_BT = _batch(material)
    notes: list[str] = []
    if any(row != place for place, row in enumerate(names)):
        notes.append("completions of other prompts, which this step looked at too, are not recorded")
    terms = [term for term in algorithm.terms if not isinstance(term, EntropyBonus)]
    if len(terms) < len(algorithm.terms):
        notes.append("an entropy bonus pushes whole distributions and is no part of these coefficients")
    algorithm = replace(algorithm, terms=tuple(terms))
    try:
        factors, known = _shared(logp_BT, c_BT, minibatch.batch, algorithm, whole)
    except ValueError as error:  # a slot says what the batch lacks
        raise GroError(f"step {step}: the parts cannot be worked out again: {error}") from error
    total_BT = torch.stack([factor.c_BT for factor in factors]).sum(0) if factors else torch.zeros_like(c_BT)
    largest = c_BT.abs().max().item() if c_BT.numel() else 0.0
    error = (total_BT - c_BT).abs().max().item() / largest if largest else 0.0
    if not error <= TOLERANCE:
        notes.append(
            f"the products differ from the recorded coefficients by up to {error:.2g} of the largest: "
            "this update looked at rows, or at memory of earlier steps, that are not recorded"
        )
    made = [
        TermParts(label_of(term), _by_row(term, factor, logp_BT, minibatch.batch, material, names), _clips(term), yes)
        for term, factor, yes in zip(terms, factors, known, strict=True)
    ]
    return StepParts(tuple(made), error, tuple(notes))


def label_of(term: Any) -> str:
    """A term as people tell them apart.

    >>> label_of(Term(weight=ClippedRatio(), anchor=Anchor("old")))
    'clip(r) · ℓ_t, scored'
    """
    weight = "loss" if isinstance(term, FromLoss) else term.weight.symbol
    return f"{weight} · {term.unit.symbol}, {term.rows}"


def _batch(material: Material) -> tuple[Minibatch, Tensor, Tensor]:
    """The update as far as it was recorded, its log-probs and its coefficients."""
    minibatch = collate(material.groups, length_limit=material.length_limit or _longest(material))
    batch, places = minibatch.batch, material.places
    width = batch.mask_BT.shape[1]
    for name in ("logp", "coefficient"):
        if not any(name in material.tokens[place] for place in places):
            raise GroError(f"this step recorded no {name}: the policy made no update in it")

    def known(name: str) -> Tensor:
        out_BT = torch.zeros(len(places), width, dtype=torch.float64)
        for b, place in enumerate(places):
            if name in material.tokens[place]:
                values_T = torch.tensor(material.tokens[place][name], dtype=torch.float64)
                out_BT[b, : len(values_T)] = values_T
        return out_BT

    found = {name: known(name) for name in KNOWN if any(name in material.tokens[place] for place in places)}
    batch = replace(
        batch,
        old_BT=found.get("old", known("logp")),
        ref_BT=found.get("ref"),
        values_BT=found.get("value"),
        returns_BT=found.get("return"),
        advantage_BX=_narrow(known("advantage"), batch.mask_BT),
    )
    return Minibatch(minibatch.groups, batch), known("logp"), known("coefficient")


def _longest(material: Material) -> int:
    return max(len(material.completion(place).ids) for place in material.places)


def _narrow(advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, 1] where every completion has one advantage, else [B, T]."""
    if not mask_BT.shape[1]:
        return advantage_BT.new_zeros(len(mask_BT), 1)
    high_B1 = advantage_BT.masked_fill(~mask_BT, -math.inf).amax(1, keepdim=True)
    low_B1 = advantage_BT.masked_fill(~mask_BT, math.inf).amin(1, keepdim=True)
    one = bool(((high_B1 == low_B1) | ~mask_BT.any(1, keepdim=True)).all())
    return high_B1.masked_fill(~mask_BT.any(1, keepdim=True), 0.0) if one else advantage_BT


def _shared(
    logp_BT: Tensor, c_BT: Tensor, batch: Batch, algorithm: Algorithm, whole: bool
) -> tuple[list[Factors], list[bool]]:
    """The factors with the update's own shares, and of which terms these are known."""
    if whole:
        factors = list(decompose(logp_BT, replace(batch, counts_K=counts(batch, algorithm)), algorithm))
        total_BT = torch.stack([factor.c_BT for factor in factors]).sum(0)
        if (total_BT - c_BT).abs().max().item() <= TOLERANCE * c_BT.abs().max().item():
            return factors, [True] * len(factors)
    ones_K = (1.0,) * len(algorithm.terms)
    factors = list(decompose(logp_BT, replace(batch, counts_K=ones_K), algorithm))
    fitted, known = _fit([factor.c_BT[batch.mask_BT] for factor in factors], c_BT[batch.mask_BT])
    return [replace(f, share_BT=f.share_BT * scale) for f, scale in zip(factors, fitted, strict=True)], known


def _fit(columns_K: Sequence[Tensor], c_N: Tensor) -> tuple[list[float], list[bool]]:
    """By what each term's coefficients with a count of 1 are multiplied (scale over count), and which of it is told.

    A term that pushes nothing gets 0 and is not told; of terms that push in proportion only the sum is told.

    >>> _fit([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])], torch.tensor([1.0, 0.0]))
    ([0.5, 0.0], [True, False])
    """
    sizes = [float(column.norm()) for column in columns_K]
    seen = [k for k, size in enumerate(sizes) if size > 0]
    scales, known = [0.0] * len(columns_K), [False] * len(columns_K)
    if seen:
        unit_NS = torch.stack([columns_K[k].double() / sizes[k] for k in seen], 1)
        solved_S = torch.linalg.lstsq(unit_NS, c_N.double()[:, None], driver="gelsd").solution[:, 0]
        apart = float(torch.linalg.svdvals(unit_NS)[-1]) > ALIKE
        for k, value in zip(seen, solved_S.tolist(), strict=True):
            scales[k], known[k] = value / sizes[k], apart
    return scales, known


def _clips(term: Any) -> bool:
    return isinstance(term, Term) and isinstance(term.weight, ClippedRatio | TruncatedRatio)


def _by_row(
    term: Any, factor: Factors, logp_BT: Tensor, batch: Batch, material: Material, names: Sequence[int]
) -> dict[int, dict[str, Tensor]]:
    unit = term.unit if isinstance(term, FromLoss) else (term.measure or term.unit)
    measured_BT = unit(logp_BT, batch.mask_BT).expand_as(logp_BT)
    inside_BT = factor.slope_BT != 0
    all_BT = {
        "share": factor.share_BT,
        "w": factor.w_BT,
        "v": factor.v_BT,
        "u": factor.u_BT,
        "epsilon": (measured_BT - factor.u_BT).masked_fill(~inside_BT, 0.0),
        "slope": factor.slope_BT,
        "c": factor.c_BT,
    }
    if isinstance(term, Term) and isinstance(term.weight, ClippedRatio | TruncatedRatio):
        all_BT["clip"] = _clip_state(term.weight, factor)
    rows: dict[int, dict[str, Tensor]] = {}
    for b, (place, name) in enumerate(zip(material.places, names, strict=True)):
        n = len(material.completion(place).ids)
        rows[name] = {key: value_BT[b, :n] for key, value_BT in all_BT.items()}
    return rows


def _clip_state(weight: ClippedRatio | TruncatedRatio, factor: Factors) -> Tensor:
    """[B, T] −1, 0, 1 or 2: on which side the ratio has left the region, where that side is clipped."""
    r_BT = factor.u_BT.clamp(-20, 20).exp()
    inside_BT = factor.slope_BT != 0
    state_BT = torch.zeros_like(r_BT)
    if isinstance(weight, TruncatedRatio):
        state_BT[inside_BT & (r_BT > weight.high)] = 1
        state_BT[inside_BT & (r_BT < weight.low)] = -1
        return state_BT
    state_BT[inside_BT & (factor.v_BT > 0) & (r_BT > 1 + weight.high)] = 1
    state_BT[inside_BT & (factor.v_BT < 0) & (r_BT < 1 - weight.low)] = -1
    if weight.dual is not None:
        state_BT[inside_BT & (factor.v_BT < 0) & (r_BT > weight.dual)] = 2
    return state_BT
