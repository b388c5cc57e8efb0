"""One optimizer step along the gradient that lies in the weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gro.errors import GroError
from gro.policy.sharding import assign, own_part, whole_tensor
from gro.training.finite import ADVICE, KEPT, fault_in_tensors
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
            [{"params": part} for part in _apart(self.parameters.values())],
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.eps,
            weight_decay=optimization.weight_decay,
            fused=True,
        )

    def step(self) -> dict[str, float]:
        """The norm of the gradient before clipping and the learning rate; GroError before any weight changes where
        the gradient, a weight or the optimizer's memory is not finite."""
        rate = self.optimization.learning_rate * self.optimization.factor(self.updates, self.total_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            self.processes.raise_together(self._fault())
        except GroError:
            self.abandon()
            raise
        weights = list(self.parameters.values())
        self.processes.sum_gradients(weights)
        norm = _clip(weights, self.optimization.max_grad_norm or math.inf)
        if not math.isfinite(norm):
            worst = self._first_broken()
            self.abandon()
            raise GroError(f"the gradient is not finite (first in {worst!r}); {KEPT}. {ADVICE}")
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
            if what == "step":
                self.optimizer.state[parameter][what] = tensor.clone()
                continue
            kept = torch.zeros_like(parameter, dtype=tensor.dtype, requires_grad=False)
            assign(kept, tensor)
            self.optimizer.state[parameter][what] = kept

    def _fault(self) -> str | None:
        """What is not finite before the step, in words: a weight, or what the optimizer remembers."""
        held: dict[str, Tensor] = {f"the weight {name!r}": p for name, p in self.parameters.items()}
        for key, tensor in self.tensors().items():
            what, _, name = key.partition(" of ")
            if what != "step":
                held[f"the optimizer's {what} of {name!r}"] = tensor
        fault = fault_in_tensors(held)
        return f"{fault}; {KEPT}" if fault else None

    def _first_broken(self) -> str:
        """The first weight whose gradient is not finite, in whichever process that shows."""
        mine = [name for name, p in self.parameters.items() if _broken(p.grad)]
        found = set(self.processes.join(mine))
        return next(name for name in self.parameters if name in found)

    def abandon(self) -> None:
        """Forgets the gradient."""
        self.optimizer.zero_grad(set_to_none=True)


def _apart(parameters: Collection[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that are cut over processes and those that are not, which no operation takes together."""
    cut: list[nn.Parameter] = [p for p in parameters if isinstance(p, DTensor)]
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    return [part for part in (whole, cut) if part]


def _clip(weights: Collection[nn.Parameter], limit: float) -> float:
    """The norm of the whole gradient, which is scaled down to the limit where it is larger."""
    parts = _apart(weights)
    norms = [whole_tensor(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    for part in parts if bool(torch.isfinite(norm)) else ():  # scaled by nan, all would be nan, and none the first
        nn.utils.clip_grads_with_norm_(part, limit, norm)
    return norm.item()


def _broken(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(own_part(gradient)).all())
