"""Credits around another credit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gro.objective.credit.base import (
    EQUAL,
    Credit,
    State,
    kl_BT,
    scored_rows,
    to_go,
)
from gro.objective.values import positive
from gro.types import Batch


class _Around:
    """What is the inner credit's unless said otherwise."""

    inner: Credit

    @property
    def symbol(self) -> str:
        return self.inner.symbol

    @property
    def group_size(self) -> int:
        return self.inner.group_size

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads


@dataclass(frozen=True)
class Normalised(_Around):
    """A/c, c² the running mean of the batches' mean A² (MARWIL, Wang et al. 2018, sec. 3.2).

    State: the mean square, beside what the inner credit keeps.
    """

    inner: Credit
    rate: float = 0.01
    """How much a new batch counts; the first one counts alone."""

    @property
    def symbol(self) -> str:
        return f"({self.inner.symbol})/c"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_BX, state = self.inner(batch, state)
        inside_BX = scored_rows(batch)[:, None] & (batch.mask_BT if advantage_BX.shape[1] > 1 else True)
        if not bool(inside_BX.any()):
            return advantage_BX, state
        now = float(advantage_BX[inside_BX].double().square().mean())
        square = now if "square" not in state else state["square"] + self.rate * (now - state["square"])
        return advantage_BX / max(square, EQUAL**2) ** 0.5, {**state, "square": square}

    def returns(self, batch: Batch, state: State) -> Tensor:
        """The inner credit's: values are not normalised."""
        return self.inner.returns(batch, state)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class KlAfterwards(_Around):
    """The inner credit of the bare reward, then −β Σ_k≥t k1 on every token: the penalty has no baseline.

    OpenRLHF's order for group baselines; k1 is cut off at ±`limit`.
    """

    inner: Credit
    kl: float = 0.01
    limit: float | None = None

    @property
    def symbol(self) -> str:
        return f"{self.inner.symbol} − {self.kl:g}·Σ_k≥t(ℓ_old − ℓ_ref)"

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | (frozenset({"old", "ref"}) if self.kl else frozenset())

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        advantage_BX, state = self.inner(batch, state)
        if not self.kl:
            return advantage_BX, state
        k1_BT = kl_BT(batch)
        k1_BT = k1_BT if self.limit is None else k1_BT.clamp(-self.limit, self.limit)
        advantage_BT = advantage_BX - self.kl * to_go(k1_BT).to(advantage_BX)
        return advantage_BT.masked_fill(~scored_rows(batch)[:, None], 0.0), state


@dataclass(frozen=True)
class AdaptiveKl(_Around):
    """The inner credit, its β moved so that the KL to the reference comes to `target` nats per completion.

    β ← β(1 + clip(KL/target − 1, ±0.2)·n/horizon), n the completions of the batch (Ziegler et al. 2019, sec. 2.2).
    The KL is that of this step's samples; the new β holds from the next step on.  State: β.
    """

    inner: Credit
    target: float
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        if not getattr(self.inner, "kl", 0.0) > 0:
            raise ValueError("kl is 0; it must be above 0 where it adapts to a target: what is multiplied stays 0")
        positive(target=self.target, horizon=self.horizon)

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        beta = state.get("kl_coefficient", self.inner.kl)  # type: ignore[attr-defined]
        advantage_BX, state = replace(self.inner, kl=beta)(batch, state)  # type: ignore[type-var]
        scored_B = scored_rows(batch)
        number = int(scored_B.sum())
        if number:
            measured = float(kl_BT(batch).sum(1)[scored_B].double().mean())
            error = min(max(measured / self.target - 1, -0.2), 0.2)
            beta *= 1 + error * number / self.horizon
        return advantage_BX, {**state, "kl_coefficient": beta}

    def returns(self, batch: Batch, state: State) -> Tensor:
        """The inner credit's, under the β of this step."""
        beta = state.get("kl_coefficient", self.inner.kl)  # type: ignore[attr-defined]
        return replace(self.inner, kl=beta).returns(batch, state)  # type: ignore[attr-defined, type-var]
