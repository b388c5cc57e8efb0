"""Over-optimisation of a proxy reward: how a gold reward goes with the distance from the start, and where it turns.

Gao, Schulman and Hilton 2022, https://arxiv.org/abs/2210.10760.  The distance is d = √KL(policy‖start), and a reward is
measured from its mean at the start, so that it is 0 at d = 0.

    P  prompts     K  points along the way (numbers of samples, or steps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy import ndarray

FEWEST = 3
"""Points away from the start: two coefficients, and one degree of freedom for their errors."""


class Form(Protocol):
    """A shape of the reward over the distance, linear in its two coefficients."""

    @property
    def symbol(self) -> str: ...

    def basis(self, d_K: ndarray) -> ndarray:
        """[K, 2] what α and β are multiplied by."""
        ...

    def peak(self, alpha: float, beta: float) -> float:
        """The distance at which it is highest; α and β are positive."""
        ...

    def peak_gradient(self, alpha: float, beta: float) -> tuple[float, float]:
        """Derivatives of the peak by α and β."""
        ...


@dataclass(frozen=True)
class BestOfN:
    """d(α − βd), Gao et al. 2022, eq. for best-of-n in sec. 1; highest at α/2β.

    >>> BestOfN().peak(1.0, 0.2)
    2.5
    """

    symbol: str = "d(α − βd)"

    def basis(self, d_K: ndarray) -> ndarray:
        return np.stack([d_K, -(d_K**2)], 1)

    def peak(self, alpha: float, beta: float) -> float:
        return alpha / (2 * beta)

    def peak_gradient(self, alpha: float, beta: float) -> tuple[float, float]:
        return 1 / (2 * beta), -alpha / (2 * beta**2)


@dataclass(frozen=True)
class Learning:
    """d(α − β log d), Gao et al. 2022, eq. for reinforcement learning in sec. 1; highest at e^(α/β − 1).

    >>> Learning().peak(1.0, 0.3)
    10.31...
    """

    symbol: str = "d(α − β log d)"

    def basis(self, d_K: ndarray) -> ndarray:
        safe_K = np.where(d_K > 0, d_K, 1.0)  # d log d → 0 at 0
        return np.stack([d_K, -d_K * np.log(safe_K)], 1)

    def peak(self, alpha: float, beta: float) -> float:
        return _exp(alpha / beta - 1)

    def peak_gradient(self, alpha: float, beta: float) -> tuple[float, float]:
        peak = self.peak(alpha, beta)
        return peak / beta, -peak * alpha / beta**2


@dataclass(frozen=True, slots=True)
class Fit:
    """The coefficients of a form with their standard errors.

    >>> fit([1, 2, 3, 4], [0.8, 1.2, 1.2, 0.8], BestOfN())
    Fit(form='d(α − βd)', alpha=1.0, beta=0.2, ..., peak=2.5, ..., height=1.25)
    """

    form: str
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    r2: float
    """1 − squared residuals / squared deviations from the mean; of the curve averaged over prompts."""
    peak: float | None
    """The distance at which the form is highest; None where it never turns down (β ≤ 0) or never rises (α ≤ 0)."""
    peak_error: float | None
    """By the delta method."""
    height: float | None
    """The form's value there."""


