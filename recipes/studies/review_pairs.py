"""Preference pairs of reviews, labelled by the reader of reviews.py as a person would: not always by the better one.

python recipes/studies/review_pairs.py        writes data/review-pairs.jsonl: prompt, chosen, rejected
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from reviews import GUESTS, PLACES, gold, review


def pairs(number: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Two reviews of one visit, the better one preferred with probability σ(difference of what they are worth)."""
    rng = random.Random(seed)
    for _ in range(number):
        guest, place = rng.choice(GUESTS), rng.choice(list(PLACES))
        two = [review(place, rng), review(place, rng)]
        first, second = gold(two, [place, place])
        if rng.random() > 1 / (1 + math.exp(second - first)):
            two.reverse()
        yield {"prompt": f"{guest} on the {place} :", "chosen": two[0], "rejected": two[1]}


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "data/review-pairs.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in pairs(2400))
