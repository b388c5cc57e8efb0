"""Drawing tokens with keyed noise.

The noise of a draw is a hash of (seed, step, prompt key, sample index, position) and nothing else, so a sample does
not depend on which rows share its batch, on the number of slots or on the order of the prompts.  What remains: two
layouts may round the same logit differently in its last bits, and where that decides between two tokens, or at the
edge of a top-k or top-p set, the sample differs.  The draw is an exponential race (the Gumbel-max trick), where the
probability of that is about the rounding error; inverting the distribution function makes it a hundred times larger
over a vocabulary of 16k, because every token moves the edges of all that follow.

    R  rows (one token each)      V  vocabulary      K  blocks of the vocabulary      W  width of a block
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gro.engines.base import Sampling


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


# splitmix64, https://doi.org/10.1145/2714064.2660195; int64 arithmetic wraps, so only shifts need care.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A key for each value under each key; not symmetric, so the order of the fields counts."""
    return _mix(key ^ _mix(torch.as_tensor(value, dtype=torch.int64, device=key.device) + _GOLDEN))


def sample_keys(seed: int, step: int, prompt_keys: Sequence[int], n: int) -> Tensor:
    """int64 [P, n]: the key of each sample of each prompt.

    It depends on (seed, step, prompt key, index of the sample) only: sample 3 of 8 is sample 3 of 4.
    """
    key = _fold(_fold(torch.zeros((), dtype=torch.int64), _signed(seed)), _signed(step))
    keys_P = _fold(key, torch.tensor([_signed(k) for k in prompt_keys], dtype=torch.int64))
    return _fold(keys_P[:, None], torch.arange(n)[None, :])


def uniforms(key_R: Tensor, count: int) -> Tensor:
    """float64 [R, count] in (0, 1), never 0 or 1: each row is the splitmix64 stream of its key."""
    stream_C = torch.arange(1, count + 1, device=key_R.device) * _GOLDEN
    # 52 bits and a half: all of these are exact in float64, the last one stays below 1.
    return (_shifted(_mix(key_R[:, None] + stream_C), 12).double() + 0.5) * 2.0**-52


def _race(mass_RK: Tensor, key_R: Tensor) -> Tensor:
    """int64 [R]: index k with probability mass_k / Σ mass.  Of exponential clocks with these rates, the
    first."""
    return (mass_RK / -uniforms(key_R, mass_RK.shape[1]).log()).argmax(-1)


def restricted(weight_RV: Tensor, sampling: Sampling) -> Tensor:
    """The weights with everything outside top-k and then top-p set to 0."""
    if 0 < sampling.top_k < weight_RV.shape[1]:
        least_R1 = weight_RV.topk(sampling.top_k).values[:, -1:]
        weight_RV = weight_RV.masked_fill(weight_RV < least_R1, 0)
    if sampling.top_p < 1:
        weight_RV = weight_RV.masked_fill(weight_RV < _nucleus_edge(weight_RV, sampling.top_p), 0)
    return weight_RV


def _nucleus_edge(weight_RV: Tensor, top_p: float) -> Tensor:
    """[R, 1]: the smallest weight in the smallest set of largest weights that reaches top_p of the total."""
    wanted_R1 = top_p * weight_RV.sum(-1, keepdim=True, dtype=torch.float64)
    vocab = weight_RV.shape[1]
    # The nucleus is mostly small, and a full sort costs more than all else together: look among the largest
    # first.
    size = min(vocab, 256)
    while True:
        sorted_RS = weight_RV.topk(size).values
        mass_RS = sorted_RS.double().cumsum(-1)
        if size == vocab or bool((mass_RS[:, -1:] >= wanted_R1).all()):
            break
        size = min(vocab, size * 16)
    # An element is inside when those before it fall short.
    last_R1 = (mass_RS < wanted_R1).sum(-1, keepdim=True).clamp_max(size - 1)
    return sorted_RS.gather(1, last_R1)


def draw(logits_RV: Tensor, key_R: Tensor, position_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob: int64 [R], float [R] (float32, or float64 for such logits).

    `key_R` are the samples' keys, `position_R` the index of the token in its completion.  The log-prob is
    that of the distribution drawn from, renormalised; of a greedy token, that of the plain distribution at
    temperature 1. A row with logits that are not numbers has a NaN log-prob.
    """
    assert logits_RV.ndim == 2, logits_RV.shape
    assert key_R.shape == position_R.shape == logits_RV.shape[:1], (key_R.shape, position_R.shape)
    scaled_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    if sampling.scored_at != 1:
        scaled_RV = scaled_RV / sampling.scored_at
    if sampling.greedy:
        token_R = scaled_RV.argmax(-1)
        return token_R, scaled_RV.gather(1, token_R[:, None])[:, 0] - scaled_RV.logsumexp(-1)

    top_R1 = scaled_RV.amax(-1, keepdim=True)
    weight_RV = restricted((scaled_RV - top_R1).exp_(), sampling)
    # Race between blocks, then inside the winner: 2√V clocks instead of V, and the same distribution.
    rows, vocab = weight_RV.shape
    width = 2 ** round(math.log2(vocab) / 2)
    if vocab % width:
        weight_RV = F.pad(weight_RV, (0, width - vocab % width))
    weight_RKW = weight_RV.view(rows, -1, width)
    mass_RK = weight_RKW.sum(-1).double()
    noise_R = _fold(key_R, position_R)
    block_R = _race(mass_RK, _fold(noise_R, 0))
    inside_RW = weight_RKW[torch.arange(rows, device=block_R.device), block_R].double()
    token_R = block_R * width + _race(inside_RW, _fold(noise_R, 1))

    logit_R = scaled_RV.gather(1, token_R[:, None])[:, 0]
    logp_R = (logit_R - top_R1[:, 0]).double() - mass_RK.sum(-1).log()
    return token_R, logp_R.to(scaled_RV.dtype)
