"""Groups: the axioms, their relations, and the order of their elements, on which a network's tokens depend."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from headwork.errors import UserError
from headwork.tasks.groups import GROUPS, Group, group

KNOWN = [("cyclic", 1), ("cyclic", 2), ("cyclic", 12), ("dihedral", 3), ("dihedral", 4), ("dihedral", 7)]
KNOWN += [("symmetric", 1), ("symmetric", 3), ("symmetric", 4), ("alternating", 3), ("alternating", 4)]


@pytest.fixture(params=KNOWN, ids=lambda known: f"{known[0]}-{known[1]}")
def found(request: pytest.FixtureRequest) -> Group:
    return group(*request.param)


def test_the_axioms_hold(found: Group) -> None:
    n, table, e = found.order, found.table, found.identity
    assert n == GROUPS[found.name][1](found.parameter) == len(found.elements) == len(set(found.elements))
    everything = torch.arange(n)
    for row in (*table, *table.T):  # each element once in every row and column
        assert torch.equal(row.sort().values, everything)
    assert torch.equal(table[e], everything)
    assert torch.equal(table[:, e], everything)
    assert (table[everything, found.inverses] == e).all()
    assert (table[found.inverses, everything] == e).all()
    # (x · y) · z against x · (y · z), for all triples
    assert torch.equal(table[table], table[everything[:, None, None], table[None]])


def test_conjugacy_classes_partition_the_group_and_are_closed(found: Group) -> None:
    classes = found.classes()
    assert sorted(itertools.chain(*classes)) == list(range(found.order))
    table, inverses = found.table.tolist(), found.inverses.tolist()
    for members in classes:
        slow = {table[table[g][members[0]]][inverses[g]] for g in range(found.order)}
        assert slow == set(members)


@pytest.mark.parametrize(
    ("name", "parameter", "sizes"),
    [
        ("cyclic", 5, [1, 1, 1, 1, 1]),
        ("dihedral", 5, [1, 2, 2, 5]),
        ("dihedral", 4, [1, 1, 2, 2, 2]),
        ("symmetric", 4, [1, 3, 6, 6, 8]),
        ("alternating", 5, [1, 12, 12, 15, 20]),
    ],
)
def test_conjugacy_classes_have_the_known_sizes(name: str, parameter: int, sizes: list[int]) -> None:
    assert sorted(map(len, group(name, parameter).classes())) == sizes


def test_the_cyclic_group_is_addition() -> None:
    assert all(group("cyclic", 7).table[x, y] == (x + y) % 7 for x in range(7) for y in range(7))


def test_the_dihedral_group_is_turns_and_then_reflections() -> None:
    found = group("dihedral", 5)
    assert found.elements == ("e", "r", "r2", "r3", "r4", "s", "rs", "r2s", "r3s", "r4s")
    turn = torch.tensor(
        [
            [math.cos(2 * math.pi / 5), -math.sin(2 * math.pi / 5)],
            [math.sin(2 * math.pi / 5), math.cos(2 * math.pi / 5)],
        ]
    )
    flip = torch.diag(torch.tensor([1.0, -1.0]))
    matrices = [
        torch.linalg.matrix_power(turn, k) @ torch.linalg.matrix_power(flip, f) for f in (0, 1) for k in range(5)
    ]
    for x, y in itertools.product(range(10), range(10)):
        product = matrices[x] @ matrices[y]
        nearest = min(range(10), key=lambda z: float((matrices[z] - product).abs().max()))
        assert found.table[x, y] == nearest


@pytest.mark.parametrize(("name", "n"), [("symmetric", 4), ("alternating", 4)])
def test_permutations_multiply_first_one_then_the_other(name: str, n: int) -> None:
    found = group(name, n)
    assert found.arrays is not None
    arrays = found.arrays.tolist()
    for x, y in itertools.product(range(found.order), range(found.order)):
        assert arrays[found.table[x, y]] == [arrays[y][arrays[x][point]] for point in range(n)]


def test_the_order_of_permutations_is_the_one_that_the_authors_used() -> None:
    # Sympy's, at the time of their networks; another order would give every token another meaning.
    assert group("symmetric", 3).elements == (
        "[0, 1, 2]", "[1, 2, 0]", "[2, 0, 1]", "[0, 2, 1]", "[1, 0, 2]", "[2, 1, 0]"
    )  # fmt: skip
    assert group("alternating", 4).elements[:5] == (
        "[0, 1, 2, 3]", "[1, 2, 0, 3]", "[2, 0, 1, 3]", "[3, 0, 2, 1]", "[0, 2, 3, 1]"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameter", "says"),
    [
        ("cyclical", 3, r"Unknown group 'cyclical': the nearest valid one is cyclic"),
        ("cyclic", 0, r"cyclic group with parameter 0 is not implemented: .* 1 or more"),
        ("dihedral", 2, r"dihedral group with parameter 2 is not implemented: .* 3 or more"),
        ("symmetric", 7, r"symmetric group with parameter 7 is not implemented: .* at most 1000 elements"),
        ("cyclic", 10**12, r"cyclic group with parameter 1000000000000 is not implemented"),
    ],
)
def test_groups_that_are_not_implemented_are_refused(name: str, parameter: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        group(name, parameter)
