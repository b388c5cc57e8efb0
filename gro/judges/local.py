"""Questions to a model that is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gro.data.encode import encode_prompts
from gro.engines.base import Engine, Sampling
from gro.engines.local import LocalEngine
from gro.judges.judge import CUT_OFF, Keep, Reply
from gro.judges.spec import JudgeSettings
from gro.policy.folder import find
from gro.policy.policy import Policy


class Local:
    """A backend on an engine.  Names of special tokens in a question stay text: nothing needs to be broken."""

    breaks = False

    def __init__(
        self,
        settings: JudgeSettings,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_ids: Sequence[int] = (),
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """end_ids: what ends a reply, besides the tokenizer's and its template's.  identity: of the weights."""
        self._settings, self._engine, self._tokenizer, self._end_ids = settings, engine, tokenizer, tuple(end_ids)
        chat = bool(tokenizer.chat_template) if settings.chat is None else settings.chat
        self._chat = chat or None  # plain text is left as it is
        sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
        seed = {"seed": settings.seed} if settings.temperature else {}
        self.identity: Mapping[str, Any] = {
            **(identity or {"model": settings.model}),
            **sampling,
            **seed,
            "chat": chat,
        }

    @classmethod
    def load(cls, settings: JudgeSettings) -> Local:
        """The model at `settings.model`, a folder or hub name."""
        policy = Policy.load(settings.model, device=settings.device)
        ends = getattr(policy.model.generation_config, "eos_token_id", None)
        return cls(
            settings,
            LocalEngine(policy.model),
            policy.tokenizer,
            end_ids=ends if isinstance(ends, list) else [] if ends is None else [ends],
            identity=weights_identity(find(settings.model)),
        )

    def reply(self, questions: Sequence[str], keep: Keep) -> list[Reply]:
        """One reply each.  It depends on the question alone, and not on those that are asked with it."""
        data = encode_prompts(list(questions), self._tokenizer, end_ids=self._end_ids, chat=self._chat)
        prompts = [replace(g.prompt, key=_key(q)) for g, q in zip(data, questions, strict=True)]
        sampling = Sampling(
            temperature=self._settings.temperature or 1.0,
            max_new_tokens=self._settings.max_new_tokens,
            stop_ids=tuple(sorted(data.ends)),
            greedy=self._settings.temperature == 0,
        )
        drawn = self._engine.generate(prompts, 1, sampling, seed=self._settings.seed, step=0)
        found = []
        for question, (completion,) in zip(questions, drawn, strict=True):
            text = str(self._tokenizer.decode(list(completion.ids), skip_special_tokens=True))
            found.append(Reply(text, CUT_OFF if completion.finish == "length" else ""))
            keep(question, found[-1])
        return found

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()


def weights_identity(folder: Path) -> dict[str, Any]:
    """The folder, and size and time of its files: a model that was trained anew is another judge."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    return {"model": str(folder.resolve()), "files": hashlib.sha256(repr(files).encode()).hexdigest()}


def _key(question: str) -> int:
    """Keys the randomness of the reply."""
    return int.from_bytes(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[:7], "big")
