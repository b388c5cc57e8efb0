"""Checks of the gradient and the value: against a loss as a paper writes it, and against one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gro import objective
from gro.conformance.check import Measurement, Subject, check, claim, measure
from gro.conformance.updates import as_a_paper_sees_it
from gro.objective import Term

EXACT = 1e-10
SEEDS = range(3)


@check("Compare the slots with the loss, one at a time: `gro algorithms` prints the formula that is computed.")
def gradient(subject: Subject) -> Iterator[Measurement]:
    """The gradient is that of the loss as it is written down."""
    if subject.loss is None:
        return
    for seed in SEEDS:
        logp_BT, batch = subject.update(seed)
        leaf_BT = logp_BT.clone().requires_grad_()
        loss = subject.loss(as_a_paper_sees_it(leaf_BT, batch))
        (gradient_BT,) = torch.autograd.grad(loss, leaf_BT, allow_unused=True, materialize_grads=True)
        yield claim(bool(gradient_BT.any()), f"seed {seed}", "the loss has no gradient here: nothing to compare")
        yield measure(-subject.pulls(logp_BT, batch), gradient_BT, f"seed {seed}", limit=EXACT, relative=EXACT)


@check("Write the weight's potential P with −dP/du = w·v, or let it return None if the loss has no such value.")
def value(subject: Subject) -> Iterator[Measurement]:
    """The value is that of the loss as it is written down."""
    if subject.loss is None:
        return
    for seed in SEEDS:
        logp_BT, batch = subject.update(seed)
        loss = subject.loss(as_a_paper_sees_it(logp_BT, batch))
        yield measure(subject.value(logp_BT, batch), loss.detach(), f"seed {seed}", limit=EXACT, relative=EXACT)


@check("−dP/du must be w·v: correct the weight's potential, or let it return None.")
def potential(subject: Subject) -> Iterator[Measurement]:
    """Every weight's potential is its antiderivative: the loss's value belongs to its gradient."""
    random = torch.Generator().manual_seed(0)
    for k, term in enumerate(subject.algorithm.terms, 1):
        if not isinstance(term, Term):
            continue
        u, u2, a = 4 * torch.randn(3, 300, 1, 1, generator=random, dtype=torch.float64)
        a[:30] = 0.0
        v = term.value(a)
        second = u2 if term.second is not None else None
        move = torch.zeros_like(u, requires_grad=True)
        moved = second if second is None else second + move
        found = term.weight.potential(u + move, v, a, moved)
        if found is None:
            continue
        (slope,) = torch.autograd.grad(found.sum(), move, allow_unused=True, materialize_grads=True)
        expected = -term.weight(u, v, a, second) * v
        yield measure(slope, expected, f"term {k}, 300 random u", limit=1e-9, relative=1e-9)


@check("A unit must be differentiable in the log-probs; weight, value and anchor are held constant.")
def surrogate(subject: Subject) -> Iterator[Measurement]:
    """The surrogate's gradient is the coefficients', whatever computed the log-probs."""
    logp_BT, batch = subject.update()
    parameters_BT = logp_BT.nan_to_num(0, 0, 0).clone().requires_grad_()
    computed_BT = parameters_BT - 0.1 * parameters_BT.square()
    loss = objective.surrogate(computed_BT, batch, subject.algorithm)
    (gradient_BT,) = torch.autograd.grad(loss, parameters_BT, allow_unused=True, materialize_grads=True)
    c_BT = subject.pulls(computed_BT, batch)
    yield claim(not c_BT.requires_grad, "seed 0", "the coefficients carry a gradient")
    yield measure(gradient_BT, -c_BT * (1 - 0.2 * parameters_BT.detach()), "seed 0", limit=1e-12)
