"""The forms of over-optimisation: known coefficients come back, errors are as large as they say, peaks are where they
should be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gro.evaluation.overoptimisation import BestOfN, Course, Form, Learning, fit, standard_error, turn

D = np.linspace(0.3, 4, 12)
FORMS = [BestOfN(), Learning()]


def value(form: Form, d_K: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The formulas of the paper, written out."""
    return d_K * (alpha - beta * d_K) if isinstance(form, BestOfN) else d_K * (alpha - beta * np.log(d_K))


@pytest.mark.parametrize(
    ("form", "beta", "peak", "height"),
    [(BestOfN(), 0.2, 2.5, 1.25), (Learning(), 0.3, 10.312259, 3.093678)],
    ids=["best-of-n", "learning"],
)
def test_known_coefficients_and_where_the_form_is_highest(form: Form, beta: float, peak: float, height: float):
    found = fit(D, value(form, D, 1.0, beta), form)
    assert (found.alpha, found.beta) == pytest.approx((1.0, beta), abs=1e-12)
    assert found.r2 == pytest.approx(1.0, abs=1e-12)
    assert (found.peak, found.height) == pytest.approx((peak, height), abs=1e-6)
    along = np.linspace(0.5, 1.5, 20001) * peak
    values = value(form, along, 1.0, beta)
    assert along[values.argmax()] == pytest.approx(peak, abs=1e-3)
    assert values.max() == pytest.approx(height, abs=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, -0.1), (-0.5, 0.2)])
def test_what_never_turns_down_has_no_peak(form: Form, alpha: float, beta: float):
    found = fit(D, value(form, D, alpha, beta), form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-9)
    assert (found.peak, found.peak_error, found.height) == (None, None, None)


def test_the_start_is_no_point():
    with_start = fit([0.0, *D], [0.0, *value(Learning(), D, 1.0, 0.3)], Learning())
    assert with_start == fit(D, value(Learning(), D, 1.0, 0.3), Learning())
    with pytest.raises(ValueError, match="at least 3 points away from the start; there are 2"):
        fit([0, 1, 2], [0, 1, 1], BestOfN())
    with pytest.raises(ValueError, match="distances for rewards of shape"):
        fit([0, 1, 2, 3], [0, 1, 1], BestOfN())


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("clustered", [False, True], ids=["independent points", "curves of prompts"])
def test_errors_cover_the_truth_as_often_as_they_say(form: Form, clustered: bool):
    """One standard error covers 68 % of a normal estimate, two cover 95 %; with 10 or 24 degrees of freedom Student's t
    covers 2 and 1 percentage points less.  The tolerance is over three binomial errors of 600 repetitions."""
    rng, alpha, beta, repeats = np.random.default_rng(0), 1.2, 0.35, 600
    truth, inside = value(form, D, alpha, beta), {1: np.zeros(3), 2: np.zeros(3)}
    peak = alpha / (2 * beta) if isinstance(form, BestOfN) else math.exp(alpha / beta - 1)
    for _ in range(repeats):
        if clustered:  # a prompt's deviations go together along its whole curve, as those of shared samples do
            reward = truth + 0.4 * rng.normal(size=(25, 1)) * np.sqrt(D) + 0.05 * rng.normal(size=(25, len(D)))
        else:
            reward = truth + 0.05 * rng.normal(size=len(D))
        found = fit(D, reward, form)
        assert found.peak is not None
        off = np.abs([found.alpha - alpha, found.beta - beta, found.peak - peak])
        errors = np.array([found.alpha_error, found.beta_error, found.peak_error])
        for width, counts in inside.items():
            counts += off <= width * errors
    for width, expected in ((1, 0.66), (2, 0.94)):
        shares = inside[width] / repeats
        assert shares == pytest.approx(expected, abs=0.07 if width == 1 else 0.05), (width, shares)


