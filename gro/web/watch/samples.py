"""What a run wrote for the same prompt at its steps."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.exceptions import HTTPException

from gro.runs import RunReader
from gro.runs.records import RolloutRecord

MOST_PROMPTS = 100
ANY = "any"
"""Stands for whichever prompts a step has: where data are large, none comes twice."""
_MOST_GROUPS = 4
_MOST_COMPLETIONS = 16
_MOST_TEXT = 20_000
"""Characters of a prompt or completion."""
_MOST_TITLE = 200


def prompts(run: RunReader) -> list[dict[str, Any]]:
    """The prompts with their steps, for JSON: those of most steps first, and of equals the newest.

    `ANY` with all steps comes before those that were recorded once.
    """
    found = sorted(run.prompts().items(), key=lambda item: (-len(item[1]), -item[1][-1]))
    told = [{"id": _id(*prompt), "text": prompt[1][:_MOST_TITLE], "steps": steps} for prompt, steps in found]
    often = sum(len(one["steps"]) > 1 for one in told)
    every = [{"id": ANY, "text": "", "steps": run.rollout_steps()}] if told else []
    return [*told[: min(often, MOST_PROMPTS)], *every, *told[often:MOST_PROMPTS]]


def samples(run: RunReader, prompt: str, step: int) -> dict[str, Any]:
    """The completions of a prompt at a step, or of the first prompts of it, for JSON; 404 where there are none."""
    groups: dict[int, list[RolloutRecord]] = {}
    for record in run.rollouts(step) if step < 2**62 else []:
        if prompt in (ANY, _id(record.key, record.prompt)):
            groups.setdefault(record.group, []).append(record)
    if not groups:
        raise HTTPException(404, f"this run has no completions of that prompt at step {step}")
    most = _MOST_COMPLETIONS // min(len(groups), _MOST_GROUPS)
    return {
        "groups": [
            {
                "prompt": _cut(records[0].prompt),
                "completions": [_completion(record) for record in records[:most]],
                "more": max(0, len(records) - most),
            }
            for records in list(groups.values())[:_MOST_GROUPS]
        ],
        "more": max(0, len(groups) - _MOST_GROUPS),
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
