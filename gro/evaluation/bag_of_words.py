"""The baseline that a reward model must beat: logistic regression on the words of the two completions.

It needs scikit-learn, which only development installs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

Pair = tuple[str, str]
"""(chosen, rejected) completions as text."""
FEWEST = 50
"""Training pairs, of which words can be learnt."""


def available() -> bool:
    """Whether scikit-learn is there."""
    return importlib.util.find_spec("sklearn") is not None


def bag_of_words_gaps(train: Sequence[Pair], test: Sequence[Pair], *, seed: int = 0) -> list[float]:
    """By how much, in log-odds, it prefers the chosen completion of every test pair.

    Features are log counts of words and pairs of words, chosen minus rejected, so that swapping a pair flips the sign;
    the strength of its penalty is the best of five in cross-validation on the training pairs.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    words = CountVectorizer(ngram_range=(1, 2), min_df=3, max_features=50_000, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    words.fit([text for pair in train for text in pair])

    def features(pairs: Sequence[Pair]):
        counts = [words.transform([p[k] for p in pairs]).astype(np.float64) for k in (0, 1)]
        for count in counts:
            count.data = np.log1p(count.data)
        return counts[0] - counts[1]

    x = features(train)
    # Every other pair is turned round: the classes are balanced, and nothing can be learnt from the order.
    sign = np.where(np.arange(len(train)) % 2 == 0, 1.0, -1.0)
    turned = x.multiply(sign[:, None]).tocsr()

    def regression(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, fit_intercept=False, random_state=seed, max_iter=300)

    best = max(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0), key=lambda c: cross_val_score(regression(c), turned, sign > 0, cv=5).mean()
    )
    weights = np.asarray(regression(best).fit(turned, sign > 0).coef_)[0]
    return [float(gap) for gap in features(test) @ weights]
