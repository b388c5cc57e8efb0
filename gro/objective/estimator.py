"""The equation.  Every algorithm is one weighted log-likelihood gradient:

    loss = − Σ_k Σ_i share_ki · stop_gradient[ w_k(u_ki, A_i) · v_k(A_i) ] · φ_k(log π_θ)_i
    u_ki = stop_gradient[ measure_k(log π_θ)_i − ε_ki ]

(GRO: "One Framework to Rule Them All: Unifying RL-Based and RL-Free Methods in RLHF", eq. 35–37, with the unit φ, the
measure and the share made explicit.)  An algorithm is a credit and a tuple of terms; `coefficients`, `surrogate` and
`loss_value` are all that training needs of it, and they work on plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gro.objective.anchors import Scope, kl_estimate, nothing
from gro.objective.credit import Credit, Labels
from gro.objective.critic import Critic
from gro.objective.terms import AnyTerm, EntropyBonus, Selection, Term, select, widest
from gro.objective.units import score
from gro.objective.values import one
from gro.objective.weights import plain
from gro.types import Batch


@dataclass(frozen=True)
class TrustRegion:
    """TRPO's step in place of an optimizer's (Schulman et al. 2015, appendix C).

    Direction x from `cg_steps` of conjugate gradient on (F + damping·I)x = g, F the exact Fisher matrix; length
    √(2δ/xᵀFx) times the first of 1, b, b², … (`backtracks` of them, b = `backtrack`) at which the loss improves and
    the mean KL(old‖θ) is at most δ; no step where there is none.
    """

    delta: float = 0.01
    cg_steps: int = 10
    damping: float = 0.1
    backtrack: float = 0.8
    backtracks: int = 10


@dataclass(frozen=True)
class Algorithm:
    """A value: a credit and the terms of the equation.  Training derives everything else from what they read."""

    name: str
    credit: Credit
    terms: tuple[AnyTerm, ...]
    paper: str = ""
    """URL of the source."""
    equation: str = ""
    """Where in it the loss stands."""
    critic: Critic | None = None
    """How the critic learns, where the credit reads values."""
    max_kl: float | None = None
    """The passes over a batch end once the mean KL(old‖θ) per token is above this."""
    step: TrustRegion | None = None
    """None: the optimizer's."""

    def __post_init__(self) -> None:
        if ("values" in self.credit.reads) != (self.critic is not None):
            raise ValueError(f"{self.name}: a critic is declared exactly where the credit reads values")

    @property
    def reads(self) -> frozenset[str]:
        """Which of 'old', 'ref', 'values', 'greedy' must be prepared."""
        return self.credit.reads.union(*(t.reads for t in self.terms))

    @property
    def looks_back(self) -> bool:
        """Whether it asks how far the policy is from the old one: a slot, a factor that adapts, or `max_kl`."""
        return "old" in self.reads or self.adapts or self.max_kl is not None

    @property
    def scope(self) -> Scope:
        """How far the terms look across rows: what a micro-batch may not split."""
        return widest(t.scope for t in self.terms)

    @property
    def roles(self) -> frozenset[Selection]:
        return frozenset(t.rows for t in self.terms)

    @property
    def pairs(self) -> bool:
        """Whether a prompt's samples are learnt from as one pair: of several, the best against the worst."""
        return bool(self.roles & {"paired", "chosen"}) and "scored" not in self.roles

    @property
    def compares(self) -> bool:
        """Whether answers to a prompt are only compared with each other, so that equally good ones teach nothing."""
        pushing = [t.value for t in self.terms if isinstance(t, Term) and t.rows == "scored" and t.value != one]
        together = self.credit.group_size > 1 or self.pairs or isinstance(self.credit, Labels)
        return together and all(float(value(torch.zeros(1, 1))) == 0 for value in pushing)

    @property
    def rewarded(self) -> bool:
        """Whether samples must have rewards (or labels)."""
        gated = any(isinstance(t, Term) and t.gate is not None for t in self.terms)
        return gated or not self.roles <= {"targets", "versus"}

    @property
    def single_update(self) -> bool:
        """Whether it is right for one update per batch only: plain policy gradient with nothing that knows old."""
        return any(
            isinstance(t, Term)
            and t.rows == "scored"
            and t.weight == plain
            and t.anchor == nothing
            and not t.value.imitates
            for t in self.terms
        )

    @property
    def scores(self) -> bool:
        """Whether it trains a reward model: what its terms differentiate is a score."""
        return any(t.unit == score for t in self.terms)

    @property
    def beside(self) -> bool:
        """Whether demonstrations must come with samples of the same prompt, to be compared or chosen between."""
        gated = any(isinstance(t, Term) and t.rows == "targets" and t.gate is not None for t in self.terms)
        return gated or "versus" in self.roles

    @property
    def mismatches(self) -> bool:
        """Whether the next prompt's completion is scored too (KTO's KL estimate)."""
        return any(isinstance(t, Term) and kl_estimate in t.anchor.shifts for t in self.terms)

    def adapted(self, scales_K: tuple[float, ...] | None, kl: float) -> tuple[float, ...]:
        """The terms' factors after a step whose mean KL(old‖θ) per token came out at `kl`."""
        scales_K = scales_K or (1.0,) * len(self.terms)
        pairs = zip(self.terms, scales_K, strict=True)
        return tuple(t.adapt(s, kl) if isinstance(t, Term) and t.adapt is not None else s for t, s in pairs)

    @property
    def adapts(self) -> bool:
        """Whether a term's factor moves with the KL of the steps."""
        return any(isinstance(t, Term) and t.adapt is not None for t in self.terms)


