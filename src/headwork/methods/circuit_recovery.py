"""How well scores recover a known circuit: area under the ROC curve, average precision, and permuted truth as null."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from headwork.errors import UserError
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_selection import Order, oriented

if TYPE_CHECKING:
    import xarray


def circuit_recovery(
    scores: xarray.DataArray, truth: Circuit, *, order: Order = "absolute", permutations: int = 1000, seed: int = 0
) -> xarray.Dataset:
    """How the scores rank the edges (heads and MLPs) of a known circuit among all that exist.

    `auroc`: the share of pairs (one in the circuit, one not) that are ranked rightly, ties counting half;
    `average_precision`: Σ (recall gained · precision) over the distinct scores from the best down. `null_auroc`,
    `null_average_precision` [permutation]: the same with the truth permuted among what exists; `p_value`: the share of
    permutations, the observed one included, whose AUROC is as high. `order` as in `headwork.methods.circuit_selection`.

    Raises `UserError` where the scores do not fit the architecture or the circuit is empty or everything.
    """
    import xarray

    goodness, known = oriented(truth, scores, order)
    if not 0 < known.sum() < len(known):
        raise UserError(
            f"The known circuit has {int(known.sum())} of {len(known)} {truth.granularity}s; some must be in it and "
            "some not."
        )
    if permutations < 0:
        raise UserError(f"The null has {permutations} permutations; it needs 0 or more.")
    draw = np.random.default_rng(seed)
    shuffled = [draw.permutation(known) for _ in range(permutations)]
    found = auroc(goodness, known)
    null = np.array([auroc(goodness, fake) for fake in shuffled])
    return xarray.Dataset(
        {
            "auroc": found,
            "average_precision": average_precision(goodness, known),
            "null_auroc": ("permutation", null),
            "null_average_precision": ("permutation", np.array([average_precision(goodness, f) for f in shuffled])),
            "p_value": (1 + (null >= found - 1e-12).sum()) / (1 + permutations),
        },
        attrs={
            "granularity": truth.granularity,
            "order": order,
            "in_circuit": int(known.sum()),
            "candidates": len(known),
            "seed": seed,
        },
    )


def auroc(goodness: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """P(a true one scores above a false one) + ½ P(they tie); NaN where one of the two kinds is missing."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    # Of each distinct score, how many of each kind have it, and how many false ones are below.
    _, place = np.unique(goodness, return_inverse=True)
    true, false = (np.bincount(place[kind], minlength=place.max() + 1) for kind in (truth, ~truth))
    return float((true * (false.cumsum() - false / 2)).sum() / (positive * negative))


def average_precision(goodness: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Σ over distinct scores, best first, of the recall each adds times the precision so far; NaN without truth."""
    if not truth.any():
        return float("nan")
    order = np.argsort(-goodness, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(goodness[order]) != 0), len(goodness) - 1)
    hits = truth[order].cumsum()[ends]
    gained = np.diff(hits, prepend=0) / truth.sum()
    return float((gained * hits / (ends + 1)).sum())
