"""How numbers are printed: one function for every number of the report."""

from __future__ import annotations

import math
from datetime import datetime

from headwork.studies.record import Estimate

MISSING = "not measured"


def number(value: float | None, decimals: int | None = None) -> str:
    """A number for people: three significant digits by default, a true minus, no negative zero.

    >>> number(2.3149), number(-0.00213), number(1234.5), number(None)
    ('2.31', '−0.00213', '1,234', 'not measured')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if decimals is None:
        if value and (abs(value) < 1e-4 or abs(value) >= 1e7):
            return f"{value:.2e}".replace("-", "−")
        decimals = _decimals(value)
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def exact(value: float) -> str:
    """A number that somebody chose, such as a threshold: as many digits as it was given.

    >>> exact(0.4), exact(0.002), exact(-1.0)
    ('0.4', '0.002', '−1')
    """
    return f"{value:.6g}".replace("-", "−") if math.isfinite(value) else number(value)


def whole(value: int | None) -> str:
    """A count."""
    return MISSING if value is None else f"{value:,}"


def estimate(given: Estimate) -> str:
    """`2.31 [2.20, 2.42]`: a value with its 95 % interval."""
    decimals = precision(given)
    if given.value is None or given.low is None or given.high is None:
        return number(given.value, decimals)
    # A space that does not break, so that a line never ends inside the interval.
    return f"{number(given.value, decimals)} [{number(given.low, decimals)},\u00a0{number(given.high, decimals)}]"


def precision(given: Estimate) -> int | None:
    """The decimals that this estimate's interval supports; None where it has no interval.

    The half-width keeps two significant digits where it begins with less than 3.55, otherwise one, as the Particle
    Data Group rounds.
    """
    half = half_width(given)
    if not half or not math.isfinite(half):
        return None
    power = math.floor(math.log10(half))
    return min(max((1 if half < 3.55 * 10**power else 0) - power, 0), 6)


def half_width(given: Estimate) -> float | None:
    """Half the width of the interval; None where it has none."""
    return None if given.low is None or given.high is None else (given.high - given.low) / 2


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(12.34), duration(75), duration(7320)
    ('12.3 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def moment(created: str) -> str:
    """A date to the minute: `2026-02-03 10:20 UTC`. What is no date stays as it is."""
    try:
        given = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = "" if given.tzinfo is None else f" {given.tzname()}"
    return f"{given:%Y-%m-%d %H:%M}{zone}"


def _decimals(value: float) -> int:
    if value == 0:
        return 0
    if float(value).is_integer() and abs(value) < 1e6:
        return 0
    return min(max(2 - math.floor(math.log10(abs(value))), 0), 6)
