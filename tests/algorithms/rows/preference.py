"""Losses of the preference family, as their papers write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import updates
from algorithms.table import log_ratio, row, v
from algorithms.updates import Completion, Update


def over_pairs(update: Update, loss: Callable[[Completion, Completion], Tensor]) -> Tensor:
    """The mean over pairs of loss(better, worse)."""
    return torch.stack([loss(better, worse) for better, worse in update.pairs]).mean()


def measured(y: Completion, unit: str) -> Tensor:
    return log_ratio(y) / len(y.logp) if unit == "average" else log_ratio(y)


@row(
    "dpo",
    updates.pairs,
    v(),
    v(beta=0.5),
    v(beta=0.3, label_smoothing=0.1),
    v(margin=0.7, label_smoothing=0.2),
    v(beta=0.4, label_smoothing=0.2, robust=True),
    v(beta=0.3, robust=True, label_smoothing=0.1, margin=-0.2),
    v(beta=0.2, data_margin=0.5),
    v(beta=2.0, data_margin=0.8, margin=0.3, unit="average"),
)
def dpo(
    update: Update,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    robust: bool = False,
    margin: float = 0.0,
    data_margin: float = 0.0,
    unit: str = "total",
) -> Tensor:
    """Rafailov et al. 2023, eq. 7; label smoothing, Mitchell 2023, eq. 3; robust, Chowdhury et al. 2024, eq. 11."""

    def loss(better: Completion, worse: Completion) -> Tensor:
        x = beta * (measured(better, unit) - measured(worse, unit)) - margin - data_margin * better.margin
        kept, flipped = -F.logsigmoid(x), -F.logsigmoid(-x)
        if robust:
            return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
        return (1 - label_smoothing) * kept + label_smoothing * flipped

    return over_pairs(update, loss)


@row("ipo", updates.pairs, v(), v(beta=0.7), v(beta=0.3, unit="average"))
def ipo(update: Update, beta: float = 0.1, unit: str = "total") -> Tensor:
    """Azar et al. 2023, eq. 17."""
    return over_pairs(update, lambda y, z: (measured(y, unit) - measured(z, unit) - 1 / (2 * beta)).square())


@row(
    "gpo",
    updates.pairs,
    v(),
    v(loss="hinge", beta=0.5),
    v(loss="squared", beta=0.3),
    v(loss="exponential"),
    v(loss="truncated_quadratic", beta=0.5),
    v(loss="savage", beta=0.5),
)
def gpo(update: Update, loss: str = "logistic", beta: float = 0.1) -> Tensor:
    """Tang et al. 2024, table 1."""
    f: dict[str, Callable[[Tensor], Tensor]] = {
        "logistic": lambda x: torch.log(1 + torch.exp(-x)),
        "hinge": lambda x: torch.relu(1 - x),
        "squared": lambda x: (x - 1) ** 2,
        "exponential": lambda x: torch.exp(-x),
        "truncated_quadratic": lambda x: torch.relu(1 - x) ** 2,
        "savage": lambda x: 1 / (1 + torch.exp(x)) ** 2,
    }
    return over_pairs(update, lambda y, z: f[loss](beta * (log_ratio(y) - log_ratio(z))))


@row("exo", updates.pairs, v(), v(beta=0.5, label_smoothing=0.1))
def exo(update: Update, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """Ji et al. 2024, eq. 16: KL(p‖q), p the softmax of the pair's βh and q the smoothed label."""

    def loss(better: Completion, worse: Completion) -> Tensor:
        log_p = torch.stack([beta * log_ratio(better), beta * log_ratio(worse)]).log_softmax(0)
        q = torch.tensor([1 - label_smoothing, label_smoothing], dtype=torch.float64)
        return (log_p.exp() * (log_p - q.log())).sum()

    return over_pairs(update, loss)


@row(
    "slic",
    updates.pairs,
    v(),
    v(delta=3.0, imitation=0.5),
    v(delta=0.5, imitation=0.0),
    v(delta=2.0, reference="demonstration", imitation=0.3),
)
def slic(update: Update, delta: float = 1.0, imitation: float = 0.1, reference: str = "chosen") -> Tensor:
    """Zhao et al. 2023, eq. 1: max(0, δ − log π(y₊) + log π(y₋)) − λ log π(y_ref)."""
    imitated = [y for y, _ in update.pairs] if reference == "chosen" else update.targets
    calibration = over_pairs(update, lambda y, z: torch.relu(delta - y.logp.sum() + z.logp.sum()))
    return calibration - imitation * torch.stack([y.logp.sum() for y in imitated]).mean()


@row("simpo", updates.pairs, v(), v(beta=10.0, gamma=0.0), v(beta=0.5, gamma=0.3))
def simpo(update: Update, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """Meng et al. 2024, eq. 6."""
    return over_pairs(update, lambda y, z: -F.logsigmoid(beta * y.logp.mean() - beta * z.logp.mean() - gamma))


@row("orpo", updates.pairs, v(), v(odds=1.0), v(odds=0.0, rests=False))
def orpo(update: Update, odds: float = 0.1) -> Tensor:
    """Hong et al. 2024, eq. 6 and 7, odds p/(1 − p) of p = exp(average log-likelihood)."""

    def log_odds(y: Completion) -> Tensor:
        p = y.logp.mean().exp()
        return torch.log(p / (1 - p))

    return over_pairs(update, lambda y, z: -y.logp.mean() - odds * F.logsigmoid(log_odds(y) - log_odds(z)))


@row("cpl", updates.pairs, v(), v(beta=1.0, bias=0.7, gamma=0.9), v(beta=0.3, bias=1.0))
def cpl(update: Update, beta: float = 0.1, bias: float = 0.5, gamma: float = 1.0) -> Tensor:
    """Hejna et al. 2024: −log[e^{βd₊}/(e^{βd₊} + e^{βb·d₋})], d = Σ_t γ^t log π, t from 0."""

    def discounted(y: Completion) -> Tensor:
        return torch.stack([gamma**t * logp for t, logp in enumerate(y.logp)]).sum()

    def loss(better: Completion, worse: Completion) -> Tensor:
        won, lost = beta * discounted(better), beta * bias * discounted(worse)
        return -won + torch.log(won.exp() + lost.exp())

    return over_pairs(update, loss)
