"""Faithfulness over circuit size, and the areas under and beside that curve: MIB's CPR and CMD (Mueller et al. 2025).

With f(k) the faithfulness of the circuit that has a share k of all edges,

    CPR = ∫ f(k) dk   (integrated circuit performance ratio: higher is better)
    CMD = ∫ |1 − f(k)| dk   (integrated circuit–model distance: 0 is best)

by the trapezoidal rule, linear in k, over .001, .002, .005, .01, .02, .05, .1, .2, .5, 1. As in MIB's released code
nothing is added below the smallest share: a perfect curve has CPR 0.999 and CMD 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationValue, Direction
from headwork.methods.circuit import Circuit, Granularity
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_selection import Order, Selection, selected, size
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

if TYPE_CHECKING:
    import xarray

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def circuit_curve(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    scores: xarray.DataArray,
    *,
    fractions: Sequence[float] = MIB_FRACTIONS,
    selection: Selection = "top-n",
    order: Order = "absolute",
    value: AblationValue = "counterfactual",
    direction: Direction = "noising",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The faithfulness of the best circuits by `scores` (of edges, or of nodes) at each share of the whole.

    - `faithfulness` [fraction]: (mean metric of the circuit − of nothing) ÷ (of all − of nothing); NaN, with the reason
      in the attribute `undefined`, where the last two are equal;
    - `cpr`, `cmd` []: the areas, over the fractions given;
    - `size` [fraction]: how many edges (heads and MLPs) the circuit has; `circuit` [fraction, prompt], `whole`, `empty`
      [prompt]: the metric.

    `selection` and `order` as in `headwork.methods.circuit_selection`: MIB's CPR takes scores by sign, its CMD by size.
    Ablation as in `headwork.methods.circuit_metric`. `progress` gets the number of circuits done since the last call.
    Raises `UserError` for fractions that do not increase from 0 … to … 1, and as those two do.
    """
    import xarray

    shares = np.array(fractions, float)
    if len(shares) < 2 or (np.diff(shares) <= 0).any() or not 0 <= shares[0] < shares[-1] <= 1:
        raise UserError(f"The fractions are {list(fractions)}; two or more are needed, increasing, from 0 to 1.")
    grain: Granularity = "node" if "node" in scores.dims else "edge"
    whole, empty = Circuit.whole(model.config, grain), Circuit.empty(model.config, grain)
    sizes = [size(len(whole), None, share) for share in shares.tolist()]
    circuits = [selected(model.config, scores, n, selection, order) for n in sizes]
    measure = circuit_metric(
        model, pairs, metric, value=value, direction=direction, reference=reference, seed=seed, memory=memory
    )
    found = measure([*circuits, whole, empty], progress)
    ratio, _, undefined = measure.share(found[:-2], found[-2], found[-1])
    cpr, cmd = areas(shares, ratio)
    attrs = {"method": "circuit curve", "selection": selection, "order": order, "metric": type(metric).__name__}
    unit = {"units": "units of the metric"}
    return xarray.Dataset(
        {
            "faithfulness": ("fraction", ratio, {"units": "1"}),
            "cpr": cpr,
            "cmd": cmd,
            "size": ("fraction", sizes),
            "circuit": (("fraction", "prompt"), found[:-2], unit),
            "whole": ("prompt", found[-2], unit),
            "empty": ("prompt", found[-1], unit),
        },
        coords={"fraction": shares, "prompt": list(measure.labels)},
        attrs=attrs | {"seed": seed} | measure.choices(grain) | undefined,
    )


def areas(fractions: Float[np.ndarray, " n"], faithfulness: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """CPR and CMD of a curve: the integrals of f and of |1 − f| by trapezoids between the points, linear in k."""
    from scipy.integrate import trapezoid

    return float(trapezoid(faithfulness, fractions)), float(trapezoid(np.abs(1 - faithfulness), fractions))
