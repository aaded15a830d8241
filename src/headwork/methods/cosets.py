"""Which neurons of a group network are functions of a coset pair: the rival account of Stander et al. 2023.

Chughtai et al. 2023 say that a neuron's two halves lie in an irreducible representation ρ: l(x) = tr(A ρ(x)). Stander
et al. say more: l is constant on the right cosets H·x of a subgroup, and r on the left cosets y·K of a conjugate one;
in the symmetric group of 5 points with H = S4, l depends on where x sends one point, and r on what y sends to another.
The product x · y then has as its coset the pair that matches. In ρ's basis this says that A's range is a certain vector
out of a few, where the first account allows any; so turning that basis at random is a null that keeps all of the first
account and nothing of the second. Partitions drawn at random, of the same sizes, keep neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.representations import irreps
from headwork.methods.subgroups import Subgroups, subgroups
from headwork.tasks.groups import Group

if TYPE_CHECKING:
    import xarray

Values = Float[Tensor, "x neuron"]
_DEAD = 1e-6
"""A neuron with less than this share of the largest one's squared size says nothing."""
_ROUNDING = 1e-9


def coset_neurons(
    left: Values, right: Values, group: Group, *, least: float = 0.95, draws: int = 20, seed: int = 0
) -> xarray.Dataset:
    """How far each neuron's halves are functions of cosets of each class of conjugate subgroups.

    `left[x]` and `right[y]` are what the elements add to the neurons before the ReLU. Dims `neuron`, `subgroup` (with
    coords `index`, the number of cosets, and `conjugates`):

    - `left`, `right`: the share of the half's variance over elements that its best conjugate's right (left) cosets
      explain; `left_conjugate`, `right_conjugate`: which one that is;
    - `share`: the smaller of the two; NaN for neurons that are dead (`dead` [neuron]);
    - `partition_null`: its largest value in `draws` draws of partitions of the same sizes, as many as conjugates;
    - `rotation_null`: its largest value for `draws` neurons with the same irreps and singular values in turned bases.
      In irreps of degree 1 there is nothing to turn, so that the accounts agree there;
    - `assigned` [neuron]: the subgroup of smallest index for which `share` is at least `least` and above
      `partition_null`; empty where there is none. `beyond_irreps` [neuron]: whether there it is above `rotation_null`.

    Every function is one of cosets if these are small enough, hence the smallest index; and `least` is a convention, so
    look at how the number of assigned neurons depends on it. Raises `UserError` for a group of more than 120 elements.
    """
    _check(left, right, group, least, draws)
    classes = subgroups(group)
    if not classes:
        raise UserError(f"The {group.name} group of {group.order} elements has no subgroup that could have cosets.")
    left, right = left.double(), right.double()
    generator = torch.Generator().manual_seed(seed)
    size = torch.minimum(_variation(left), _variation(right))
    dead = size <= _DEAD * size.max()
    turned = [(turn(group, generator) @ left, turn(group, generator) @ right) for _ in range(draws)]
    found: dict[str, list[Tensor]] = {name: [] for name in ("left", "right", "left_conjugate", "right_conjugate")}
    nulls: dict[str, list[Tensor]] = {"partition_null": [], "rotation_null": []}
    for subgroup in classes:
        rights, lefts = subgroup.cosets("right"), subgroup.cosets("left")
        for name, values, numbers in (("left", left, rights), ("right", right, lefts)):
            best = shares(values, numbers).max(0)
            found[name].append(best.values)
            found[f"{name}_conjugate"].append(best.indices)
        nulls["rotation_null"].append(_largest((_joint(a, b, rights, lefts) for a, b in turned)))
        nulls["partition_null"].append(
            _largest(_joint(left, right, shuffled(rights, generator), shuffled(lefts, generator)) for _ in range(draws))
        )
    table = {name: torch.stack(columns, 1) for name, columns in (found | nulls).items()}
    table["share"] = torch.minimum(table["left"], table["right"])
    return _dataset(table, classes, dead, least, {"draws": draws, "seed": seed})


