"""Decoding in slots: prompts are prefilled once, rows that end make room for the next, nothing is padded."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any

import torch

from gro.engines.cache import Cache
from gro.engines.plans import MIN_PREFIX, DecodePlan, Layout, PrefillPlan
from gro.engines.samples import Samples

_PREFILL_TOKENS = 4096
"""Prompt tokens of one prefill: enough to be efficient, few enough that activations stay small beside the cache."""


class SlotDecoder:
    """Completes samples with a model under the registered attention, at most `slots` rows at a time.

    Rows are the slots 0 … R-1 without holes: an ended row is replaced by a waiting sample, or else by the last row.
    """

    def __init__(self, model: Any, samples: Samples, *, slots: int, places: int) -> None:
        """`places`: how many prompts may have rows at a time; at least 1."""
        self._model, self._samples = model, samples
        self._device = samples.length_S.device
        self._slots = slots
        self._queue = deque(sorted(range(len(samples.prompts)), key=self._prompt_length, reverse=True))
        """Prompts not yet prefilled; by length, so that prompts in the cache together are similarly long."""
        self._waiting: deque[tuple[int, int]] = deque()
        """(sample, place of its prompt) of samples that have their first token and no row yet."""
        self._rows: list[tuple[int, int] | None] = []
        """(sample, place) of each row; None: it has ended."""
        self._free_places = list(range(places))
        self._users = [0] * places
        """Unfinished samples of the prompt in each place."""
        self.cache = Cache(
            prompts=places,
            prefix=max(MIN_PREFIX, *map(self._prompt_length, self._queue)),
            slots=slots,
            own=max(1, samples.sampling.max_new_tokens - 1),  # the last token is sampled, never fed
        )

    def run(self) -> None:
        """Until every sample is finished."""
        self._fill()
        while self._rows:
            layout = self._layout()
            longest = int(self._samples.length_S[layout.sample_R].max())
            while not self._step(layout, longest):
                longest += 1
            self._fill()

    def _prompt_length(self, prompt: int) -> int:
        return len(self._samples.prompts[prompt].ids)

    def _layout(self) -> Layout:
        rows = [row for row in self._rows if row is not None]
        assert len(rows) == len(self._rows), "holes are filled before a step"
        n = self._samples.n
        return Layout.of(rows, [self._prompt_length(s // n) for s, _ in rows], self._device)

    def _step(self, layout: Layout, longest: int) -> bool:
        """One token for every row, of which the longest has so many of its own; whether a row has ended."""
        samples = self._samples
        count_R = samples.length_S[layout.sample_R]
        token_R = samples.ids_ST[layout.sample_R, count_R - 1]
        plan = DecodePlan(self.cache, layout, count_R - 1, longest)
        logits_RV = self._model(
            input_ids=token_R[None],
            position_ids=(layout.length_R + count_R - 1)[None],
            attention_plan=plan,
            use_cache=False,
        ).logits[0]
        done = samples.extend(layout.sample_R, logits_RV)
        for row in done:
            ended = self._rows[row]
            assert ended is not None
            self._rows[row] = None
            self._leave(ended[1])
        return bool(done)

    def _leave(self, place: int) -> None:
        self._users[place] -= 1
        if self._users[place] == 0:
            heapq.heappush(self._free_places, place)

    def _fill(self) -> None:
        """Waiting samples into free rows, prefilling as needed; then close the holes that are left."""
        live = sum(row is not None for row in self._rows)
        while live + len(self._waiting) < self._slots and self._queue and self._free_places:
            self._prefill(self._slots - live - len(self._waiting))
        for r, row in enumerate(self._rows):
            if row is None and self._waiting:
                self._rows[r] = self._waiting.popleft()
        while self._waiting and len(self._rows) < self._slots:
            self._rows.append(self._waiting.popleft())
        self._compact()

    def _compact(self) -> None:
        live = sum(row is not None for row in self._rows)
        holes = [r for r in range(live) if self._rows[r] is None]
        if holes:
            movers = [(r, row) for r, row in enumerate(self._rows) if r >= live and row is not None]
            moved = [sample for _, (sample, _) in movers]
            self.cache.move(
                torch.tensor([r for r, _ in movers], device=self._device),
                torch.tensor(holes, device=self._device),
                int(self._samples.length_S[moved].max()) - 1,  # the last token has not been fed yet
            )
            for hole, (_, row) in zip(holes, movers, strict=True):
                self._rows[hole] = row
        del self._rows[live:]

    def _prefill(self, wanted: int) -> None:
        """Prompts for about `wanted` samples: their keys to the cache, the first token of all their samples drawn."""
        samples, n = self._samples, self._samples.n
        prompts: list[int] = []
        places: list[int] = []
        tokens = 0
        while self._queue and self._free_places and len(prompts) * n < wanted:
            tokens += self._prompt_length(self._queue[0])
            if prompts and tokens > _PREFILL_TOKENS:
                break
            prompts.append(self._queue.popleft())
            places.append(heapq.heappop(self._free_places))
        plan = PrefillPlan(self.cache, [self._prompt_length(p) for p in prompts], places, self._device)
        ids_N = torch.tensor([t for p in prompts for t in samples.prompts[p].ids], device=self._device)
        logits_PV = self._model(
            input_ids=ids_N[None],
            position_ids=plan.position_N[None],
            attention_plan=plan,
            use_cache=False,
            logits_to_keep=plan.last_P,
        ).logits[0]
        owners = [(p * n + i, place) for p, place in zip(prompts, places, strict=True) for i in range(n)]
        for _, place in owners:
            self._users[place] += 1
        sample_R = torch.tensor([s for s, _ in owners], device=self._device)
        done = set(samples.extend(sample_R, logits_PV.repeat_interleave(n, 0)))
        for r, (sample, place) in enumerate(owners):
            if r in done:
                self._leave(place)
            else:
                self._waiting.append((sample, place))
