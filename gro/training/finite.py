"""What is not finite stops a run before any weight changes; the message says in which step, rows and tensor.

A fault is text: processes exchange it (`Processes.raise_together`).  What is looked at is what is computed anyway, and
before each update the weights and the optimizer's memory, of which the norm is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from gro.errors import GroError
from gro.policy.policy import Policy
from gro.policy.sharding import own_part
from gro.types import Batch, Group, rows_of

_MOST_NAMED = 8
"""Rows or prompts that a message names."""
KEPT = "no weight was changed"
ADVICE = "A lower learning_rate or max_grad_norm usually helps"


def fault_in_rows(name: str, value_RX: Tensor, inside_RX: Tensor, rows: Sequence[int], groups: Sequence[Group]) -> str:
    """What of a tensor's rows is not finite, in words; empty where everything inside is finite.

    `rows`: the batch's rows that these are.  X: one value per row, or one per token.
    """
    bad_RX = ~torch.isfinite(value_RX) & inside_RX
    if not bool(bad_RX.any()):
        return ""
    bad_R = bad_RX.any(1).nonzero()[:, 0].tolist()
    first, token = bad_R[0], int(bad_RX[bad_R[0]].nonzero()[0])
    found = value_RX.expand(bad_RX.shape)[first, token].item()
    completions = rows_of(groups)

    def named(r: int) -> str:
        return f"row {rows[r]} (prompt {completions[rows[r]][1].prompt.key})"

    where = f"token {token}: {found}" if bad_RX.shape[1] > 1 else f"{found}"
    others = ", ".join(named(r) for r in bad_R[1:_MOST_NAMED])
    more = f" and {len(bad_R) - _MOST_NAMED} more" if len(bad_R) > _MOST_NAMED else ""
    return f"{name} of {named(first)} are not finite ({where})" + (f", nor of {others}{more}" if others else "")


def refuse_rows(
    name: str, value_BX: Tensor, batch: Batch, groups: Sequence[Group], made_by: Policy | None = None
) -> None:
    """Raises GroError where a tensor is not finite at a trained token.  `made_by`: whose weights are looked at then."""
    inside_BX = batch.mask_BT if value_BX.shape == batch.mask_BT.shape else batch.mask_BT.any(1, keepdim=True)
    fault = fault_in_rows(name, value_BX, inside_BX, range(len(batch.group_B)), groups)
    if fault:
        raise GroError(whole_story(fault, made_by))


def whole_story(fault: str, made_by: Policy | None = None) -> str:
    """A fault with what may have caused it, a weight of the model that made the numbers, and what to do."""
    weights = fault_in_weights(dict(made_by.model.named_parameters())) if made_by is not None else ""
    return f"{fault}{weights and '; ' + weights}; {KEPT}. {ADVICE}"


def refuse_rewards(groups: Sequence[Group]) -> None:
    """Raises GroError for a reward that is no number: None is a missing one, and nothing else is."""
    rows = rows_of(groups)
    rewards = [0.0 if c.reward is None else float(c.reward) for _, _, c in rows]
    value_B1 = torch.tensor(rewards, dtype=torch.float64)[:, None]
    fault = fault_in_rows("rewards", value_B1, torch.ones_like(value_B1, dtype=torch.bool), range(len(rows)), groups)
    if fault:
        raise GroError(f"{fault}; {KEPT}. A reward that cannot be given is None")


def fault_in_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that is not finite, in words; empty where all are.  Of a tensor that is cut over processes, this
    process's part."""
    parts = {name: own_part(tensor).detach() for name, tensor in tensors.items()}
    parts = {name: part for name, part in parts.items() if part.is_floating_point() and part.numel()}
    # The norm reads each number once, and is not finite where one of them is not; it may also overflow.
    if not parts or bool(torch.isfinite(get_total_norm(list(parts.values())))):
        return ""
    worst = next((name for name, part in parts.items() if not bool(torch.isfinite(part).all())), None)
    return f"{worst} is not finite" if worst is not None else ""


def fault_in_weights(parameters: Mapping[str, Tensor]) -> str:
    """The first weight that is not finite, in words; empty where all are."""
    return fault_in_tensors({f"the weight {name!r}": p for name, p in parameters.items()})


def fault_in_loss(metrics: Mapping[str, float]) -> str:
    """That the loss is not finite, though all that it is made of is; empty where it is finite."""
    loss = metrics["loss"]
    return "" if math.isfinite(loss) else f"the loss is not finite ({loss}); {KEPT}. {ADVICE}"


@contextmanager
def in_step(step: int, groups: Sequence[Group] = ()) -> Iterator[None]:
    """Says of what went wrong in which step (counted from 1) it was, and of which prompts where it does not say."""
    try:
        yield
    except GroError as error:
        text = str(error)
        keys = [str(group.prompt.key) for group in groups]
        more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
        of = "" if "(prompt " in text or not keys else f" (an update on prompts {', '.join(keys[:_MOST_NAMED])}{more})"
        raise GroError(f"step {step}: {text}{of}") from error
