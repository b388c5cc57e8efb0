"""Who attends to whom while decoding: the two plans behind the registered attention.

N  tokens of a packed stream of prompts    P  prompts    L  tokens of the longest    R  rows, one new token each
C  own tokens of the longest row    G  rows of the prompt with most    k  key/value heads    h  heads per such head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gro.engines.cache import Cache

MIN_PREFIX = 16
"""Places for prompt tokens in the softmax at least: over fewer than 16 entries a CPU's softmax is ten times slower."""


def _capped(score: Tensor, softcap: float | None) -> Tensor:
    return score if softcap is None else torch.tanh(score / softcap) * softcap


class PrefillPlan:
    """Prompts packed into one stream `[1, N]`, each causal to itself; their keys and values go to prompt places.

    Only the attention itself sees a padded block: everything else of the model runs on the N real tokens.
    """

    def __init__(self, cache: Cache, lengths: Sequence[int], places: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._length = max(lengths)
        self._place_P = torch.tensor(places, device=device)
        length_P = torch.tensor(lengths, device=device)
        start_P = length_P.cumsum(0) - length_P
        column_L = torch.arange(self._length, device=device)
        inside_PL = column_L < length_P[:, None]
        # Cells past the end repeat some real token: finite, and no query before the end attends to them.
        self._token_PL = torch.where(inside_PL, start_P[:, None] + column_L, 0)
        self._cell_N = inside_PL.flatten().nonzero()[:, 0]
        self.position_N = column_L.expand_as(inside_PL).flatten()[self._cell_N]
        self.last_P = start_P + length_P - 1

    def attend(
        self,
        module: nn.Module,
        query_bhnd: Tensor,
        key_bknd: Tensor,
        value_bknd: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        layer = self._cache.layer(module, key_bknd, value_bknd)
        query, key, value = (
            x[0].transpose(0, 1)[self._token_PL].transpose(1, 2) for x in (query_bhnd, key_bknd, value_bknd)
        )  # [P, heads, L, d]
        layer.prefix_key[self._place_P, :, : self._length] = key.to(layer.prefix_key.dtype)
        layer.prefix_value[self._place_P, :, : self._length] = value.to(layer.prefix_value.dtype)
        if softcap is None:
            mask = self._visible(window)
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        else:
            out = self._attend_capped(query, key, value, scaling, softcap, window)
        return out.transpose(1, 2).flatten(0, 1)[self._cell_N][None]

    def _visible(self, window: int | None) -> Tensor | None:
        """bool [L, L], or None where causality is all there is to it."""
        if window is None or window >= self._length:
            return None
        distance_LL = torch.arange(self._length, device=self._place_P.device)
        distance_LL = distance_LL[:, None] - distance_LL
        return (distance_LL >= 0) & (distance_LL < window)

    def _attend_capped(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float, window: int | None
    ) -> Tensor:
        """The fused kernels have no soft-cap."""
        P, k, L, d = key.shape
        grouped = query.view(P, k, -1, L, d)
        score = _capped(torch.einsum("pkhqd,pkjd->pkhqj", grouped * scaling, key), softcap)
        visible = self._visible(window)
        if visible is None:
            visible = torch.ones(L, L, dtype=torch.bool, device=key.device).tril()
        prob = score.masked_fill(~visible, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
        return torch.einsum("pkhqj,pkjd->pkhqd", prob, value).flatten(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which rows decode, and on which prompts: unchanged from step to step until a row ends or begins."""

    sample_R: Tensor
    """int64: the sample in each row."""
    length_R: Tensor
    """int64: tokens of each row's prompt."""
    prompts: int
    """P: prompt places 0 … P-1 are in use, perhaps with holes."""
    prefix: int
    """L: tokens of the longest prompt in a row, at least MIN_PREFIX."""
    row_PG: Tensor
    """int64 [P·G]: the rows of each prompt; empty cells name row 0, and what is computed there is not read."""
    cell_R: Tensor
    """int64: each row's cell among these."""

    def to_cells(self, x_R: Tensor) -> Tensor:
        """[R, k, h, …] → [P, k, G·h, …]: a prompt's rows together."""
        return x_R[self.row_PG].unflatten(0, (self.prompts, -1)).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x_P: Tensor, h: int) -> Tensor:
        """[P, k, G·h, …] → [R, k, h, …]: the way back."""
        return x_P.unflatten(2, (-1, h)).transpose(1, 2).flatten(0, 1)[self.cell_R]

    @staticmethod
    def of(rows: Sequence[tuple[int, int]], lengths: Sequence[int], device: torch.device) -> Layout:
        """From each row's (sample, prompt place) and the length of its prompt."""
        members: dict[int, list[int]] = {}
        for r, (_, place) in enumerate(rows):
            members.setdefault(place, []).append(r)
        prompts, width = max(members) + 1, max(map(len, members.values()))
        row_PG, cell_R = [0] * (prompts * width), [0] * len(rows)
        for place, ranked in members.items():
            for rank, r in enumerate(ranked):
                row_PG[place * width + rank] = r
                cell_R[r] = place * width + rank
        return Layout(
            sample_R=torch.tensor([s for s, _ in rows], device=device),
            length_R=torch.tensor(lengths, device=device),
            prompts=prompts,
            prefix=max(MIN_PREFIX, *lengths),
            row_PG=torch.tensor(row_PG, device=device),
            cell_R=torch.tensor(cell_R, device=device),
        )


class DecodePlan:
    """One new token of each row, `[1, R]`: it attends to the row's prompt and the row's own tokens so far.

    All rows of a prompt meet its keys in one matrix product, so these are read once and stored once; the softmax is
    over both parts together.  Heads that share keys are rows of the same product: nothing is repeated.
    """

    def __init__(self, cache: Cache, layout: Layout, own_R: Tensor, own: int) -> None:
        """`own_R`: index of the new token among the row's own; `own`: the largest of these, plus 1, on the host."""
        self._cache, self._layout, self._own_R, self._own = cache, layout, own_R, own
        self._masks: dict[int | None, Tensor] = {}
        self._flat: dict[tuple[int, int], Tensor] = {}

    def attend(
        self,
        module: nn.Module,
        query_bhnd: Tensor,
        key_bknd: Tensor,
        value_bknd: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        at = self._layout
        layer = self._cache.layer(module, key_bknd, value_bknd)
        P, L, C = at.prompts, at.prefix, self._own
        k, R = key_bknd.shape[1:3]
        h = query_bhnd.shape[1] // k
        self._write(layer.own_key, key_bknd)
        self._write(layer.own_value, value_bknd)

        dtype = layer.own_key.dtype
        query_Rkhd = query_bhnd[0].transpose(0, 1).reshape(R, k, h, -1).to(dtype) * scaling
        prefix = at.to_cells(query_Rkhd) @ layer.prefix_key[:P, :, :L].mT  # [P, k, G·h, L]
        own_RkhC = query_Rkhd @ layer.own_key[:R, :, :C].mT
        score_RkhX = _capped(torch.cat([at.to_rows(prefix, h), own_RkhC], -1), softcap)
        score_RkhX.masked_fill_(self._hidden(window), -torch.inf)
        prob_RkhX = score_RkhX.softmax(-1, dtype=torch.float32).to(dtype)
        prefix = at.to_cells(prob_RkhX[..., :L]) @ layer.prefix_value[:P, :, :L]  # [P, k, G·h, d]
        out_Rkhd = at.to_rows(prefix, h) + prob_RkhX[..., L:] @ layer.own_value[:R, :, :C]
        return out_Rkhd.flatten(1, 2).to(query_bhnd.dtype)[None]

    def _write(self, own_SkCd: Tensor, new_bkRd: Tensor) -> None:
        """The new token's keys or values to their place."""
        _, k, C, d = own_SkCd.shape
        if (k, C) not in self._flat:
            row_R = torch.arange(len(self._own_R), device=self._own_R.device)
            head_k = torch.arange(k, device=self._own_R.device)
            self._flat[k, C] = ((row_R[:, None] * k + head_k) * C + self._own_R[:, None]).flatten()
        new_Rkd = new_bkRd[0].transpose(0, 1).to(own_SkCd.dtype)
        own_SkCd.view(-1, d).index_copy_(0, self._flat[k, C], new_Rkd.reshape(-1, d))

    def _hidden(self, window: int | None) -> Tensor:
        """bool [R, 1, 1, L + C]: keys that are not there, or further away than the window."""
        if window not in self._masks:
            at = self._layout
            column_L = torch.arange(at.prefix, device=self._own_R.device)
            column_C = torch.arange(self._own, device=self._own_R.device)
            here_R1 = (at.length_R + self._own_R)[:, None]
            hidden_RL = column_L >= at.length_R[:, None]
            hidden_RC = column_C > self._own_R[:, None]
            if window is not None:
                hidden_RL = hidden_RL | (here_R1 - column_L >= window)
                hidden_RC = hidden_RC | (self._own_R[:, None] - column_C >= window)
            self._masks[window] = torch.cat([hidden_RL, hidden_RC], 1)[:, None, None]
        return self._masks[window]
