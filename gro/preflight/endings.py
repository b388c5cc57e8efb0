"""Where texts begin and end: the chat template, the token behind which nothing follows, and the first of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Set

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from gro.assemble import Data, Start
from gro.data.dataset import Dataset
from gro.engines.base import Sampling
from gro.errors import GroError
from gro.preflight.masks import show_text
from gro.preflight.saying import say


def check_endings(console: Console, data: Data, start: Start, sampling: Sampling | None, *, full: bool) -> None:
    """Says how completions end in training and where sampling stops.

    Raises GroError where no completion of a training set ends in an end token that carries loss, and where a row
    begins twice.
    """
    tokenizer = start.tokenizer
    taught: Counter[int] = Counter()
    for name, dataset in data.named.items():
        _check_beginnings(name, dataset, tokenizer)
        found = Counter(last if trained else None for _, last, trained in dataset.endings())
        ended = Counter({token: n for token, n in found.items() if token is not None and token in dataset.ends})
        if (total := found.total()) and not ended:
            raise GroError(
                f"{name}: none of its {total} completions ends in an end token that is learnt "
                f"({_names(tokenizer, dataset.ends)}): the model would never learn to stop. Raise max_length, or leave "
                "long rows out with overlong: skip"
            )
        if total:
            cut = total - ended.total()
            rest = f"; {cut} are cut at max_length and do not teach it to stop" if cut else ""
            say(console, f"{name}: {ended.total()} of {total} completions end in {_names(tokenizer, ended)}{rest}")
        if name.startswith("offline"):
            taught += ended
    stops = set() if sampling is None else set(sampling.stop_ids)
    if sampling is not None:
        _compare(console, tokenizer, set(taught), stops)
    _others(console, tokenizer, set(taught) or stops, start.ends)
    if full:
        for name, dataset in data.named.items():
            for line in _template(name, dataset):
                say(console, line)
        _show_conversation(console, data, tokenizer)


def _compare(console: Console, tokenizer: PreTrainedTokenizerBase, taught: Set[int], stops: Set[int]) -> None:
    """Where training and sampling disagree about the end."""
    say(console, f"sampling stops at {_names(tokenizer, stops) or 'no token at all'}")
    if unknown := taught - stops:
        raise GroError(f"completions end in {_names(tokenizer, unknown)}, at which sampling does not stop")
    if taught and (never := stops - taught):
        say(console, f"note: no completion that is learnt ends in {_names(tokenizer, never)}")


def _others(console: Console, tokenizer: PreTrainedTokenizerBase, ends: Set[int], own: Collection[int]) -> None:
    """Where other programs, which go by the model's own files, would not stop."""
    if alien := ends - set(own):
        say(
            console,
            f"note: completions end in {_names(tokenizer, alien)}, which is no end token by the model's own files: "
            "other programs will not stop there",
        )


def _check_beginnings(name: str, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    bos = tokenizer.bos_token_id
    twice = [key + 1 for key, first in dataset.beginnings() if bos is not None and first == (bos, bos)]
    if twice:
        raise GroError(
            f"{name}: {len(twice)} rows begin with {tokenizer.bos_token} twice (the first: row {twice[0]} of "
            f"{dataset.spec.paths[0]}); take it out of the text, or out of the template"
        )


def _template(name: str, dataset: Dataset) -> Iterator[str]:
    """How a data set's conversations became text."""
    if not is_conversation(dataset):
        yield f"{name}: plain text, without a chat template"
        return
    spec, digest = dataset.spec, dataset.template_sha256
    own = "the tokenizer's chat template" if spec.chat_template is None else f"the chat template {spec.chat_template}"
    if digest is None or spec.chat is False:
        yield f"{name}: conversations as a plain transcript, without a chat template"
    else:
        yield f"{name}: {own}, sha256 {digest[:16]}…"


def is_conversation(dataset: Dataset) -> bool:
    """Whether its rows are messages."""
    row = dataset[0].prompt.row
    return isinstance(row.get("prompt"), list) or isinstance(row.get("messages"), list)


def _show_conversation(console: Console, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """One as the model sees it, special tokens and all."""
    for name, dataset in data.named.items():
        if is_conversation(dataset):
            group = dataset[0]
            said = group.completions[0].ids if group.completions else ()
            say(console, f"row {group.prompt.key + 1} of {name} as the model sees it")
            show_text(console, tokenizer, "rendered", (*group.prompt.ids, *said))
            return


def _names(tokenizer: PreTrainedTokenizerBase, ids: Collection[int]) -> str:
    return ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids))
