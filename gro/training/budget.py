"""`training.tokens_per_micro: auto`: how many tokens a micro-batch may hold in this machine's memory.

On CUDA larger and larger micro-batches are tried until one does not fit.  A processor's memory cannot be tried in this
way (what does not fit ends the process, or begins to swap), so three small passes are measured there: the bytes of all
tensors that live at the worst moment.  They follow

    needed(N) = a + b · N + c · N · L          N  tokens of the micro-batch     L  tokens of the longest row

where b is what is kept of a token for the backward pass, and c what an attention that holds its matrix adds.  The
measurement counts bytes and no time, so it gives the same numbers every time.

The number cannot change the result, but for the rounding of sums.  A run keeps what it found, so that it is continued
bit by bit.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gro.errors import GroError
from gro.objective import Algorithm
from gro.policy import head
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.policy.reward_model import RewardModel, judged
from gro.training.live import LiveBytes
from gro.training.room import memory_available
from gro.types import Completion, Group, Prompt

MOST = 65_536
"""Beyond this a larger micro-batch brings nothing: every product is long enough."""
SHARE = 0.5
"""Of the available memory that a micro-batch may need: rollouts, rewards and other programs have the rest."""
MARGIN = 1.25
"""On CUDA so many times the tokens must have fitted: fragmentation, and rows of other shapes than those tried."""
LONGEST_TRIED = 256
"""Tokens of the longest row of the small passes."""
TRUST_REGION = 3
"""A trust region carries tangents beside activations, and keeps its own log-probabilities."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What was found, and why, as it is shown and kept in the run."""

    tokens: int
    why: str


def find_budget(
    policy: Policy, longest: int, algorithm: Algorithm, *, critic: Critic | None = None, available: int | None = None
) -> Budget:
    """The tokens of a micro-batch that fit; never fewer than those of the longest row.

    Call it when all models are loaded and before the first step.  Weights, gradients and random numbers stay as they
    are.  On several processes the least of what each finds is right for all.

    Args:
        policy: what is trained; its frozen weights get no gradient and need no optimizer state.
        longest: tokens of the longest row, prompt and completion.
        algorithm: by which it is trained.
        critic: what learns beside it.
        available: bytes; None: what the machine has (not read on CUDA).

    Raises:
        GroError: not even the longest row fits (known on CUDA only).
    """
    models = [policy] if critic is None or critic.shared else [policy, critic.trunk]
    trained = [p for p in _parameters(models, critic) if p.requires_grad]
    with _untouched(trained, policy.device):
        if policy.device.type == "cuda":
            return _by_trying(policy, longest, algorithm, critic, trained)
        room = memory_available() if available is None else available
        return _by_measuring(policy, longest, algorithm, critic, trained, room)


def _by_measuring(
    policy: Policy, longest: int, algorithm: Algorithm, critic: Critic | None, trained: list[nn.Parameter], room: int
) -> Budget:
    need = measured(policy, longest, algorithm, critic, trained)
    tokens = chosen(need, longest, room)
    beyond = "" if need(tokens) <= room else "; the longest row may not fit, activation_checkpointing needs less"
    return Budget(
        tokens,
        f"training.tokens_per_micro: auto is {tokens:,}, which needs about {_gb(need(tokens))} of the {_gb(room)} "
        f"that are available{beyond}",
    )


def chosen(need: Callable[[int], float], longest: int, room: int) -> int:
    """The largest power of two whose need is within SHARE of the room, up to MOST; at least the longest row."""
    tokens = MOST
    while tokens > longest and need(tokens) > SHARE * room:
        tokens //= 2
    return max(tokens, longest)


def measured(
    policy: Policy, longest: int, algorithm: Algorithm, critic: Critic | None, trained: list[nn.Parameter]
) -> Callable[[int], float]:
    """Bytes that will be needed beside the models, of the tokens of a micro-batch."""
    for parameter in trained:  # they are there in every micro-batch but the first
        parameter.grad = torch.zeros_like(parameter)
    own = None if critic is None or critic.shared else critic
    fits = [_fit(policy, longest, lambda groups: _learn(policy, groups, critic if own is None else None))]
    fits += [_fit(own.trunk, longest, lambda groups: _learn_values(own, groups))] if own is not None else []
    # Gradients and AdamW's two moments, which come with the first step.
    fixed = 3 * sum(p.numel() * p.element_size() for p in trained) + _head_bytes(policy)
    hidden = policy.model.get_output_embeddings().weight.shape[1] * 4  # type: ignore[union-attr, index]
    times = TRUST_REGION if algorithm.step is not None else 1

    def need(tokens: int) -> float:
        # Of the scored tokens, hidden states and their gradients are kept besides what the small passes keep.
        return fixed + times * max(fit.needed(tokens, longest) + 3 * hidden * tokens for fit in fits)

    return need


@dataclass(frozen=True, slots=True)
class Fit:
    """a + b·N + c·N·L bytes, from the peaks of one row of n tokens, two of n, and one of 2n."""

    constant: float
    per_token: float
    per_pair: float

    @classmethod
    def of(cls, n: int, one: int, two: int, long: int) -> Fit:
        """
        >>> Fit.of(10, one=1000 + 70 + 200, two=1000 + 140 + 400, long=1000 + 140 + 800)
        Fit(constant=1000.0, per_token=7.0, per_pair=2.0)
        """
        per_pair = max(long - two, 0) / (2 * n * n)
        per_token = max((two - one) / n - per_pair * n, 0.0)
        return cls(one - per_token * n - per_pair * n * n, per_token, per_pair)

    def needed(self, tokens: int, longest: int) -> float:
        """Bytes of a micro-batch of so many tokens, in rows of so many."""
        return self.constant + self.per_token * tokens + self.per_pair * tokens * longest


