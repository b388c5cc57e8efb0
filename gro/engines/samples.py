"""The samples of one call to an engine that decodes in this process, and the step that adds a token to
them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gro.engines.base import Progress, Sampling
from gro.engines.sampling import draw, sample_keys
from gro.types import Completion, Finish, Prompt


class Samples:
    """All samples of a call as tensors on one device, so that a decoding step has no Python per row.

    S samples, prompt-major (sample i of prompt p is p·n + i), of at most T tokens.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        device: torch.device,
        on_progress: Progress | None = None,
    ) -> None:
        self.prompts, self.n, self.sampling = prompts, n, sampling
        self._key_S = sample_keys(seed, step, [p.key for p in prompts], n).view(-1).to(device)
        size = (len(prompts) * n, sampling.max_new_tokens)
        self.ids_ST = torch.empty(size, dtype=torch.int64, device=device)
        self.logp_ST = torch.empty(size, dtype=torch.float32, device=device)
        self.length_S = torch.zeros(size[0], dtype=torch.int64, device=device)
        self._stops_E = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
        self._on_progress = on_progress
        self._finished = self._tokens = 0

    def extend(self, sample_R: Tensor, logits_RV: Tensor) -> list[int]:
        """Draw the next token of these samples, and return the rows that it finishes."""
        position_R = self.length_S[sample_R]
        token_R, logp_R = draw(logits_RV, self._key_S[sample_R], position_R, self.sampling)
        self.ids_ST[sample_R, position_R] = token_R
        self.logp_ST[sample_R, position_R] = logp_R.float()
        self.length_S[sample_R] = position_R + 1
        done_R = position_R + 1 >= self.sampling.max_new_tokens
        done_R |= logp_R.isnan()  # nothing follows: completions() refuses it
        if self.sampling.stop_ids:
            done_R |= (token_R[:, None] == self._stops_E).any(-1)
        done = done_R.nonzero()[:, 0].tolist()
        self._finished += len(done)
        self._tokens += len(sample_R)
        if self._on_progress:
            self._on_progress(self._finished, self._tokens)
        return done

    def completions(self, version: int) -> list[tuple[Completion, ...]]:
        """The finished samples by prompt."""
        lengths = self.length_S.tolist()
        longest = max(lengths, default=0)
        ids, logp = self.ids_ST[:, :longest].tolist(), self.logp_ST[:, :longest].tolist()
        stops = frozenset(self.sampling.stop_ids)

        def completion(s: int) -> Completion:
            length = lengths[s]
            if math.isnan(logp[s][length - 1]):
                raise FloatingPointError(
                    f"the model's logits are not numbers: prompt {self.prompts[s // self.n].key}, "
                    f"sample {s % self.n}, token {length - 1}, weights of version {version}"
                )
            finish: Finish = "stop" if ids[s][length - 1] in stops else "length"
            return Completion(
                ids=tuple(ids[s][:length]),
                logp=tuple(logp[s][:length]),
                temperature=self.sampling.scored_at,
                finish=finish,
                version=version,
            )

        return [tuple(completion(p * self.n + i) for i in range(self.n)) for p in range(len(self.prompts))]
