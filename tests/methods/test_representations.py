"""Representations and subgroups: homomorphisms, orthogonality, and the known tables of small groups."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from headwork.errors import UserError
from headwork.methods.representations import irrep_named, irreps, partitions
from headwork.methods.subgroups import averaged, coset_numbers, double_coset_numbers, subgroups
from headwork.tasks.groups import Group, group

# Degrees, the trivial representation's first, and how many are two complex ones in one.
KNOWN = {
    ("cyclic", 1): ([1], 0),
    ("cyclic", 2): ([1, 1], 0),
    ("cyclic", 7): ([1, 2, 2, 2], 3),
    ("cyclic", 8): ([1, 2, 2, 2, 1], 3),
    ("dihedral", 5): ([1, 1, 2, 2], 0),
    ("dihedral", 6): ([1, 1, 1, 1, 2, 2], 0),
    ("symmetric", 1): ([1], 0),
    ("symmetric", 2): ([1, 1], 0),
    ("symmetric", 3): ([1, 1, 2], 0),
    ("symmetric", 4): ([1, 1, 3, 3, 2], 0),
    ("symmetric", 5): ([1, 1, 4, 4, 5, 5, 6], 0),
    ("symmetric", 6): ([1, 1, 5, 5, 5, 5, 9, 9, 10, 10, 16], 0),
    ("alternating", 3): ([1, 2], 1),
    ("alternating", 4): ([1, 3, 2], 1),
    ("alternating", 5): ([1, 4, 5, 3, 3], 0),
    ("alternating", 6): ([1, 5, 5, 9, 10, 8, 8], 0),
}


@pytest.fixture(params=KNOWN, ids=lambda known: f"{known[0]}-{known[1]}")
def found(request: pytest.FixtureRequest) -> Group:
    return group(*request.param)


def test_matrices_multiply_as_the_elements_do(found: Group) -> None:
    n = found.order
    if n <= 60:
        x, y = (each.flatten() for each in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    else:
        x, y = torch.randint(0, n, (2, 2000), generator=torch.Generator().manual_seed(0))
    for irrep in irreps(found):
        products = irrep.matrices[x] @ irrep.matrices[y]
        torch.testing.assert_close(products, irrep.matrices[found.table[x, y]], rtol=0, atol=1e-12)
        lengths = irrep.matrices @ irrep.matrices.mT
        torch.testing.assert_close(lengths, torch.eye(irrep.degree).double().expand_as(lengths), rtol=0, atol=1e-12)


def test_degrees_are_the_known_ones_and_add_up_to_the_order(found: Group) -> None:
    degrees, complex_pairs = KNOWN[found.name, found.parameter]
    assert [irrep.degree for irrep in irreps(found)] == degrees
    assert sorted(irrep.norm for irrep in irreps(found)) == [1] * (len(degrees) - complex_pairs) + [2] * complex_pairs
    assert sum(irrep.degree**2 // irrep.norm for irrep in irreps(found)) == found.order
    assert len({irrep.name for irrep in irreps(found)}) == len(degrees)


def test_characters_and_matrix_entries_are_orthogonal(found: Group) -> None:
    characters = torch.stack([irrep.character for irrep in irreps(found)])
    norms = torch.tensor([irrep.norm for irrep in irreps(found)]).double()
    torch.testing.assert_close(characters @ characters.T / found.order, norms.diag(), rtol=0, atol=1e-12)
    functions = torch.cat([irrep.functions for irrep in irreps(found)], 1)
    torch.testing.assert_close(functions.T @ functions, torch.eye(found.order).double(), rtol=0, atol=1e-11)
    for irrep in irreps(found):  # the functions are those of its entries, no others
        entries = irrep.matrices.flatten(1)
        torch.testing.assert_close(irrep.functions @ (irrep.functions.T @ entries), entries, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "parameter"), [key for key in KNOWN if key[1] < 6 or key[0] == "cyclic"])
def test_complex_representations_are_as_many_as_the_conjugacy_classes(name: str, parameter: int) -> None:
    found = group(name, parameter)
    classes = found.classes()
    assert sum(irrep.norm for irrep in irreps(found)) == len(classes)
    for members in classes:
        for irrep in irreps(found):
            assert float(irrep.character[members].max() - irrep.character[members].min()) < 1e-12


def test_the_characters_of_the_symmetric_group_of_five_points_are_the_textbooks() -> None:
    found = group("symmetric", 5)
    assert found.arrays is not None
    fixed = (found.arrays == torch.arange(5)).sum(1).double()
    sign = torch.stack([torch.linalg.det(torch.eye(5).double()[points]).round() for points in found.arrays])
    pairs = torch.stack(  # how many unordered pairs of points stay
        [
            torch.tensor(sum({int(p[a]), int(p[b])} == {a, b} for a, b in itertools.combinations(range(5), 2)))
            for p in found.arrays
        ]
    ).double()
    square = found.table.diagonal()
    known = {
        "trivial": torch.ones(120).double(),
        "sign": sign,
        "standard": fixed - 1,
        "standard_sign": (fixed - 1) * sign,
        "s5_5d_b": pairs - fixed,
        "s5_5d_a": (pairs - fixed) * sign,
        "s5_6d": ((fixed - 1) ** 2 - (fixed - 1)[square]) / 2,
    }
    assert [irrep.name for irrep in irreps(found)] == list(known)[:4] + ["s5_5d_a", "s5_5d_b", "s5_6d"]
    for name, character in known.items():
        torch.testing.assert_close(irrep_named(found, name).character, character, rtol=0, atol=1e-12)


def test_frequencies_are_turns_by_multiples_of_the_angle() -> None:
    for name, order in (("cyclic", 7), ("dihedral", 14)):
        found = group(name, 7)
        turns = torch.arange(7).double()
        for k in (1, 2, 3):
            character = irrep_named(found, f"freq_{k}").character
            torch.testing.assert_close(character[:7], 2 * torch.cos(2 * torch.pi * k * turns / 7))
            assert order == 7 or float(character[7:].abs().max()) < 1e-12  # reflections


def test_a_representation_of_the_alternating_group_that_splits_has_the_golden_ratio() -> None:
    found = group("alternating", 5)
    halves = [irrep for irrep in irreps(found) if irrep.degree == 3]
    values = sorted({round(float(v), 9) for half in halves for v in half.character})
    assert values == pytest.approx([-1, (1 - 5**0.5) / 2, 0, (1 + 5**0.5) / 2, 3], abs=1e-9)
    whole = group("symmetric", 5)
    assert whole.arrays is not None
    assert found.arrays is not None
    places = {tuple(points): place for place, points in enumerate(whole.arrays.tolist())}
    even = torch.tensor([places[tuple(points)] for points in found.arrays.tolist()])
    together = halves[0].character + halves[1].character
    torch.testing.assert_close(together, irrep_named(whole, "s5_6d").character[even], rtol=0, atol=1e-12)


def test_there_are_as_many_partitions_as_there_should_be() -> None:
    assert [len(list(partitions(n))) for n in range(9)] == [1, 1, 2, 3, 5, 7, 11, 15, 22]


def test_groups_and_names_that_are_not_implemented_are_refused() -> None:
    strange = Group("quaternion", 8, ("e",), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(UserError, match=r"quaternion group .* not implemented; those of every cyclic and dihedral"):
        irreps(strange)
    with pytest.raises(UserError, match=r"Unknown irreducible representation .* 'freq_9': the nearest .* freq_"):
        irrep_named(group("cyclic", 7), "freq_9")
    with pytest.raises(UserError, match=r"720 elements; subgroups are found for groups of up to 120"):
        subgroups(group("symmetric", 6))


@pytest.mark.artifacts
@pytest.mark.parametrize(
    ("folder", "name", "parameter"),
    [("C113_MLP_seed1", "cyclic", 113), ("D59_MLP_seed1", "dihedral", 59), ("S5_MLP_seed1", "symmetric", 5)],
)
def test_names_are_those_of_the_authors(artifacts: Path, folder: str, name: str, parameter: int) -> None:
    theirs = (artifacts / "group-composition" / folder / "irreps.txt").read_text().split()
    assert [irrep.name for irrep in irreps(group(name, parameter))] == theirs


# --- Subgroups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameter", "classes", "total"),
    [
        ("cyclic", 12, 6, 6),
        ("cyclic", 7, 2, 2),
        ("dihedral", 4, 8, 10),
        ("symmetric", 3, 4, 6),
        ("symmetric", 4, 11, 30),
        ("symmetric", 5, 19, 156),
        ("alternating", 4, 5, 10),
        ("alternating", 5, 9, 59),
    ],
)
def test_there_are_as_many_subgroups_as_the_tables_say(name: str, parameter: int, classes: int, total: int) -> None:
    structure = group(name, parameter)
    found = subgroups(structure)
    assert (len(found) + 2, sum(len(each.members) for each in found) + 2) == (classes, total)
    assert [each.index for each in found] == sorted(each.index for each in found)
    for each in found:
        for members in each.members:
            products = structure.table[members][:, members]
            assert products.unique().tolist() == members.tolist()


def test_the_subgroups_of_five_points_have_their_names() -> None:
    found = {each.name: each for each in subgroups(group("symmetric", 5))}
    sizes = {"A5": 60, "S4": 24, "F20": 20, "A4": 12, "S3×S2": 12, "D5": 10, "D4": 8, "C5": 5}
    assert {name: found[name].members.shape[1] for name in sizes} == sizes
    arrays = group("symmetric", 5).arrays
    assert arrays is not None
    for members in found["S4"].members:  # each leaves one point where it is
        assert (arrays[members] == torch.arange(5)).all(0).sum() == 1


def test_cosets_are_those_of_the_definition() -> None:
    structure = group("symmetric", 4)
    table = structure.table.tolist()
    for each in subgroups(structure):
        members = each.members[-1].tolist()
        right = coset_numbers(structure, each.members[-1], "right").tolist()
        left = coset_numbers(structure, each.members[-1], "left").tolist()
        double = double_coset_numbers(structure, each.members[-1], each.members[0]).tolist()
        assert set(right) == set(left) == set(range(each.index))
        for x in range(structure.order):
            assert {y for y in range(24) if right[y] == right[x]} == {table[h][x] for h in members}
            assert {y for y in range(24) if left[y] == left[x]} == {table[x][h] for h in members}
            assert {y for y in range(24) if double[y] == double[x]} == {
                table[table[h][x]][k] for h in members for k in each.members[0].tolist()
            }


def test_averaging_is_the_projection_on_functions_of_the_partition() -> None:
    numbers = torch.tensor([0, 1, 0, 2, 1, 0])
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    design = torch.nn.functional.one_hot(numbers).double()
    fitted = design @ torch.linalg.lstsq(design, values).solution
    torch.testing.assert_close(averaged(values, numbers), fitted)
