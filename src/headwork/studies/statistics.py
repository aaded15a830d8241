"""Estimates with 95 % intervals over independent units (sequences, or networks trained from different seeds).

Student's t intervals throughout: with few units a percentile bootstrap is too narrow, with many the two agree. A ratio
of means has the interval of its linearisation. What was computed exactly has no interval.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from headwork.studies.record import Estimate

LEVEL = 0.95


def mean(values: np.ndarray, unit: str) -> Estimate:
    """The mean of `values [unit]`; units without a value (NaN) are left out. Needs two units for an interval."""
    kept = values[~np.isnan(values)].astype(np.float64)
    if not len(kept):
        return Estimate(value=None, n=0, unit=unit, method="no unit has a value")
    centre = float(kept.mean())
    if len(kept) == 1 or not math.isfinite(centre):
        finite = centre if math.isfinite(centre) else None
        return Estimate(value=finite, n=len(kept), unit=unit, method="too few units for an interval")
    half = _half_width(float(kept.std(ddof=1)), len(kept))
    return Estimate(value=centre, low=centre - half, high=centre + half, n=len(kept), unit=unit, method="mean, t")


def ratio(numerators: np.ndarray, denominators: np.ndarray, unit: str) -> Estimate:
    """Σ numerators / Σ denominators over paired units, with a linearised t interval (Cochran 1977, §6.4)."""
    both = ~(np.isnan(numerators) | np.isnan(denominators))
    top, bottom = numerators[both].astype(np.float64), denominators[both].astype(np.float64)
    if len(top) < 2 or bottom.mean() == 0:
        return Estimate(value=None, n=len(top), unit=unit, method="ratio undefined")
    value = float(top.mean() / bottom.mean())
    half = _half_width(float((top - value * bottom).std(ddof=1)) / abs(float(bottom.mean())), len(top))
    return Estimate(
        value=value, low=value - half, high=value + half, n=len(top), unit=unit, method="ratio of means, linearised t"
    )


def exact(value: float) -> Estimate:
    """A quantity computed over its whole domain."""
    return Estimate(value=value if math.isfinite(value) else None, method="computed exactly")


def _half_width(deviation: float, n: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