def _fit(policy: Policy, longest: int, learn: Callable[[list[Group]], None]) -> Fit:
    n = max(min(longest, LONGEST_TRIED) // 2, 2)

    def peak(rows: int, length: int) -> int:
        with LiveBytes() as live:
            learn(_groups(policy, rows, length, scored="last"))
        return live.peak

    learn(_groups(policy, 1, n, scored="last"))  # what is made once and kept, such as a table of rotations
    return Fit.of(n, peak(1, n), peak(2, n), peak(1, 2 * n))


def _by_trying(
    policy: Policy, longest: int, algorithm: Algorithm, critic: Critic | None, trained: list[nn.Parameter]
) -> Budget:
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    times = TRUST_REGION if algorithm.step is not None else 1
    # AdamW's two moments come with the first step.
    moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]

    def fits(tokens: int) -> bool:
        try:
            _try(policy, critic, longest, times * tokens)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    tokens = grown(fits, longest)
    del moments
    if tokens is None:
        raise GroError(
            f"training.tokens_per_micro: a row of {longest} tokens, the longest of this run, does not fit into the "
            "device's memory. Shorter rows, model.activation_checkpointing or model.autocast: bfloat16 need less"
        )
    return Budget(tokens, f"training.tokens_per_micro: auto is {tokens:,}, the most that was seen to fit")


def grown(fits: Callable[[int], bool], longest: int) -> int | None:
    """Doubles from the longest row while MARGIN times as many tokens fit, up to MOST; None: not even that row does."""
    if not fits(longest):
        return None
    tokens = longest
    while tokens < MOST and fits(math.ceil(MARGIN * min(2 * tokens, MOST))):
        tokens = min(2 * tokens, MOST)
    return tokens


def _try(policy: Policy, critic: Critic | None, longest: int, tokens: int) -> None:
    groups = _groups(policy, max(tokens // longest, 1), longest, scored="all")
    _learn(policy, groups, critic if critic is not None and critic.shared else None)
    if critic is not None and not critic.shared:
        _learn_values(critic, groups)


def _learn(policy: Policy, groups: list[Group], critic: Critic | None) -> None:
    """A forward and backward pass over all of it at once, as a learner makes it."""
    if isinstance(policy, RewardModel):
        groups = [judged(group) for group in groups]
    for pack in policy.packs(groups, _everything(groups)):
        scored = policy.logp(pack, entropy=not isinstance(policy, RewardModel))
        outputs = [scored.logp_RT, scored.entropy_RT, critic.read(scored.hidden_MH, pack) if critic else None]
        _backward(outputs)


def _learn_values(critic: Critic, groups: list[Group]) -> None:
    for pack in critic.trunk.packs(groups, _everything(groups)):
        _backward([critic.values(pack)])


def _backward(outputs: Iterable[Tensor | None]) -> None:
    asked = [output for output in outputs if output is not None and output.requires_grad]
    if asked:
        torch.autograd.backward(asked, [torch.zeros_like(output) for output in asked])


def _everything(groups: list[Group]) -> int:
    rows = sum(len(group.completions) for group in groups)
    return rows * max(len(g.prompt.ids) + len(c.ids) for g in groups for c in g.completions)


def _groups(policy: Policy, rows: int, length: int, *, scored: str) -> list[Group]:
    """So many rows of which the model runs so many tokens each, half of them prompt."""
    embedding = policy.model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    # The last token of a completion is not run; that of a reward model is put behind it later.
    behind = 0 if isinstance(policy, RewardModel) else 1
    prompt = max(length // 2, 1)
    ids = [i % embedding.num_embeddings for i in range(length + behind)]
    completion = tuple(ids[prompt:])
    last = (False,) * (len(completion) - 1) + (True,)
    made = Completion(completion, trained=last if scored == "last" else None)
    return [Group(Prompt(tuple(ids[:prompt]), key=i), (made,)) for i in range(rows)]


def _head_bytes(policy: Policy) -> int:
    """The output layer's share, which the small passes leave out: it scores one token of each of their rows."""
    if isinstance(policy, RewardModel):
        return 0
    output = policy.model.get_output_embeddings()
    assert output is not None
    assert isinstance(output.weight, Tensor)
    itemsize = torch.promote_types(output.weight.dtype, torch.float32).itemsize
    return head.most_bytes(len(output.weight), policy.device, itemsize)


def _parameters(models: list[Policy], critic: Critic | None) -> list[nn.Parameter]:
    found = {id(p): p for model in models for p in model.model.parameters()}
    found |= {id(p): p for p in critic.parameters.values()} if critic is not None else {}
    return list(found.values())


@contextmanager
def _untouched(parameters: list[nn.Parameter], device: torch.device) -> Iterator[None]:
    """Gradients and random numbers afterwards are those of before; no pass moves weights."""
    kept = [parameter.grad for parameter in parameters]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for parameter, grad in zip(parameters, kept, strict=True):
                parameter.grad = grad


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
