"""Subgroups of a finite group by conjugacy, and their cosets: what the coset account of group networks speaks of."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.groups import Group

Side = Literal["right", "left"]
_LARGEST = 120
_KNOWN: dict[tuple[int, int, int, int], str] = {
    (5, 60, 1, 15): "A5",
    (5, 24, 5, 9): "S4",
    (5, 20, 6, 5): "F20",
    (5, 12, 5, 3): "A4",
    (5, 12, 10, 7): "S3×S2",
    (5, 10, 6, 5): "D5",
    (5, 8, 15, 5): "D4",
    (5, 5, 6, 0): "C5",
}
"""Names of the larger subgroups of S5: points, order, conjugates and involutions tell them apart."""


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Conjugate subgroups: `members[i]` are the elements of the i-th, as numbers in rising order."""

    name: str
    members: Int[Tensor, "conjugate element"]
    group: Group

    @property
    def index(self) -> int:
        """How many cosets each has."""
        return self.group.order // self.members.shape[1]

    def cosets(self, side: Side) -> Int[Tensor, "conjugate x"]:
        """For each conjugate H and element x the number of the coset H·x (`right`) or x·H (`left`) that x is in."""
        return torch.stack([coset_numbers(self.group, members, side) for members in self.members])


def coset_numbers(group: Group, members: Int[Tensor, " element"], side: Side) -> Int[Tensor, " x"]:
    """The number of each element's coset, H·x (`right`) or x·H (`left`), in the order of the cosets' first elements."""
    reached = group.table[members] if side == "right" else group.table[:, members].T
    return reached.amin(0).unique(return_inverse=True)[1]


def double_coset_numbers(group: Group, left: Int[Tensor, " h"], right: Int[Tensor, " k"]) -> Int[Tensor, " x"]:
    """The number of each element's double coset H·x·K."""
    reached = group.table[group.table[left][:, :, None], right]
    return reached.amin(2).amin(0).unique(return_inverse=True)[1]


@functools.lru_cache(maxsize=16)
def subgroups(group: Group) -> tuple[Subgroups, ...]:
    """All subgroups but the whole group and the trivial one, by conjugacy class, the smallest index first.

    The larger ones of S5 have their usual names; the others are called `order-h` after their order, with a letter where
    several classes have it. Raises `UserError` for a group of more than 120 elements.
    """
    if group.order > _LARGEST:
        raise UserError(
            f"The {group.name} group with parameter {group.parameter} has {group.order} elements; subgroups are found "
            f"for groups of up to {_LARGEST}."
        )
    table, inverses = group.table.tolist(), group.inverses.tolist()
    trivial = frozenset([group.identity])
    seen: dict[frozenset[int], frozenset[frozenset[int]]] = {trivial: frozenset([trivial])}
    edge: list[tuple[int, ...]] = [()]
    while edge:  # every subgroup is a smaller one with one generator more
        generators = edge.pop()
        for x in range(group.order):
            found = _generated(table, group.identity, (*generators, x))
            if found in seen:
                continue
            conjugates = frozenset(
                frozenset(table[table[inverses[g]][h]][g] for h in found) for g in range(group.order)
            )
            seen |= dict.fromkeys(conjugates, conjugates)
            edge.append((*generators, x))
    classes = [c for c in set(seen.values()) if 1 < len(next(iter(c))) < group.order]
    return _named(group, sorted(classes, key=lambda c: (-len(next(iter(c))), len(c), sorted(map(sorted, c)))))


def _generated(table: list[list[int]], identity: int, generators: tuple[int, ...]) -> frozenset[int]:
    """The smallest subgroup with these elements; inverses are powers, as the group is finite."""
    found, edge = {identity}, [identity]
    while edge:
        row = table[edge.pop()]
        new = {row[generator] for generator in generators} - found
        found |= new
        edge.extend(new)
    return frozenset(found)


def _named(group: Group, classes: list[frozenset[frozenset[int]]]) -> tuple[Subgroups, ...]:
    square = group.table.diagonal()
    involutions = (square == group.identity).nonzero()[:, 0].tolist()
    found, counts = [], [len(next(iter(c))) for c in classes]
    letters: dict[int, int] = {}
    for conjugates in classes:
        members = sorted(map(sorted, conjugates))
        order = len(members[0])
        swaps = len(set(involutions) & set(members[0])) - 1
        letter = letters[order] = letters.get(order, -1) + 1
        name = f"order-{order}" + (chr(ord("a") + letter) if counts.count(order) > 1 else "")
        if group.name == "symmetric":
            name = _KNOWN.get((group.parameter, order, len(members), swaps), name)
        found.append(Subgroups(name, torch.tensor(members), group))
    return tuple(found)


def averaged(values: Float[Tensor, "x feature"], numbers: Int[Tensor, " x"]) -> Float[Tensor, "x feature"]:
    """The values with each replaced by the mean over its part of the partition: their projection on its functions."""
    parts = int(numbers.max()) + 1
    sums = torch.zeros(parts, values.shape[1], dtype=values.dtype).index_add_(0, numbers, values)
    return (sums / numbers.bincount(minlength=parts)[:, None])[numbers]
