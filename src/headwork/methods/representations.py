"""Irreducible real representations of finite groups, with their matrices: what networks may learn of a group.

Those of the symmetric groups are Young's orthogonal form (James & Kerber 1981, ch. 3): a basis vector for each standard
tableau of a partition; the transposition (k k+1) acts by 1/r, r the axial distance from k to k+1, and swaps k and k+1
with √(1 − 1/r²). Those of the alternating groups are their restrictions; where the partition is its own conjugate, the
restriction is split by the operator that turns ρ into sign · ρ. Rotations are taken as such, without complex numbers:
a pair of conjugate complex representations is one real one here, and ⟨χ, χ⟩ = 2 tells it from the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.tasks.groups import Group
from headwork.tasks.groups import group as find_group

Partition = tuple[int, ...]
_NAMES = {
    (2, 2): "s4_2d",
    (2, 2, 1): "s5_5d_a",
    (3, 2): "s5_5d_b",
    (3, 1, 1): "s5_6d",
    (3, 3): "s6_5d_a",
    (2, 2, 2): "s6_5d_b",
}
"""Those that Chughtai et al. name by their degree."""
IMPLEMENTED = "every cyclic and dihedral group, symmetric groups of up to 6 points, alternating groups of 3 to 6 points"


@dataclass(frozen=True, eq=False)
class Irrep:
    """`matrices[x]` is the orthogonal matrix ρ(x), with ρ(x · y) = ρ(x) ρ(y); in float64."""

    name: str
    matrices: Float[Tensor, "element d d"]

    @property
    def degree(self) -> int:
        """The dimension of the space on which the group acts."""
        return self.matrices.shape[1]

    @functools.cached_property
    def character(self) -> Float[Tensor, " element"]:
        """χ(x) = tr ρ(x)."""
        return self.matrices.diagonal(dim1=1, dim2=2).sum(1)

    @property
    def norm(self) -> int:
        """⟨χ, χ⟩: 1 where it stays irreducible over the complex numbers, 2 for two conjugate ones in one."""
        return round(float(self.character.square().mean()))

    @functools.cached_property
    def functions(self) -> Float[Tensor, "element function"]:
        """An orthonormal basis of the functions on the group that ρ's matrix entries span: d²/⟨χ, χ⟩ of them."""
        entries = self.matrices.flatten(1)
        if self.norm == 1:  # Schur's orthogonality
            return entries * (self.degree / len(entries)) ** 0.5
        left, _, _ = torch.linalg.svd(entries, full_matrices=False)
        return left[:, : self.degree**2 // self.norm].contiguous()


def irreps(group: Group) -> tuple[Irrep, ...]:
    """All irreducible real representations, the trivial one first; Σ d²/⟨χ, χ⟩ is the group's order.

    Names are those of Chughtai et al. 2023 as far as they have any (`trivial`, `sign`, `standard`, `standard_sign`,
    `freq_k`, `s5_5d_a` …); otherwise they give the partition, in `s6_4_2`, or for its restriction to even permutations
    in `a6_4_2`, with `_a` and `_b` for the halves of one that splits. Raises `UserError` for a group
    whose representations are not implemented.
    """
    small = {"symmetric": (1, 6), "alternating": (3, 6)}.get(group.name, (1, math.inf))
    if group.name not in _MAKERS or not small[0] <= group.parameter <= small[1]:
        raise UserError(
            f"Representations of the {group.name} group with parameter {group.parameter} are not implemented; those of "
            f"{IMPLEMENTED} are."
        )
    return _found(group.name, group.parameter)


def irrep_named(group: Group, name: str) -> Irrep:
    """The representation of this name. Raises `UserError` where the group has none."""
    found = {irrep.name: irrep for irrep in irreps(group)}
    if name not in found:
        raise unknown(f"irreducible representation of the {group.name} group of {group.order} elements:", name, found)
    return found[name]


@functools.lru_cache(maxsize=16)
def _found(name: str, parameter: int) -> tuple[Irrep, ...]:
    return tuple(_MAKERS[name](find_group(name, parameter)))


def _one(name: str, values: Tensor) -> Irrep:
    return Irrep(name, values.double().reshape(-1, 1, 1))


def _turns(angles: Float[Tensor, " element"]) -> Float[Tensor, "element 2 2"]:
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _cyclic(group: Group) -> Iterator[Irrep]:
    n = group.order
    numbers = torch.arange(n)
    yield _one("trivial", torch.ones(n))
    for k in range(1, (n + 1) // 2):
        yield Irrep(f"freq_{k}", _turns(2 * torch.pi * (k * numbers % n).double() / n))
    if n % 2 == 0:
        yield _one(f"freq_{n // 2}", 1 - 2 * (numbers % 2))


def _dihedral(group: Group) -> Iterator[Irrep]:
    n = group.parameter
    numbers = torch.arange(2 * n)
    turn, flip = numbers % n, numbers // n
    sign = 1 - 2 * flip
    yield _one("trivial", torch.ones(2 * n))
    yield _one("sign", sign)
    if n % 2 == 0:
        alternating = 1 - 2 * (turn % 2)
        yield _one(f"freq_{n // 2}", alternating)
        yield _one(f"freq_{n // 2}_sign", alternating * sign)
    for k in range(1, (n + 1) // 2):
        mirror = torch.ones(2 * n, 1, 2).double()
        mirror[:, 0, 1] = sign
        yield Irrep(f"freq_{k}", _turns(2 * torch.pi * (k * turn % n).double() / n) * mirror)


def _symmetric(group: Group) -> Iterator[Irrep]:
    for partition in _ordered(group.parameter):
        yield Irrep(symmetric_name(partition), _young(group, partition))


def symmetric_name(partition: Partition) -> str:
    """The name of the representation of the symmetric group that belongs to a partition."""
    n = sum(partition)
    if partition == (n,):
        return "trivial"
    if partition == (1,) * n:
        return "sign"
    if partition == (n - 1, 1):
        return "standard"
    if partition == (2,) + (1,) * (n - 2):
        return "standard_sign"
    return _NAMES.get(partition, f"s{n}_" + "_".join(map(str, partition)))


def _alternating(group: Group) -> Iterator[Irrep]:
    n = group.parameter
    whole = find_group("symmetric", n)
    places = _places(whole)
    even = torch.tensor([places[points] for points in _places(group)])
    for partition in _ordered(n):
        conjugate = _conjugate(partition)
        if partition < conjugate:
            continue  # the same as the conjugate's, restricted
        matrices = _young(whole, partition)[even]
        name = symmetric_name(partition)
        if name not in ("trivial", "standard"):
            name = f"a{n}_" + "_".join(map(str, partition))
        if partition != conjugate:
            yield Irrep(name, matrices)
            continue
        turned = _associator(partition)
        if not torch.allclose(turned @ turned, torch.eye(len(turned)).double()):
            yield Irrep(name, matrices)  # its square is −1: two conjugate complex halves, one real whole
            continue
        values, vectors = torch.linalg.eigh(turned)
        for letter, half in (("a", vectors[:, values > 0]), ("b", vectors[:, values < 0])):
            yield Irrep(f"{name}_{letter}", half.T @ matrices @ half)


_MAKERS: Mapping[str, Callable[[Group], Iterator[Irrep]]] = {
    "cyclic": _cyclic,
    "dihedral": _dihedral,
    "symmetric": _symmetric,
    "alternating": _alternating,
}


# --- Partitions and Young's orthogonal form --------------------------------------------------------------------------


def partitions(n: int, largest: int | None = None) -> Iterator[Partition]:
    """The ways to write n as a sum of falling parts, the largest parts first."""
    if n == 0:
        yield ()
    for part in range(min(n, n if largest is None else largest), 0, -1):
        yield from ((part, *rest) for rest in partitions(n - part, part))


def _ordered(n: int) -> list[Partition]:
    """Trivial, sign, standard, standard · sign, then the others: the order of Chughtai et al."""
    found = list(partitions(n))
    first = list(dict.fromkeys([(n,), (1,) * n, *([(n - 1, 1), (2,) + (1,) * (n - 2)] if n > 2 else [])]))
    rest = sorted((p for p in found if p not in first), key=lambda p: (len(_tableaux(p)), p))
    return first + rest


def _conjugate(partition: Partition) -> Partition:
    return tuple(sum(part > column for part in partition) for column in range(partition[0]))


@functools.lru_cache(maxsize=64)
def _tableaux(partition: Partition) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The standard tableaux, each as the cells (row, column) of 1, 2, …, n."""
    if not partition:
        return ((),)
    found = []
    for row, part in enumerate(partition):
        if row + 1 == len(partition) or partition[row + 1] < part:  # a corner, where the largest number may stand
            smaller = tuple(p for p in (*partition[:row], part - 1, *partition[row + 1 :]) if p)
            found.extend((*cells, (row, part - 1)) for cells in _tableaux(smaller))
    return tuple(found)


def _swap(partition: Partition, k: int) -> Float[Tensor, "d d"]:
    """ρ of the transposition of the k-th and the next number, counted from 0."""
    tableaux = _tableaux(partition)
    places = {cells: place for place, cells in enumerate(tableaux)}
    found = torch.zeros(len(tableaux), len(tableaux), dtype=torch.float64)
    for place, cells in enumerate(tableaux):
        (row, column), (next_row, next_column) = cells[k], cells[k + 1]
        distance = (next_column - next_row) - (column - row)
        found[place, place] = 1 / distance
        other = (*cells[:k], cells[k + 1], cells[k], *cells[k + 2 :])
        if other in places:
            found[places[other], place] = (1 - 1 / distance**2) ** 0.5
    return found


def _young(group: Group, partition: Partition) -> Float[Tensor, "element d d"]:
    """All matrices, from those of the adjacent transpositions along the table."""
    n, places = group.parameter, _places(group)
    size = len(_tableaux(partition))
    found = torch.zeros(group.order, size, size, dtype=torch.float64)
    found[group.identity] = torch.eye(size)
    swaps = []
    for k in range(n - 1):
        points = list(range(n))
        points[k], points[k + 1] = k + 1, k
        swaps.append((places[tuple(points)], _swap(partition, k)))
    known = torch.zeros(group.order, dtype=torch.bool)
    known[group.identity] = True
    edge = torch.tensor([group.identity])
    while len(edge):
        reached = []
        for swap, matrix in swaps:
            after = group.table[edge, swap]
            new = ~known[after]
            found[after[new]] = found[edge[new]] @ matrix
            known[after[new]] = True
            reached.append(after[new])
        edge = torch.cat(reached) if reached else edge[:0]
    return found


def _places(group: Group) -> dict[tuple[int, ...], int]:
    """The number of each permutation, by where it sends the points."""
    if group.arrays is None:
        raise UserError(f"The {group.name} group is not given as permutations.")
    return {tuple(points): place for place, points in enumerate(group.arrays.tolist())}


def _associator(partition: Partition) -> Float[Tensor, "d d"]:
    """T with T ρ(x) = sign(x) ρ(x) T: each tableau goes to its transpose, with the sign of its reading."""
    tableaux = _tableaux(partition)
    places = {cells: place for place, cells in enumerate(tableaux)}
    found = torch.zeros(len(tableaux), len(tableaux), dtype=torch.float64)
    for place, cells in enumerate(tableaux):
        order = sorted(range(len(cells)), key=lambda number: cells[number])
        odd = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :]) % 2
        found[places[tuple((column, row) for row, column in cells)], place] = -1.0 if odd else 1.0
    return found
