"""Intervals against scipy's, against theory, and against how often they hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from headwork.studies.statistics import exact, mean, ratio

TRIALS = 2000
NUMBERS = st.integers(-(10**6), 10**6).map(lambda whole: whole / 16)


@given(arrays(np.float64, st.integers(2, 40), elements=NUMBERS))
def test_the_mean_has_student_s_interval(values: np.ndarray) -> None:
    found = mean(values, "sequences")
    expected = (values[0], values[0])
    if np.ptp(values) > 0:  # scipy has no interval of width zero
        expected = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.value == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    assert (found.n, found.unit) == (len(values), "sequences")


def test_a_sum_worked_by_hand() -> None:
    found = mean(np.array([1.0, 2.0, 6.0]), "networks")
    half = 4.302652729911275 * np.sqrt(7) / np.sqrt(3)  # t of 97.5 % with 2 degrees of freedom
    assert found.value == 3
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


@given(arrays(np.float64, st.integers(0, 12), elements=NUMBERS), st.integers(0, 5))
def test_units_without_a_value_are_left_out(values: np.ndarray, absent: int) -> None:
    with_nan = np.insert(values, 0, [np.nan] * absent)
    assert mean(with_nan, "sequences") == mean(values, "sequences")


def test_too_few_units_have_no_interval() -> None:
    one = mean(np.array([np.nan, 0.7]), "sequences")
    assert (one.value, one.low, one.high, one.n) == (0.7, None, None, 1)
    none = mean(np.full(3, np.nan), "sequences")
    assert (none.value, none.low, none.high, none.n) == (None, None, None, 0)
    assert one.method != exact(0.7).method


@pytest.mark.parametrize(
    "values", [[np.inf, 1.0], [np.inf], [-np.inf, np.inf], [1e308, 1.7e308], [-1.7e308, 1.7e308], [1e308, -1e308]]
)
def test_what_is_not_finite_has_no_value(values: list[float]) -> None:
    for found in (mean(np.array(values), "sequences"), ratio(np.array(values), np.ones(len(values)), "sequences")):
        assert (found.value, found.low, found.high) == (None, None, None)


def test_whole_numbers_and_single_precision_are_means_of_their_values() -> None:
    assert mean(np.array([0, 255], np.uint8), "sequences").value == 127.5
    assert mean(np.full(1000, 0.1, np.float32), "sequences").value == pytest.approx(float(np.float32(0.1)), abs=1e-15)


@pytest.mark.parametrize("n", [5, 15, 50])
@pytest.mark.parametrize(
    "draw, least",
    [
        (
            "normal",
            {5: 0.93, 15: 0.93, 50: 0.93},
        ),  # exact in theory: 0.95, within three standard errors of 2,000 trials
        # Skewed values are covered less often in small samples: 0.88, 0.92, 0.94 for exponential ones.
        ("exponential", {5: 0.86, 15: 0.90, 50: 0.92}),
    ],
)
def test_the_interval_of_a_mean_holds_the_truth_as_often_as_theory_says(
    n: int, draw: str, least: dict[int, float]
) -> None:
    rng = np.random.default_rng(n)
    samples = rng.normal(1, 2, (TRIALS, n)) if draw == "normal" else rng.exponential(1, (TRIALS, n))
    found = share_that_holds(1, [mean(sample, "sequences") for sample in samples])
    assert least[n] <= found <= 0.97


@pytest.mark.parametrize("n, least", [(5, 0.85), (15, 0.90), (50, 0.92)])
def test_the_interval_of_a_ratio_holds_the_truth_nearly_as_often(n: int, least: float) -> None:
    rng = np.random.default_rng(n)
    bottom = rng.gamma(4, 0.25, (TRIALS, n))
    top = 0.7 * bottom + rng.normal(0, 0.2, (TRIALS, n))
    found = [ratio(t, b, "sequences") for t, b in zip(top, bottom)]
    defined = [one for one in found if one.value is not None]
    assert len(defined) > 0.9 * TRIALS
    assert least <= share_that_holds(0.7, defined) <= 0.98


def share_that_holds(truth: float, estimates: list[Any]) -> float:
    return sum(e.low <= truth <= e.high for e in estimates) / len(estimates)


def test_a_ratio_is_that_of_the_means_over_pairs() -> None:
    top, bottom = np.array([1.0, 3.0, np.nan, 8.0]), np.array([2.0, 2.0, 5.0, np.nan])
    found = ratio(top, bottom, "sequences")
    assert (found.value, found.n) == (1.0, 2)
    # Residuals −1 and 1: their deviation is √2, the denominators' mean 2, and t of 97.5 % with one degree is 12.7.
    half = 12.706204736432095 * np.sqrt(2) / 2 / np.sqrt(2)
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


@given(st.floats(0.1, 10), arrays(np.float64, 8, elements=st.floats(1, 2)))
def test_a_fixed_proportion_has_an_interval_of_no_width(share: float, bottom: np.ndarray) -> None:
    found = ratio(share * bottom, bottom, "sequences")
    assert (found.value, found.low, found.high) == pytest.approx((share, share, share))


@pytest.mark.parametrize(
    "bottom", [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.1], [0.0, 0.0, 9.0], [1.0, np.nan, np.nan], [np.inf, 1.0, 1.0]]
)
def test_a_ratio_to_what_may_be_zero_is_undefined(bottom: list[float]) -> None:
    found = ratio(np.ones(3), np.array(bottom), "sequences")
    assert (found.value, found.low, found.high) == (None, None, None)


def test_what_is_exact_has_no_interval() -> None:
    found = exact(0.25)
    assert (found.value, found.low, found.high, found.n) == (0.25, None, None, None)
    assert exact(float("nan")).value is exact(float("inf")).value is None
