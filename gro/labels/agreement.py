"""How far people agree beyond chance: Cohen's κ of two, Fleiss's κ of several.

κ = (observed agreement − agreement by chance) / (1 − agreement by chance): 1 is full agreement, 0 what independent
answers with the same frequencies would have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Ratings = Mapping[Hashable, Mapping[str, float]]
"""What is rated → person → category."""


def cohen(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """Cohen's κ of two people's answers to the same questions; None where chance alone agrees fully, or of nothing.

    Cohen (1960), A coefficient of agreement for nominal scales.

    >>> cohen("yynn", "ynnn")
    0.5
    """
    assert len(a) == len(b)
    n = len(a)
    if n == 0:
        return None
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    of_a, of_b = Counter(a), Counter(b)
    chance = sum(of_a[c] * of_b[c] for c in of_a) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else None


def fleiss(rated: Iterable[Sequence[Hashable]]) -> float | None:
    """Fleiss's κ of the answers to each question, whoever gave them; questions with one answer do not count.

    Fleiss (1971), Measuring nominal scale agreement among many raters.  Questions may have different numbers of
    answers: each has the share of its agreeing pairs, and categories are counted over all answers.

    >>> fleiss(["yy", "nn", "yn", "nn"])
    0.4666666666666667
    """
    questions = [Counter(answers) for answers in rated if len(answers) > 1]
    if not questions:
        return None
    all_answers = sum(questions, Counter())
    n = all_answers.total()
    pairs = [sum(c * (c - 1) for c in q.values()) / (q.total() * (q.total() - 1)) for q in questions]
    observed = sum(pairs) / len(pairs)
    chance = sum((c / n) ** 2 for c in all_answers.values())
    return (observed - chance) / (1 - chance) if chance < 1 else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What several people agree on."""

    shared: int
    """Questions that two or more have answered."""
    same: float | None
    """The share of pairs of answers to them that are equal."""
    fleiss: float | None
    pairs: list[tuple[str, str, int, float | None]]
    """Two people, the questions that both have answered, Cohen's κ."""


def agreement(ratings: Ratings) -> Agreement:
    """All of it."""
    people: dict[str, dict[Hashable, float]] = defaultdict(dict)
    for question, answers in ratings.items():
        for person, category in answers.items():
            people[person][question] = category
    pairs = []
    for a, b in combinations(sorted(people), 2):
        both = [q for q in people[a] if q in people[b]]
        if both:
            pairs.append((a, b, len(both), cohen([people[a][q] for q in both], [people[b][q] for q in both])))
    lists = [list(answers.values()) for answers in ratings.values() if len(answers) > 1]
    equal = [x == y for answers in lists for x, y in combinations(answers, 2)]
    return Agreement(len(lists), sum(equal) / len(equal) if equal else None, fleiss(lists), pairs)
