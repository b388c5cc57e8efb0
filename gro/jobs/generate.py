"""`gro generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gro.assemble import decoder, model_folder, start_at
from gro.data.encode import encode_prompts
from gro.engines.base import Sampling
from gro.engines.local import LocalEngine
from gro.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer."""

    prompt: str
    text: str
    finish: str
    """stop or length."""
    mean_logp: float
    """Nats per token, under the distribution that was sampled from."""


def generate_texts(
    model: str,
    prompts: Sequence[str],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    chat: bool = False,
    seed: int = 0,
) -> list[Generated]:
    """n answers to every prompt, as they would be sampled in training; names of special tokens in a prompt are text."""
    start = start_at(model_folder(model))
    data = encode_prompts(list(prompts), start.tokenizer, end_ids=start.ends, chat=chat or None)
    sampling = Sampling(
        temperature=temperature or 1.0,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        stop_ids=tuple(sorted(data.ends)),
        greedy=temperature == 0,
    )
    assert start.path is not None
    policy = Policy.load(start.path)
    drawn = LocalEngine(policy.model).generate([g.prompt for g in data], n, sampling, seed=seed, step=0)
    decode = decoder(start.tokenizer)
    return [
        Generated(prompt, decode(c.ids), c.finish, sum(c.logp or ()) / max(len(c.ids), 1))
        for prompt, completions in zip(prompts, drawn, strict=True)
        for c in completions
    ]
