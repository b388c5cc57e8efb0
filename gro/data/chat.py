"""Conversations as prompt and completion, with what is trained on marked turn by turn.

A turn is trained on from where the model would start to sample it (behind the opening that the template writes for it)
up to its end token, whatever marks the template has for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gro.data.spec import Piece, Turn
from gro.data.template import ChatTemplate, TemplateError, says

_LAST_ONLY = "train on its last turn only with train_on: completion"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Where the pieces of a rendered conversation go."""

    prompt: tuple[Piece, ...]
    completion: tuple[Piece, ...]
    bridged: bool = False
    """The template does not render the prompt as the beginning of the whole, so the completion's text follows the
    prompt directly: that is what would be sampled."""


def conversation(
    template: ChatTemplate, turns: Sequence[Turn], k: int, ends: Sequence[str], *, everything: bool = False
) -> Conversation:
    """Prompt (the first k turns) and completion (the others), whose assistant turns are trained on.

    `ends` are the names of end tokens: what the template writes behind a turn is trained on up to the first of them,
    and the completion ends there.  `everything`: all of the completion is trained on.  Raises TemplateError.
    """
    prompt = tuple(template.pieces(turns[:k], opened=True)) if k else ()
    pieces = template.pieces(turns, opened=False)
    text = "".join(p.text for p in pieces)
    begun = _begun(text, "".join(p.text for p in prompt))
    framed, last = len(pieces) > 1, turns[-1].content
    if len(turns) - k > 1 and not everything and (begun is None or not framed):
        what = "turns" if begun is None else "contents"
        raise TemplateError(f"the chat template changes the {what} of this conversation; {_LAST_ONLY}")
    if begun is None or not (everything or framed or says(text[begun:], last)):
        return Conversation(prompt, _bridge(template, prompt, last, ends), bridged=True)
    if framed:
        marked = _marked(template, turns, pieces, ends, everything=everything)
    else:
        cut = len(text) - len(template.tail) if text.endswith(template.tail) else len(text)
        marked = [Piece(text[: cut + len(_ending(text[cut:], ends))], literal=True, trained=True)]
    return Conversation(prompt, tuple(_behind(marked, begun)))


def _begun(text: str, opening: str) -> int | None:
    """Where the text goes on behind this opening; the template may leave out white space at its end."""
    whole = next((form for form in (opening, opening.rstrip()) if text.startswith(form)), None)
    return None if whole is None else len(whole)


def _bridge(template: ChatTemplate, prompt: Sequence[Piece], said: str, ends: Sequence[str]) -> tuple[Piece, ...]:
    """The content behind the prompt, without what the prompt already begins for it ("<think>")."""
    opening = prompt[-1].text
    overlap = next((n for n in range(min(len(opening), len(said)), 0, -1) if opening.endswith(said[:n])), 0)
    said = said[overlap:] if said[:overlap].strip() else said
    return Piece(said, trained=True), Piece(_ending(template.tail, ends), literal=True, trained=True)


def _marked(
    template: ChatTemplate, turns: Sequence[Turn], pieces: Sequence[Piece], ends: Sequence[str], *, everything: bool
) -> list[Piece]:
    """The pieces with the trained stretches marked, up to the end token of the last turn."""
    trained = [everything or turn.role == "assistant" for turn in turns]
    marked: list[Piece] = []
    for i, turn in enumerate(turns):
        text, end, cut = pieces[2 * i].text, 0, len(pieces[2 * i].text)
        if i > 0 and trained[i - 1]:
            end = len(_ending(text, ends))
        if i > 0 and turn.role == "assistant":
            # Whatever follows the opening of the turn would be sampled (an empty block of reasoning, a space).
            opening = template.frame(tuple(t.role for t in turns[:i]), True) or [""]
            begun = _begun(text, opening[-1])
            cut = begun if begun is not None and begun >= end else cut
        marked += [Piece(text[:end], True, True), Piece(text[end:cut], True, everything)]
        marked += [Piece(text[cut:], True, trained[i]), Piece(pieces[2 * i + 1].text, False, trained[i])]
    marked.append(Piece(_ending(pieces[-1].text, ends), True, True))
    return [p for p in marked if p.text]


def _ending(text: str, ends: Sequence[str]) -> str:
    """Up to and with the first end token; nothing if there is none."""
    places = [at + len(name) for name in ends if (at := text.find(name)) >= 0]
    return text[: min(places)] if places else ""


def _behind(pieces: Sequence[Piece], place: int) -> list[Piece]:
    """The pieces from this place in the text on."""
    kept, at = [], 0
    for p in pieces:
        cut = max(0, place - at)
        if cut < len(p.text):
            kept.append(Piece(p.text[cut:], p.literal, p.trained))
        at += len(p.text)
    return kept