def fit(d_K: Sequence[float] | ndarray, reward: Sequence[float] | ndarray, form: Form) -> Fit:
    """Least squares over the points; raises ValueError where fewer than FEWEST have a distance above 0.

    reward: [K] numbers with independent noise, or [P, K] the curves of prompts.  The points of a curve share their
    samples, so their noise is anything but independent; prompts are independent draws.  The coefficients are linear in
    the rewards, those of the mean curve are the mean of the prompts' own, and that mean has a standard error.
    """
    d_K, reward_PK = np.asarray(d_K, np.float64), np.atleast_2d(np.asarray(reward, np.float64))
    if d_K.ndim != 1 or reward_PK.shape[1:] != d_K.shape:
        raise ValueError(f"{d_K.shape} distances for rewards of shape {np.shape(reward)}")
    away_K = d_K > 0  # at the start both are 0, whatever the coefficients
    if away_K.sum() < FEWEST:
        raise ValueError(
            f"two coefficients need at least {FEWEST} points away from the start; there are {away_K.sum()}"
        )
    basis_K2, reward_PK = form.basis(d_K[away_K]), reward_PK[:, away_K]
    solve_2K = np.linalg.pinv(basis_K2)
    coefficient_P2 = reward_PK @ solve_2K.T
    alpha, beta = (float(c) for c in coefficient_P2.mean(0))
    mean_K = reward_PK.mean(0)
    residual_K = mean_K - basis_K2 @ np.array([alpha, beta])
    squares = float(residual_K @ residual_K)
    if len(reward_PK) > 1:
        covariance_22 = np.cov(coefficient_P2.T) / len(reward_PK)
    else:
        covariance_22 = squares / (len(mean_K) - 2) * solve_2K @ solve_2K.T
    peak = peak_error = height = None
    if alpha > 0 and beta > 0:
        peak, gradient_2 = form.peak(alpha, beta), np.array(form.peak_gradient(alpha, beta))
        peak_error = float(np.sqrt(gradient_2 @ covariance_22 @ gradient_2)) if math.isfinite(peak) else math.inf
        height = float((form.basis(np.array([peak])) @ np.array([alpha, beta]))[0])
    total = float(((mean_K - mean_K.mean()) ** 2).sum())
    return Fit(
        form=form.symbol,
        alpha=alpha,
        beta=beta,
        alpha_error=float(np.sqrt(covariance_22[0, 0])),
        beta_error=float(np.sqrt(covariance_22[1, 1])),
        r2=1 - squares / total if total > 0 else math.nan,
        peak=peak,
        peak_error=peak_error,
        height=height,
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a measured curve is highest, and whether it has come down since."""

    place: int
    """Which point."""
    d: float
    reward: float
    drop: float
    """From there to the last point."""
    drop_error: float
    """Standard error over prompts, of the difference of the same prompts."""

    @property
    def turned(self) -> bool:
        """The last point is lower by more than two standard errors."""
        return self.drop > 2 * self.drop_error


def turn(d_K: Sequence[float] | ndarray, reward_PK: ndarray) -> Turn:
    """The highest point of the mean curve.

    >>> turn([0, 1, 2], np.array([[0, 2, 1], [0, 4, 3]]))
    Turn(place=1, d=1.0, reward=3.0, drop=1.0, drop_error=0.0)
    """
    mean_K = reward_PK.mean(0)
    place = int(mean_K.argmax())
    drop_P = reward_PK[:, place] - reward_PK[:, -1]
    return Turn(place, float(d_K[place]), float(mean_K[place]), float(drop_P.mean()), standard_error(drop_P))


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One optimisation of a proxy: its own reward and the gold one along the distance from the start."""

    at_K: tuple[int, ...]
    """Numbers of samples, or steps."""
    kl_K: tuple[float, ...]
    """KL(policy‖start) of whole answers, in nats.  As an estimate it may be below 0."""
    gold_PK: ndarray
    """Both rewards as differences from the start, in standard deviations of the start's samples."""
    proxy_PK: ndarray
    form: Form

    @property
    def d_K(self) -> ndarray:
        """√KL."""
        return np.sqrt(np.maximum(np.array(self.kl_K), 0.0))

    @property
    def gold(self) -> Fit | None:
        """None where there are not points enough."""
        return self._fit(self.gold_PK)

    @property
    def proxy(self) -> Fit | None:
        """None where there are not points enough."""
        return self._fit(self.proxy_PK)

    @property
    def turn(self) -> Turn:
        """Of the gold reward."""
        return turn(self.d_K, self.gold_PK)

    def _fit(self, reward_PK: ndarray) -> Fit | None:
        return fit(self.d_K, reward_PK, self.form) if (self.d_K > 0).sum() >= FEWEST else None

    def points(self) -> list[dict[str, float]]:
        """Every point in plain numbers, with standard errors over prompts."""
        return [
            {
                "at": at,
                "kl": self.kl_K[k],
                "d": float(self.d_K[k]),
                "gold": float(self.gold_PK[:, k].mean()),
                "gold_error": standard_error(self.gold_PK[:, k]),
                "proxy": float(self.proxy_PK[:, k].mean()),
                "proxy_error": standard_error(self.proxy_PK[:, k]),
            }
            for k, at in enumerate(self.at_K)
        ]


def standard_error(values_P: ndarray) -> float:
    """Of a mean; nan of a single value."""
    return float(values_P.std(ddof=1) / math.sqrt(len(values_P))) if len(values_P) > 1 else math.nan


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf  # a β near 0 puts the peak beyond all numbers