def shares(values: Values, numbers: Int[Tensor, "partition x"]) -> Float[Tensor, "partition neuron"]:
    """The share of each neuron's variance over elements that each partition explains; 0 for one without variance."""
    centred = values - values.mean(0)
    whole = centred.square().sum(0)
    parts = int(numbers.max()) + 1
    found = []
    for part in numbers:
        sums = torch.zeros(parts, values.shape[1], dtype=values.dtype).index_add_(0, part, centred)
        found.append((sums.square() / part.bincount(minlength=parts)[:, None]).sum(0))
    return torch.stack(found) / whole.where(whole > 0, 1.0)


def shuffled(numbers: Int[Tensor, "partition x"], generator: torch.Generator) -> Int[Tensor, "partition x"]:
    """Partitions with parts of the same sizes, of elements at random, for each partition anew."""
    order = torch.rand(numbers.shape, generator=generator).argsort(1)
    return numbers.gather(1, order)


def turn(group: Group, generator: torch.Generator) -> Float[Tensor, "x x"]:
    """A random change of basis of the functions on the group: tr(A ρ(x)) becomes tr(U A V ρ(x)), for each irrep ρ.

    U and V are random orthogonal matrices. Where ρ is two conjugate complex representations in one, the whole space of
    its functions is turned instead.
    """
    found = torch.zeros(group.order, group.order, dtype=torch.float64)
    for irrep in irreps(group):
        functions = irrep.functions
        if irrep.norm == 1:
            inner = torch.kron(_orthogonal(irrep.degree, generator), _orthogonal(irrep.degree, generator))
        else:
            inner = _orthogonal(functions.shape[1], generator)
        found += functions @ inner @ functions.T
    return found


def _orthogonal(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def _variation(values: Values) -> Float[Tensor, " neuron"]:
    return (values - values.mean(0)).square().sum(0)


def _joint(left: Values, right: Values, rights: Tensor, lefts: Tensor) -> Float[Tensor, " neuron"]:
    return torch.minimum(shares(left, rights).amax(0), shares(right, lefts).amax(0))


def _largest(draws: Iterable[Tensor]) -> Float[Tensor, " neuron"]:
    return torch.stack(list(draws)).amax(0)


def _check(left: Tensor, right: Tensor, group: Group, least: float, draws: int) -> None:
    for name, values in (("left", left), ("right", right)):
        if values.dim() != 2 or len(values) != group.order or values.shape != left.shape:
            raise UserError(
                f"{name} has shape {list(values.shape)}; both halves need a row for each of the {group.order} elements "
                "and as many neurons."
            )
        if not bool(values.isfinite().all()):
            raise UserError(f"{name} has values that are not finite.")
    if not 0 < least <= 1:
        raise UserError(f"least = {least}; it is a share of variance, above 0 and at most 1.")
    if draws < 1:
        raise UserError(f"draws = {draws}; the nulls need at least 1.")


def _dataset(
    table: dict[str, Tensor], classes: Sequence[Subgroups], dead: Tensor, least: float, attrs: dict[str, int]
) -> xarray.Dataset:
    import xarray

    fits = (table["share"] >= least) & (table["share"] > table["partition_null"]) & ~dead[:, None]
    first = fits.long().argmax(1)  # classes come by rising index
    some = fits.any(1)
    names = np.array([c.name for c in classes])
    beyond = (table["share"] > table["rotation_null"] + _ROUNDING).gather(1, first[:, None])[:, 0] & some
    for name in ("left", "right", "share", "partition_null", "rotation_null"):
        table[name] = table[name].masked_fill(dead[:, None], torch.nan)
    return xarray.Dataset(
        {name: (("neuron", "subgroup"), values.numpy()) for name, values in table.items()}
        | {
            "assigned": ("neuron", np.where(some.numpy(), names[first.numpy()], "")),
            "beyond_irreps": ("neuron", beyond.numpy()),
            "dead": ("neuron", dead.numpy()),
        },
        coords={
            "neuron": np.arange(len(dead)),
            "subgroup": names,
            "index": ("subgroup", np.array([c.index for c in classes])),
            "conjugates": ("subgroup", np.array([len(c.members) for c in classes])),
        },
        attrs={"least": least, **attrs},
    )
