"""Finite groups as multiplication tables, with their elements in the order of Chughtai et al. 2023."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.errors import UserError, unknown

_LARGEST = 1000


@dataclass(frozen=True, eq=False)
class Group:
    """`table[x, y]` is the number of the element x · y; `elements` name them, `identity` is the number of e.

    For permutations `arrays[x]` is where x sends each point, and x · y means x first, then y.
    """

    name: str
    parameter: int
    elements: tuple[str, ...]
    table: Int[Tensor, "x y"]
    arrays: Int[Tensor, "x point"] | None = None

    @property
    def order(self) -> int:
        """How many elements it has."""
        return len(self.table)

    @property
    def identity(self) -> int:
        """The number of the element that changes nothing."""
        same = (self.table == torch.arange(self.order)).all(1)
        return int(same.nonzero()[0, 0])

    @property
    def inverses(self) -> Int[Tensor, " x"]:
        """The number of each element's inverse."""
        return (self.table == self.identity).long().argmax(1)

    def classes(self) -> list[list[int]]:
        """The conjugacy classes, by their first element."""
        everything = torch.arange(self.order)
        found: dict[int, list[int]] = {}
        for x in range(self.order):
            conjugates = self.table[self.table[everything, x], self.inverses].unique().tolist()
            found.setdefault(conjugates[0], conjugates)
        return [found[first] for first in sorted(found)]


def cyclic(n: int) -> Group:
    """The residues modulo n under addition."""
    numbers = torch.arange(n)
    return Group("cyclic", n, tuple(map(str, range(n))), (numbers[:, None] + numbers) % n)


def dihedral(n: int) -> Group:
    """The symmetries of an n-gon, 2n of them: e, r, …, r^(n−1), s, rs, …, r^(n−1)s, with s r = r⁻¹ s."""
    numbers = torch.arange(2 * n)
    turn, flip = numbers % n, numbers // n
    turns = (turn[:, None] + torch.where(flip[:, None] == 1, -turn, turn)) % n
    table = turns + n * ((flip[:, None] + flip) % 2)
    powers = ["", "r", *(f"r{k}" for k in range(2, n))][:n]
    names = tuple((f"{power}{'s' * flips}" or "e") for flips in range(2) for power in powers)
    return Group("dihedral", n, names, table)


def symmetric(n: int) -> Group:
    """All permutations of n points, in the order in which sympy generates them."""
    from sympy.combinatorics.named_groups import SymmetricGroup

    return _permutations("symmetric", n, SymmetricGroup(n).generate())


def alternating(n: int) -> Group:
    """The even permutations of n points, in the order in which sympy generates them."""
    from sympy.combinatorics.named_groups import AlternatingGroup

    return _permutations("alternating", n, AlternatingGroup(n).generate())


def _permutations(name: str, n: int, found: Iterable[Any]) -> Group:
    arrays = [list(permutation.array_form) for permutation in found]
    points = torch.tensor(arrays, dtype=torch.long).reshape(len(arrays), n)
    products = points[:, points].transpose(0, 1)  # [x, y, point]: y after x
    weights = n ** torch.arange(n)
    codes = (points * weights).sum(-1)
    ranks, places = codes.sort()
    table = places[torch.searchsorted(ranks, (products * weights).sum(-1))]
    return Group(name, n, tuple(map(str, arrays)), table, points)


GROUPS: Mapping[str, tuple[Callable[[int], Group], Callable[[int], int]]] = {
    "cyclic": (cyclic, lambda n: n),
    "dihedral": (dihedral, lambda n: 2 * n),
    "symmetric": (symmetric, math.factorial),
    "alternating": (alternating, lambda n: math.factorial(n) // 2),
}
"""By name: what makes the group, and how many elements it has."""


@functools.lru_cache(maxsize=16)
def group(name: str, parameter: int) -> Group:
    """The group of this name and parameter. Raises `UserError` for one that is not implemented or too large."""
    if name not in GROUPS:
        raise unknown("group", name, GROUPS)
    make, order = GROUPS[name]
    least = 3 if name in ("dihedral", "alternating") else 1
    if isinstance(parameter, bool) or not least <= parameter <= _LARGEST or order(parameter) > _LARGEST:
        raise UserError(
            f"The {name} group with parameter {parameter} is not implemented: the parameter must be a whole number, "
            f"{least} or more, and the group have at most {_LARGEST} elements."
        )
    return make(parameter)
