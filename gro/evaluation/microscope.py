"""Algorithms under a microscope: what each does to the tokens of one batch, why, and how alike their gradients are.

Shapes: A algorithms, P parameters; the others as in `gro.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gro.errors import GroError
from gro.evaluation.material import Material, Place, nothing_selected, why_not, with_drift
from gro.objective import Algorithm, loss_value
from gro.objective.factors import decompose
from gro.policy.policy import Policy
from gro.training import learner
from gro.training.batching import Minibatch
from gro.training.prepare import score
from gro.types import Batch

TOKENS_PER_MICRO = 8192
"""Of a forward pass; it cannot change the result."""
FACTORS = ("share", "w", "v", "u", "slope")
"""Of a term, as they are reported; slope is ∂φ/∂ℓ."""
_AT_ONCE = 2**20
"""Numbers of all algorithms together that are summed in double precision at a time."""


def gradient(
    policy: Policy, algorithm: Algorithm, minibatch: Minibatch, tokens_per_micro: int
) -> tuple[learner.Seen, Tensor]:
    """What an update would see, and [P] the exact gradient of its loss by all trained weights, on the host."""
    policy.model.zero_grad(set_to_none=True)
    seen = learner.accumulate(policy, algorithm, minibatch, tokens_per_micro)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    flat_P = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    policy.model.zero_grad(set_to_none=True)
    return seen, flat_P.cpu()


def cosines(vectors_A: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """([A] norms, [A, A] cosines) of vectors of equal length, in double precision; NaN with one that is 0."""
    products_AA = torch.zeros(len(vectors_A), len(vectors_A), dtype=torch.float64)
    length = _AT_ONCE // len(vectors_A) + 1
    for parts in zip(*(v.split(length) for v in vectors_A), strict=True):
        part_AP = torch.stack(parts).double()
        products_AA += part_AP @ part_AP.T
    norms_A = products_AA.diagonal().sqrt()
    return norms_A, (products_AA / (norms_A[:, None] * norms_A[None, :])).clamp(-1, 1)


def by_likeness(cosines_AA: Tensor) -> list[int]:
    """An order in which like stands beside like: that of average linkage on 1 − cosine; NaN counts as 0.

    The two clusters whose members have the highest mean cosine are joined, again and again.
    """
    like_AA = cosines_AA.nan_to_num(0.0)
    clusters = [[i] for i in range(len(like_AA))]
    while len(clusters) > 1:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        i, j = max(pairs, key=lambda ij: float(like_AA[clusters[ij[0]]][:, clusters[ij[1]]].mean()))
        clusters[i] += clusters.pop(j)
    return clusters[0]


def same_direction(cosines_AA: Tensor, tolerance: float = 1e-5) -> list[list[int]]:
    """Who pushes the same way, up to rounding, as an earlier one; classes in the order of their first members."""
    classes: list[list[int]] = []
    for i in range(len(cosines_AA)):
        like = next((c for c in classes if float(cosines_AA[c[0], i]) > 1 - tolerance), None)
        if like is None:
            classes.append([i])
        else:
            like.append(i)
    return classes


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A completion of the material, to be read."""

    place: Place
    prompt: str
    tokens: tuple[str, ...]
    role: str
    reward: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one algorithm does with the material.  A completion that it leaves out has coefficients and factors of 0."""

    label: str
    loss: float
    c: tuple[Tensor, ...]
    """By completion, [T]: the coefficients."""
    terms: tuple[dict[str, tuple[Tensor, ...]], ...]
    """By term and factor (one of FACTORS), and then as `c`."""


class Microscope:
    """One policy and one material, on which algorithms are looked at in turn."""

    def __init__(self, policy: Policy, material: Material, reference: Policy | None = None, drift: float = 0.0) -> None:
        """reference: None takes what a run recorded, or else the policy itself.  drift: see `with_drift`; 0: none."""
        self.policy, self.reference, self.drift = policy, reference, drift
        if drift:
            material = with_drift(material, score(policy, material.groups, TOKENS_PER_MICRO), drift)
        self.material = material
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for that which the algorithms read."""
        return tuple(self._notes)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The completions."""
        decode = self.policy.tokenizer.decode
        return tuple(
            Row((g, i), str(decode(list(group.prompt.ids))), tuple(str(decode([t])) for t in c.ids), c.role, c.reward)
            for g, group in enumerate(self.material.groups)
            for i, c in enumerate(group.completions)
        )

    def look(self, label: str, algorithm: Algorithm) -> tuple[Seen, Tensor]:
        """What the algorithm does, and its gradient; GroError with the reason where it cannot learn from the material.

        A credit starts without any memory of earlier steps.
        """
        if (reason := why_not(algorithm, self.material)) is not None:
            raise GroError(reason)
        minibatch, places = self.material.shaped(algorithm, self.policy.device)
        batch = self._with_bases(minibatch, places, algorithm)
        advantage_BX, _ = algorithm.credit(batch, {})
        minibatch = Minibatch(minibatch.groups, replace(batch, advantage_BX=advantage_BX))
        if (reason := nothing_selected(algorithm, minibatch)) is not None:
            raise GroError(reason)
        seen, gradient_P = gradient(self.policy, algorithm, minibatch, TOKENS_PER_MICRO)
        terms = tuple(
            {name: self._by_place(getattr(term, f"{name}_BT"), places) for name in FACTORS}
            for term in decompose(seen.logp_BT, seen.batch, algorithm)
        )
        loss = loss_value(seen.logp_BT, seen.batch, algorithm).item()
        return Seen(label, loss, self._by_place(seen.c_BT, places), terms), gradient_P

    def _with_bases(self, minibatch: Minibatch, places: Sequence[Place | None], algorithm: Algorithm) -> Batch:
        """The batch with the log-probs and values that the algorithm reads."""
        batch = minibatch.batch
        if "ref" in algorithm.reads:
            batch = replace(batch, ref_BT=self._reference(minibatch, places))
        if algorithm.looks_back and self.material.knows("old"):
            batch = replace(batch, old_BT=self._known("old", batch, places))
            self._note("old policy", f"the model, {self.drift:g} nats of noise away" if self.drift else "of the run")
        elif algorithm.looks_back:
            self._note("old policy", "the model itself, so every ratio is 1")
            if "old" in algorithm.credit.reads:  # before the update's own forward pass could say it
                batch = replace(batch, old_BT=self._score(self.policy, minibatch))
        if "values" in algorithm.reads:
            there = self.material.knows("value")
            values_BT = self._known("value", batch, places) if there else torch.zeros(batch.mask_BT.shape)
            batch = replace(batch, values_BT=values_BT.to(batch.mask_BT.device))
            self._note("the critic's values", "of the run" if there else "0 everywhere")
        return batch

    def _reference(self, minibatch: Minibatch, places: Sequence[Place | None]) -> Tensor:
        if self.reference is not None:
            return self._score(self.reference, minibatch)
        if not self.material.knows("ref"):
            self._note("reference", "the model itself, so every log-ratio to it is 0")
            return self._score(self.policy, minibatch)
        if None in places:
            raise GroError("the run did not record what its reference says of other prompts' completions; name it")
        self._note("reference", "of the run")
        return self._known("ref", minibatch.batch, places)

    def _known(self, name: str, batch: Batch, places: Sequence[Place | None]) -> Tensor:
        return self.material.known(name, places, batch.mask_BT.shape[1]).to(batch.mask_BT.device)

    def _score(self, policy: Policy, minibatch: Minibatch) -> Tensor:
        return score(policy, minibatch.groups, TOKENS_PER_MICRO, width=minibatch.batch.mask_BT.shape[1])

    def _note(self, what: str, which: str) -> None:
        self._notes[f"{what}: {which}"] = None

    def _by_place(self, values_BT: Tensor, places: Sequence[Place | None]) -> tuple[Tensor, ...]:
        """[T] for every completion of the material; zeros for those that are not in the algorithm's batch."""
        at = {place: b for b, place in enumerate(places)}
        lengths = {place: len(self.material.completion(place).ids) for place in self.material.places}
        zero_BT = torch.zeros(1, max(lengths.values()), dtype=values_BT.dtype)
        return tuple(values_BT[at[place], :n].cpu() if place in at else zero_BT[0, :n] for place, n in lengths.items())
