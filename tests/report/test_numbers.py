"""How numbers are printed."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwork.report import numbers
from headwork.studies.record import Estimate

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


def back(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(numbers).failed == 0


@given(FINITE)
def test_a_printed_number_is_within_half_a_percent(value: float) -> None:
    text = numbers.number(value)
    assert math.isclose(back(text), value, rel_tol=0.0051, abs_tol=1e-300)
    assert "-" not in text.replace("e-", "")


@given(FINITE, st.integers(0, 6))
def test_zero_is_never_negative(value: float, decimals: int) -> None:
    text = numbers.number(value, decimals)
    assert not (text.startswith("−") and back(text) == 0)


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6))
def test_an_interval_is_printed_finely_enough(value: float, half: float) -> None:
    low, high = value - half, value + half
    decimals = numbers.precision(Estimate(value=value, low=low, high=high))
    if decimals is None:
        assert low == high
    else:
        assert abs(back(numbers.number(low, decimals)) - low) <= max(0.15 * half, 1e-6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Estimate(value=3.2174, low=3.1361, high=3.2987), "3.22 [3.14,\xa03.30]"),
        (Estimate(value=0.9312, low=0.9191, high=0.9433), "0.931 [0.919,\xa00.943]"),
        (Estimate(value=0.02, low=-0.06, high=0.1), "0.02 [−0.06,\xa00.10]"),
        (Estimate(value=0.7334), "0.733"),
        (Estimate(value=None), "not measured"),
        (Estimate(value=math.inf), "∞"),
    ],
)
def test_estimates(given: Estimate, text: str) -> None:
    assert numbers.estimate(given) == text
