"""Moving things along a line until none touch, each as little as possible: labels beside a plot, nodes in a layer."""

from __future__ import annotations

import numpy as np

from headwork.draw.checks import Array


def spread(wanted: Array, gaps: Array, low: float, high: float) -> Array:
    """The positions nearest to those wanted (least squares, order kept) with at least `gaps` between neighbours.

    `wanted` [item] in any order; `gaps` [item - 1] between neighbours in sorted order (ties as given). The result stays
    within low–high where all fit. Pools neighbours that collide, as isotonic regression does.
    """
    order = np.argsort(wanted, kind="stable")
    shift = np.concatenate([[0.0], np.cumsum(gaps)])
    pools: list[tuple[float, int]] = []
    for value in wanted[order] - shift:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    flat = np.concatenate([np.full(count, mean) for mean, count in pools])
    flat = np.clip(flat, low, max(low, high - shift[-1]))
    result = np.empty_like(flat)
    result[order] = flat + shift
    return result
