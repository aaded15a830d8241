"""How a toy model lays out its features: dimensionality, phase, the figure that each feature is part of, and neurons.

After Elhage et al. 2022. W is `[hidden, feature]`; its column Wᵢ is the direction of feature i, Ŵᵢ that of length 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwork.errors import UserError
from headwork.train.superposition import TrainedToy

if TYPE_CHECKING:
    import xarray

IGNORED_BELOW = 0.25
"""‖Wᵢ‖² of an ignored feature: half the length of one that is represented in full."""
SUPERPOSED_FROM = 0.25
"""Σ over the others of (Ŵᵢ·Wⱼ)² of a superposed feature: it shares as much as one of half length, wholly in its way."""
COSINE_TOLERANCE = 0.1
"""How far each cosine of a figure's features may lie from the exact one; below it two features count as orthogonal."""
READS_FROM = 0.25
"""What a neuron must add to |xᵢ| at xᵢ = ±1, on its own, to count as reading that sign of the feature."""


def feature_dimensionality(W: Float[Tensor, "*toy hidden feature"]) -> Float[Tensor, "*toy feature"]:
    """Dᵢ = ‖Wᵢ‖² / Σⱼ (Ŵᵢ·Wⱼ)², the share of a dimension that feature i has; 0 where Wᵢ is 0."""
    squares = (W**2).sum(-2)
    return squares / (squares + interference(W)).where(squares > 0, torch.ones(()))


def interference(W: Float[Tensor, "*toy hidden feature"]) -> Float[Tensor, "*toy feature"]:
    """Σ over j ≠ i of (Ŵᵢ·Wⱼ)²; 0 where Wᵢ is 0."""
    lengths = W.norm(dim=-2, keepdim=True)
    products = (W / lengths.where(lengths > 0, torch.ones(()))).mT @ W
    others = ~torch.eye(W.shape[-1], dtype=torch.bool, device=W.device)
    return (products**2 * others).sum(-1)


def phases(W: Float[Tensor, "hidden feature"]) -> list[str]:
    """Each feature's phase: `ignored` (‖Wᵢ‖² < 0.25), `superposed` (interference ≥ 0.25), or `dedicated`."""
    pairs = zip((W**2).sum(0).tolist(), interference(W).tolist())
    return [
        "ignored" if square < IGNORED_BELOW else "superposed" if shared >= SUPERPOSED_FROM else "dedicated"
        for square, shared in pairs
    ]


class Figure(NamedTuple):
    """A set of features that share dimensions among themselves and with no other feature."""

    name: str
    features: tuple[int, ...]
    dimensions: int
    deviation: float
    """The largest difference of a cosine from the named figure's; NaN where unnamed."""


def figures(W: Float[Tensor, "hidden feature"], tolerance: float = COSINE_TOLERANCE) -> list[Figure]:
    """The figures that the represented features form, in order of their first features.

    Features whose cosine exceeds `tolerance` in size, directly or through others, are one set. It is named where each
    feature's sorted cosines to the others lie within `tolerance` of those in the exact figure (every corner of which
    sees the same ones; of the square antiprism, at either of two heights), and `unnamed` otherwise; a feature alone is
    `dedicated`. Lengths do not enter: compare the dimensionality, which is that of the exact figure only where the
    features are equally long.
    """
    if not 0 < tolerance < 0.3:
        raise UserError(f"The tolerance of cosines is {tolerance!r}; it must lie between 0 and 0.3.")
    kept = [i for i, phase in enumerate(phases(W)) if phase != "ignored"]
    directions = W.double()[:, kept] / W.double()[:, kept].norm(dim=0)
    cosines = (directions.mT @ directions).cpu().numpy()
    return [_named(cosines, kept, part, tolerance) for part in _parts(np.abs(cosines) > tolerance)]


def exact_figure(name: str) -> Float[Tensor, "dimension corner"]:
    """The corners of a figure in `FIGURES`, each of length 1; its dimensionality is dimensions ÷ corners."""
    return torch.from_numpy(FIGURES[name].T.copy())


def _named(cosines: np.ndarray, kept: list[int], part: list[int], tolerance: float) -> Figure:
    features = tuple(kept[i] for i in part)
    block = cosines[np.ix_(part, part)]
    if len(part) == 1:
        return Figure("dedicated", features, 1, 0.0)
    for name, corners in [*FIGURES.items(), ("square antiprism", _square_antiprism(_EVEN_HEIGHT))]:
        if len(corners) == len(part):
            deviation = float(np.abs(_profiles(block) - _profiles(corners @ corners.T)).max())
            if deviation <= tolerance:
                return Figure(name, features, corners.shape[1], deviation)
    # Directions that add less than the tolerance's share of variance are noise of the training.
    spread = np.linalg.eigvalsh(block)
    return Figure("unnamed", features, int((spread > tolerance).sum()), math.nan)


def _profiles(cosines: np.ndarray) -> np.ndarray:
    """Each corner's cosines to the other corners, sorted."""
    corners = len(cosines)
    return np.sort(cosines[~np.eye(corners, dtype=bool)].reshape(corners, corners - 1), 1)


def _parts(joined: np.ndarray) -> list[list[int]]:
    """The connected sets of a graph."""
    left, found = list(range(len(joined))), []
    while left:
        part, ahead = set(), {left[0]}
        while ahead:
            part |= ahead
            ahead = {j for i in ahead for j in left if joined[i, j]} - part
        found.append(sorted(part))
        left = [i for i in left if i not in part]
    return found


