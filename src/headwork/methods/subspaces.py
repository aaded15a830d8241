"""Subspaces of a place in a network: orthonormal directions along which it may hold a variable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.site_vectors import Place
from headwork.model.config import TransformerConfig


@dataclass(frozen=True, eq=False)
class Subspace:
    """The span of the orthonormal columns of `basis` at a place; all of the place where there is no basis.

    Raises `UserError` where the columns are not orthonormal.
    """

    place: Place
    basis: Float[Tensor, "width k"] | None = None

    def __post_init__(self) -> None:
        if self.basis is None:
            return
        if self.basis.dim() != 2 or not self.basis.shape[1] or not self.basis.is_floating_point():
            raise UserError(f"A basis must be numbers [width, k]; given was {list(self.basis.shape)}.")
        exact = self.basis.double()
        off = (exact.T @ exact - torch.eye(exact.shape[1], dtype=exact.dtype, device=exact.device)).abs().max()
        if not off <= 1e-3:
            raise UserError(
                f"The columns of a basis must be orthonormal; these are off by {float(off):.2g}. "
                "`headwork.methods.subspaces.orthonormal` gives a basis of their span."
            )

    def checked(self, config: TransformerConfig) -> Subspace:
        """With the site's full name; `UserError` where the basis is not as wide as the place."""
        place = self.place.checked(config)
        width = place.width(config)
        if self.basis is not None and len(self.basis) != width:
            raise UserError(f"The basis is for vectors of {len(self.basis)} numbers; {place.site} has {width} there.")
        return Subspace(place, self.basis)

    def dimension(self, config: TransformerConfig) -> int:
        """How many directions it has."""
        return self.place.width(config) if self.basis is None else self.basis.shape[1]


def inside(basis: Float[Tensor, "width k"] | None, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """The component of `x` inside the span."""
    if basis is None:
        return x
    basis = basis.to(x)
    return (x @ basis) @ basis.T


def coordinates(width: int, units: Sequence[int]) -> Float[Tensor, "width k"]:
    """The basis of single units: chosen neurons, or entries of the stream. Raises `UserError` for missing ones."""
    wrong = [u for u in units if not 0 <= u < width]
    if wrong or not len(units) or len(set(units)) < len(units):
        raise UserError(f"There are units 0–{width - 1}; {list(units)} must name some of them, each once.")
    return torch.eye(width)[:, list(units)]


def orthonormal(directions: Float[Tensor, "width n"]) -> Float[Tensor, "width k"]:
    """An orthonormal basis of the span of the columns, the strongest direction first; k is their rank.

    Raises `UserError` where all are zero or one is not finite.
    """
    if not directions.isfinite().all() or not directions.any():
        raise UserError("Directions must be finite, and not all of them zero, to span a subspace.")
    left, strengths, _ = torch.linalg.svd(directions.double(), full_matrices=False)
    noise = max(directions.shape) * torch.finfo(directions.dtype).eps * strengths[0]
    return left[:, strengths > noise].to(directions.dtype)


def difference_of_means(
    activations: Float[Tensor, "n width"], labels: Int[Tensor, " n"]
) -> Float[Tensor, "width contrasts"]:
    """The span of the classes' means about their common mean: one direction for two classes, c − 1 for c of them.

    Raises `UserError` for fewer than two classes, or where the means do not differ.
    """
    if len(labels) != len(activations):
        raise UserError(f"There are {len(labels)} labels for {len(activations)} activations; one each is needed.")
    classes = labels.unique()
    if len(classes) < 2:
        raise UserError(f"A difference of means needs two classes or more; the labels have {len(classes)}.")
    means = torch.stack([activations[labels == c].mean(0) for c in classes], 1)
    centred = means - means.mean(1, keepdim=True)
    # What rounding leaves of equal means is no direction.
    size = 64 * torch.finfo(means.dtype).eps * activations.abs().max()
    if not (centred.abs() > size).any():
        raise UserError("The classes have the same mean activation; their difference has no direction.")
    # One direction less than classes at most, whatever rounding says of the rank.
    return orthonormal(centred)[:, : len(classes) - 1]


def probe_directions(weights: Float[Tensor, "width classes"]) -> Float[Tensor, "width contrasts"]:
    """The span of a linear probe's read-off directions; what is common to all classes of a softmax tells none apart.

    A single column, as a probe for a number has it, is that one direction.
    """
    if weights.shape[1] == 1:
        return orthonormal(weights)
    return orthonormal(weights - weights.mean(1, keepdim=True))[:, : weights.shape[1] - 1]


def random_basis(width: int, k: int, generator: torch.Generator) -> Float[Tensor, "width k"]:
    """A uniformly random subspace, in float64."""
    return torch.linalg.qr(torch.randn(width, k, generator=generator, dtype=torch.float64)).Q
