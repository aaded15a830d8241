"""The size of a circuit that nobody stated: the smallest that is faithful, which too much of the metric is not."""

from __future__ import annotations

import numpy as np
import pytest

from headwork.analyses.circuit import first_faithful


@pytest.mark.parametrize(
    ("shares", "first"),
    [([0.0, 0.5, 0.86, 1.0], 2), ([0.2, 3.0, 1.4, 1.1, 1.0], 3), ([-1.0, 0.84, 1.16, 1.0], 3), ([1.0], 0)],
)
def test_the_first_that_neither_falls_short_nor_overshoots(shares: list[float], first: int) -> None:
    assert first_faithful(np.array(shares)) == first