def test_errors_of_shared_samples_are_not_those_of_independent_points():
    """What all points of a curve share cannot be seen in how they scatter around the form."""
    rng = np.random.default_rng(1)
    reward_PK = value(BestOfN(), D, 1.0, 0.2) + rng.normal(size=(30, 1)) * D
    by_prompts, as_if_independent = fit(D, reward_PK, BestOfN()), fit(D, reward_PK.mean(0), BestOfN())
    assert by_prompts.alpha == pytest.approx(as_if_independent.alpha, abs=1e-12)
    slopes = reward_PK[:, 0] / D[0]  # each prompt's own α, up to a constant
    assert by_prompts.alpha_error == pytest.approx(slopes.std(ddof=1) / math.sqrt(30), rel=1e-9)
    assert as_if_independent.alpha_error < 1e-9


def test_errors_of_a_line_by_the_textbook():
    """With β's column left to itself: 4 points, 2 coefficients, by the normal equations worked out by hand."""
    d, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.9, 1.1, 1.3, 0.7])
    found = fit(d, y, BestOfN())
    # XᵀX = [[30, −100], [−100, 354]], its determinant 620; Xᵀy = [9.8, −28.2]
    alpha, beta = (354 * 9.8 - 100 * 28.2) / 620, (100 * 9.8 - 30 * 28.2) / 620
    residuals = y - d * (alpha - beta * d)
    variance = residuals @ residuals / 2
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-12)
    assert found.alpha_error == pytest.approx(math.sqrt(variance * 354 / 620), abs=1e-12)
    assert found.beta_error == pytest.approx(math.sqrt(variance * 30 / 620), abs=1e-12)
    assert found.r2 == pytest.approx(1 - residuals @ residuals / 0.2, abs=1e-12)


def test_where_a_curve_turns():
    reward_PK = np.array([[0.0, 2.0, 1.5], [0.0, 4.0, 2.0], [0.0, 3.0, 2.4]])
    found = turn([0.0, 1.0, 1.5], reward_PK)
    assert (found.place, found.d, found.reward) == (1, 1.0, 3.0)
    mean = (0.5 + 2 + 0.6) / 3  # the drops of the three prompts
    assert found.drop == pytest.approx(mean)
    squares = (0.5 - mean) ** 2 + (2 - mean) ** 2 + (0.6 - mean) ** 2
    assert found.drop_error == pytest.approx(math.sqrt(squares / 2 / 3))
    assert found.turned
    unsure = turn([0.0, 1.0, 1.5], np.array([[0.0, 2.0, 1.0], [0.0, 4.0, 4.9], [0.0, 3.0, 2.9]]))
    assert unsure.place == 1
    assert not unsure.turned, "a fall within two standard errors is none"
    rising = turn([0.0, 1.0], np.array([[0.0, 1.0], [0.0, 2.0]]))
    assert (rising.drop, rising.turned) == (0.0, False)


def test_a_course():
    gold_PK = np.array([[0.0, 1.0, 1.6, 1.8], [0.0, 2.0, 2.4, 1.8]])
    course = Course((0, 5, 10, 15), (-0.01, 1.0, 4.0, 9.0), gold_PK, 2 * gold_PK, BestOfN())
    assert course.d_K.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert course.gold == fit([1.0, 2.0, 3.0], gold_PK[:, 1:], BestOfN())
    assert course.proxy is not None
    assert course.gold is not None
    assert course.proxy.alpha == pytest.approx(2 * course.gold.alpha)
    point = {"at": 5, "kl": 1.0, "d": 1.0, "gold": 1.5, "gold_error": 0.5, "proxy": 3.0, "proxy_error": 1.0}
    assert course.points()[1] == pytest.approx(point)
    still = Course((0, 5, 10, 15), (0.0, 0.0, 1.0, 4.0), gold_PK, gold_PK, BestOfN())
    assert still.gold is None, "two points away from the start are too few for two coefficients and an error"
    assert math.isnan(standard_error(np.array([1.0])))
