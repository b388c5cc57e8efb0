"""Judges: language models that say which of two answers is better, or how good one is, with their reasons.

A judge is asked through the local engine or any endpoint that speaks the chat-completions protocol.  Pairs are asked
in both orders, replies are cached, and a reply without a clear verdict is a failure and never a 0.

Light to import: `gro.judges.local`, for a model that is decoded here, needs torch and is not among these names.
"""

from gro.judges.cache import Cache
from gro.judges.endpoint import Endpoint
from gro.judges.judge import Backend, Case, Comparison, Judge, Rating, Reply
from gro.judges.spec import JudgeSettings
from gro.judges.template import Template
from gro.judges.verdict import Verdicts

__all__ = [
    "Backend",
    "Cache",
    "Case",
    "Comparison",
    "Endpoint",
    "Judge",
    "JudgeSettings",
    "Rating",
    "Reply",
    "Template",
    "Verdicts",
]
