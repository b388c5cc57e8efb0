"""One optimizer step along the gradient that lies in the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gro.errors import GroError
from gro.training.processes import ALONE, Processes
from gro.training.settings import Optimization


class Descent:
    """AdamW as a recipe sets it; gradients are summed over processes first."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimization: Optimization,
        *,
        total_updates: int,
        processes: Processes = ALONE,
    ) -> None:
        self.parameters, self.optimization = dict(parameters), optimization
        self.total_updates, self.processes = total_updates, processes
        self.updates = 0
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.eps,
            weight_decay=optimization.weight_decay,
            fused=True,
        )

    def step(self) -> dict[str, float]:
        """The norm of the gradient before clipping and the learning rate; GroError before any weight changes where
        the gradient is not finite."""
        rate = self.optimization.learning_rate * self.optimization.factor(self.updates, self.total_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = list(self.parameters.values())
        self.processes.sum_gradients(weights)
        norm = nn.utils.clip_grad_norm_(weights, self.optimization.max_grad_norm or math.inf).item()
        if not math.isfinite(norm):
            worst = next(n for n, p in self.parameters.items() if _broken(p.grad))
            self.abandon()
            raise GroError(f"the gradient is not finite (first in {worst!r}); no weight was changed")
        self.optimizer.step()
        self.abandon()
        self.updates += 1
        return {"grad_norm": norm, "learning_rate": rate}

    def abandon(self) -> None:
        """Forgets the gradient."""
        self.optimizer.zero_grad(set_to_none=True)


def _broken(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(gradient).all())
