"""What a run wrote for the same prompt at its steps."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.exceptions import HTTPException

from gro.runs import RunReader
from gro.runs.records import RolloutRecord

MOST_PROMPTS = 100
_MOST_COMPLETIONS = 16
_MOST_TEXT = 20_000
"""Characters of a prompt or completion."""
_MOST_TITLE = 200


def prompts(run: RunReader) -> list[dict[str, Any]]:
    """The prompts with their steps, for JSON: first those of most steps, and of equals the newest."""
    found = sorted(run.prompts().items(), key=lambda item: (-len(item[1]), -item[1][-1]))
    return [
        {"id": _id(*prompt), "text": prompt[1][:_MOST_TITLE], "steps": steps} for prompt, steps in found[:MOST_PROMPTS]
    ]


def samples(run: RunReader, prompt: str, step: int) -> dict[str, Any]:
    """The completions of a prompt at a step, for JSON; 404 where there are none."""
    records = [r for r in (run.rollouts(step) if step < 2**62 else []) if _id(r.key, r.prompt) == prompt]
    if not records:
        raise HTTPException(404, f"this run has no completions of that prompt at step {step}")
    return {
        "prompt": _cut(records[0].prompt),
        "completions": [_completion(record) for record in records[:_MOST_COMPLETIONS]],
        "more": max(0, len(records) - _MOST_COMPLETIONS),
    }


def _completion(record: RolloutRecord) -> dict[str, Any]:
    return {
        "row": record.row,
        "text": _cut(record.completion),
        "reward": record.reward,
        "tokens": len(record.completion_ids),
        "finish": record.finish,
        "role": record.role,
    }


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} … ({len(text)} characters)"


def _id(key: int, text: str) -> str:
    """Of a prompt in addresses: they survive a restart, and tell nothing of the text."""
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()[:12]
