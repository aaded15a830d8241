"""Would other prompts give the same circuit: bootstrap over prompts, and how alike the circuits are (Jaccard)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from headwork.errors import UserError
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_selection import Order, Selection, selected, size
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig

if TYPE_CHECKING:
    import xarray


def circuit_stability(
    config: TransformerConfig,
    scores: xarray.DataArray,
    n: int | None = None,
    *,
    fraction: float | None = None,
    selection: Selection = "top-n",
    order: Order = "absolute",
    groups: Sequence[str] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> xarray.Dataset:
    """Circuits of one size from the mean scores of resampled prompts; `scores` has dims `prompt`, `writer`, `reader`.

    Prompts are drawn with replacement, as many as there are; where `groups` names each prompt's template, whole
    templates are drawn, since prompts of one template are alike.

    - `jaccard` []: the mean over all pairs of resampled circuits of |both| ÷ |either|; 1 where every circuit is the
      same (two empty ones are). `jaccard_low`, `jaccard_high` []: where the middle 95 % of these pairs lie (their
      spread: the pairs are not independent, so that this is no interval of the mean);
    - `jaccard_with_all` [resample]: with the circuit from all prompts;
    - `chosen` [writer, reader]: in what share of the circuits each edge is; NaN where there is none.

    Raises `UserError` for fewer than two prompts, groups or resamples, and as `headwork.methods.circuit_selection`.
    """
    import xarray

    if "prompt" not in scores.dims:
        raise UserError("Stability needs the scores of each prompt: a dim prompt beside writer and reader.")
    by_prompt = scores.transpose("prompt", ...)
    names = [str(i) for i in range(len(by_prompt))] if groups is None else [str(name) for name in groups]
    if len(names) != len(by_prompt):
        raise UserError(f"{len(names)} groups were given for {len(by_prompt)} prompts; each prompt needs one.")
    distinct = sorted(set(names))
    if len(distinct) < 2 or resamples < 2:
        raise UserError(
            f"Stability resamples {len(distinct)} {'prompts' if groups is None else 'groups'} {resamples} times; it "
            "needs two or more of them, two times or more."
        )
    members = [[i for i, name in enumerate(names) if name == group] for group in distinct]
    edges = size(graph(config).edges, n, fraction)
    draw = np.random.default_rng(seed)
    circuits = []
    for _ in range(resamples):
        rows = [i for g in draw.integers(len(members), size=len(members)) for i in members[g]]
        circuits.append(selected(config, by_prompt[rows].mean("prompt"), edges, selection, order))
    visible = graph(config).visible
    chosen = np.stack([circuit.edges[visible] for circuit in circuits])
    alike = jaccard(chosen, chosen)[np.triu_indices(resamples, 1)]
    from_all = selected(config, by_prompt.mean("prompt"), edges, selection, order)
    share = np.full(visible.shape, np.nan)
    share[visible] = chosen.mean(0)
    low, high = np.quantile(alike, [0.025, 0.975])
    return xarray.Dataset(
        {
            "jaccard": alike.mean(),
            "jaccard_low": low,
            "jaccard_high": high,
            "jaccard_with_all": ("resample", jaccard(from_all.edges[visible][None], chosen)[0]),
            "chosen": (("writer", "reader"), share, {"units": "share of resamples"}),
        },
        coords={dim: by_prompt[dim].values for dim in ("writer", "reader")},
        attrs={
            "method": "circuit stability",
            "size": edges,
            "selection": selection,
            "order": order,
            "resamples": resamples,
            "prompts": len(names),
            "resampled": "prompts" if groups is None else "groups",
            "seed": seed,
        },
    )


def jaccard(some: Bool[np.ndarray, "a edge"], others: Bool[np.ndarray, "b edge"]) -> Float[np.ndarray, "a b"]:
    """|both| ÷ |either| of every set of the first kind with every one of the second; two empty sets are alike."""
    both = some.astype(np.float64) @ others.T.astype(np.float64)
    either = some.sum(1)[:, None] + others.sum(1) - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def similarity(one: Circuit, other: Circuit) -> float:
    """The Jaccard index of two circuits' edges."""
    return float(jaccard(one.edges.ravel()[None], other.edges.ravel()[None])[0, 0])