def counts(batch: Batch, algorithm: Algorithm) -> tuple[float, ...]:
    """This batch's contribution to each term's global denominator; sums over batches and processes are exact."""
    return tuple(t.share.count(select(t.rows, batch), batch) for t in algorithm.terms)


def surrogate(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """Loss whose gradient is that of the objective; its value means nothing (see `loss_value`).

    logp_BT: [B, T] log-probs at the current parameters, any floating dtype.  The batch holds the advantage (see
    `credit`), the base log-probs the algorithm reads, and optionally the global counts.
    """
    _check(logp_BT, batch)
    return _total(t.surrogate(logp_BT, batch, n) for t, n in counted(batch, algorithm))


def coefficients(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """c_BT [B, T] = −∂loss/∂logp: what each token's log-prob is multiplied by in the update's gradient."""
    with torch.enable_grad():
        logp_BT = logp_BT.detach().requires_grad_()
        loss = surrogate(logp_BT, batch, algorithm)
        (gradient_BT,) = torch.autograd.grad(loss, logp_BT, allow_unused=True, materialize_grads=True)
    return -gradient_BT


def entropy_coefficients(batch: Batch, algorithm: Algorithm) -> Tensor | None:
    """e_BT [B, T] = −∂loss/∂H, H the entropy at each token; None where no term looks at it."""
    pushes = [t.push_BT(batch, n) for t, n in counted(batch, algorithm) if isinstance(t, EntropyBonus)]
    return torch.stack(pushes).sum(0) if pushes else None


def loss_value(logp_BT: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """The value of the paper's loss, without gradient; −Σ share·w·v·φ for terms whose paper detaches its ratio."""
    _check(logp_BT, batch)
    return _total(t.loss_value(logp_BT, batch, n) for t, n in counted(batch, algorithm))


def counted(batch: Batch, algorithm: Algorithm) -> list[tuple[AnyTerm, float | None]]:
    """The terms at their present scales, each with its denominator."""
    terms = algorithm.terms
    if batch.scales_K is not None:
        pairs = zip(terms, batch.scales_K, strict=True)
        terms = tuple(replace(t, scale=t.scale * s) if isinstance(t, Term) else t for t, s in pairs)
    return list(zip(terms, batch.counts_K or (None,) * len(terms), strict=True))


def _total(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(tuple(losses)).sum()


def _check(logp_BT: Tensor, batch: Batch) -> None:
    if logp_BT.shape != batch.mask_BT.shape:
        raise ValueError(f"logp_BT is {list(logp_BT.shape)}, the batch's mask {list(batch.mask_BT.shape)}")