def _polygon(corners: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _simplex(corners: int) -> np.ndarray:
    """Corners with cosine −1 / (corners − 1) to each other, in one dimension less than there are."""
    centred = np.eye(corners) - 1 / corners
    axes = np.linalg.svd(centred)[2][: corners - 1]
    points = centred @ axes.T
    return points / np.linalg.norm(points, axis=1, keepdims=True)


# z² = (1 − z²) cos 45° − z²: corners of one square are as near as those of the other.
_EVEN_HEIGHT = math.sqrt(math.sqrt(0.5) / (2 + math.sqrt(0.5)))
_FULL_HEIGHT = math.sqrt(1 / 3)


def _square_antiprism(height: float) -> np.ndarray:
    """Two squares `height` above and below the middle, one turned against the other by an eighth.

    At the full height it fills its three dimensions alike, and each corner has ⅜ of one. At the even height a corner's
    four neighbours are equally near, as in the best packing of eight points on a sphere, and it has 0.366; networks
    settle near that one.
    """
    angles, sides = np.pi / 4 * np.arange(8), np.where(np.arange(8) % 2, 1, -1)
    radius = math.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles), height * sides], 1)


FIGURES: dict[str, np.ndarray] = {
    "digon": np.array([[1.0], [-1.0]]),
    "triangle": _polygon(3),
    "tetrahedron": _simplex(4),
    "pentagon": _polygon(5),
    "4-simplex": _simplex(5),
    "hexagon": _polygon(6),
    "heptagon": _polygon(7),
    "octagon": _polygon(8),
    "square antiprism": _square_antiprism(_FULL_HEIGHT),
}
"""Corners `[corner, dimension]` of figures that do not fall into orthogonal parts, as a square does into two digons and
an octahedron into three. Their dimensionalities: digon ½, triangle ⅔, tetrahedron ¾, pentagon ⅖, 4-simplex ⅘,
hexagon ⅓, heptagon 2⁄7, octagon ¼, square antiprism ⅜."""


def neurons_reading(
    W: Float[Tensor, "hidden feature"], W_out: Float[Tensor, "feature hidden"], threshold: float = READS_FROM
) -> dict[str, Bool[Tensor, "hidden feature"]]:
    """Which neurons of an absolute-value model read xᵢ, and which −xᵢ.

    Alone at xᵢ = 1 a neuron adds ReLU(W) · W_out to what is found for |xᵢ|, and ReLU(−W) · W_out at xᵢ = −1; it reads
    the sign for which that reaches `threshold` (|xᵢ| itself is 1 there).
    """
    return {"positive": W.relu() * W_out.mT >= threshold, "negative": (-W).relu() * W_out.mT >= threshold}


def superposition_geometry(networks: Sequence[TrainedToy], tolerance: float = COSINE_TOLERANCE) -> xarray.Dataset:
    """All of it for networks of one shape, with dims `network` and `feature`.

    `dimensionality`, `squared_norm`, `interference`, `phase` (`ignored`, `dedicated`, `superposed`), `figure` (the name
    of the figure that the feature is part of; `none` where it is ignored), `importance` [network, feature]; `density`,
    `seed`, `loss` and `layout` (the figures' names, joined by ` + `) [network]. For absolute-value models also
    `positive_neurons` and `negative_neurons` [network, feature], the number of neurons that read xᵢ and −xᵢ, and
    `served_features` [network, neuron], for how many features a neuron reads a sign. Raises `UserError` for no network
    and for networks of several shapes.
    """
    import xarray

    shapes = {one.toy.shape for one in networks}
    if len(shapes) != 1:
        raise UserError(f"The networks have {len(shapes)} shapes; their geometry is taken for one shape at a time.")
    kind, n, m = shapes.pop()
    W = torch.stack([one.W for one in networks]).double()
    found = [figures(one, tolerance) for one in W]
    of_feature = [{i: figure.name for figure in one for i in figure.features} for one in found]
    both, each = ("network", "feature"), ("network",)
    variables = {
        "dimensionality": (both, feature_dimensionality(W).numpy(), {"units": "dimensions"}),
        "squared_norm": (both, (W**2).sum(1).numpy(), {"units": "1"}),
        "interference": (both, interference(W).numpy(), {"units": "1"}),
        "phase": (both, [phases(one) for one in W]),
        "figure": (both, [[names.get(i, "none") for i in range(n)] for names in of_feature]),
        "importance": (both, [one.toy.importance for one in networks], {"units": "1"}),
        "density": (each, [one.toy.density for one in networks], {"units": "probability"}),
        "seed": (each, [one.toy.seed for one in networks]),
        "loss": (each, [one.loss for one in networks], {"units": "1"}),
        "layout": (each, [" + ".join(sorted(figure.name for figure in one)) or "none" for one in found]),
    }
    if kind == "absolute value":
        reads = [neurons_reading(one.W, one.W_out) for one in networks]
        for sign in ("positive", "negative"):
            variables[f"{sign}_neurons"] = (both, [one[sign].sum(0).tolist() for one in reads], {"units": "neurons"})
        served = [(one["positive"] | one["negative"]).sum(1).tolist() for one in reads]
        variables["served_features"] = (("network", "neuron"), served, {"units": "features"})
    return xarray.Dataset(
        variables,
        coords={"network": range(len(networks)), "feature": range(n)},
        attrs={
            "method": "geometry of superposition",
            "kind": kind,
            "hidden": m,
            "ignored_below": IGNORED_BELOW,
            "superposed_from": SUPERPOSED_FROM,
            "cosine_tolerance": tolerance,
            "neuron_reads_from": READS_FROM,
        },
    )
