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

    def tensors(self) -> dict[str, Tensor]:
        """What the optimizer remembers of each parameter: `exp_avg of NAME` and so on."""
        memory = self.optimizer.state
        return {f"{what} of {n}": t for n, p in self.parameters.items() for what, t in memory.get(p, {}).items()}

    def load(self, updates: int, tensors: Mapping[str, Tensor]) -> None:
        """Goes on after so many updates, with what `tensors` gave."""
        self.updates = updates
        self.optimizer.state.clear()
        for key, tensor in tensors.items():
            what, _, name = key.partition(" of ")
            parameter = self.parameters[name]
            # A copy: what was read from a file may share its memory.
            kept = tensor.to(parameter.device) if what != "step" else tensor
            self.optimizer.state[parameter][what] = kept.clone()

    def abandon(self) -> None:
        """Forgets the gradient."""
        self.optimizer.zero_grad(set_to_none=True)


def _broken(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(gradient).all())
