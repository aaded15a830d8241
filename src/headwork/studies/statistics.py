"""Estimates with 95 % intervals over independent units (sequences, or networks trained from different seeds).

Student's t intervals throughout: with few units a percentile bootstrap is too narrow, with many the two agree. A ratio
of means has the interval of its linearisation. What was computed exactly has no interval.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from headwork.studies.record import Estimate

LEVEL = 0.95


def mean(values: np.ndarray, unit: str) -> Estimate:
    """The mean of `values [unit]`; units without a value (NaN) are left out. Needs two units for an interval.

    Where a unit's value is infinite, or the sum overflows, there is no value.
    """
    kept = values[~np.isnan(values)].astype(np.float64)
    if not len(kept):
        return Estimate(value=None, n=0, unit=unit, method="no unit has a value")
    if len(kept) == 1:
        return Estimate(value=_finite(kept[0]), n=1, unit=unit, method="too few units for an interval")
    with np.errstate(over="ignore", invalid="ignore"):
        return _interval(float(kept.mean()), float(kept.std(ddof=1)), len(kept), unit, "mean, t")


def ratio(numerators: np.ndarray, denominators: np.ndarray, unit: str) -> Estimate:
    """Σ numerators / Σ denominators over paired units, with a linearised t interval (Cochran 1977, §6.4).

    Undefined, without a value, where the denominators' own interval reaches zero: the ratio then has no bounds
    (Fieller 1954).
    """
    both = ~(np.isnan(numerators) | np.isnan(denominators))
    top, bottom = numerators[both].astype(np.float64), denominators[both].astype(np.float64)
    below = mean(bottom, unit)
    if below.low is None or below.high is None or below.low <= 0 <= below.high:
        return Estimate(value=None, n=len(top), unit=unit, method="ratio undefined")
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(top.mean() / bottom.mean())
        deviation = float((top - value * bottom).std(ddof=1) / abs(bottom.mean()))
    return _interval(value, deviation, len(top), unit, "ratio of means, linearised t")


def exact(value: float) -> Estimate:
    """A quantity computed over its whole domain."""
    return Estimate(value=_finite(value), method="computed exactly")


def _interval(centre: float, deviation: float, n: int, unit: str, method: str) -> Estimate:
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
    if not math.isfinite(abs(centre) + half):
        return Estimate(value=None, n=n, unit=unit, method="not finite")
    return Estimate(value=centre, low=centre - half, high=centre + half, n=n, unit=unit, method=method)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
