"""How different the answers to one prompt are, in token ids.

What counts as an n-gram is up to the tokenizer, so these numbers compare models of one tokenizer.  They also depend on
how many samples there are and how long: compare at the same number of samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

Tokens = Sequence[int]
LONGEST = 4
"""n-grams of up to so many tokens, as in BLEU."""


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[int, ...]]:
    """Every stretch of n tokens, with how often it is there."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(samples: Sequence[Tokens], n: int) -> tuple[int, int]:
    """How many different n-grams the samples have together, and how many in all.

    Their ratio is distinct-n (Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.1).
    """
    together: Counter[tuple[int, ...]] = Counter()
    for tokens in samples:
        together += ngrams(tokens, n)
    return len(together), together.total()


def self_overlap(samples: Sequence[Tokens]) -> float | None:
    """How much of a sample is also in another sample: 1 where all are the same, 0 where none shares a token.

    For n = 1 … 4 the share of a sample's n-grams that are in one of the others too, each counted at most as often as
    the one that has it most often; the mean over n and over samples.  Self-BLEU (Zhu et al. 2018,
    https://arxiv.org/abs/1802.01886) without the brevity penalty and with an arithmetic mean, so that short answers,
    which have no 4-grams, have a value.  None where fewer than two samples have tokens.
    """
    samples = [tokens for tokens in samples if tokens]
    if len(samples) < 2:
        return None
    return fmean(_overlap(tokens, [*samples[:i], *samples[i + 1 :]]) for i, tokens in enumerate(samples))


def unique(samples: Sequence[Tokens]) -> int:
    """How many different answers there are."""
    return len({tuple(tokens) for tokens in samples})


def _overlap(tokens: Tokens, others: Sequence[Tokens]) -> float:
    shares = []
    for n in range(1, min(LONGEST, len(tokens)) + 1):
        mine, most = ngrams(tokens, n), Counter[tuple[int, ...]]()
        for other in others:
            most |= ngrams(other, n)
        shares.append((mine & most).total() / mine.total())
    return fmean(shares)
