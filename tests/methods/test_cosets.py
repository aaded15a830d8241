"""Coset neurons and the two accounts: planted ones are found, turned ones are not, fits against slow twins."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.group_networks import character_logits, drawn, of_halves, point_network
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.cosets import coset_neurons, shares, shuffled, turn
from headwork.methods.group_accounts import fitted_accounts, fitted_characters
from headwork.methods.pair_outputs import PairOutputs, pair_outputs
from headwork.methods.representations import irrep_named, irreps
from headwork.methods.subgroups import subgroups
from headwork.model.sources import load
from headwork.tasks.group_composition import GroupComposition
from headwork.tasks.groups import group
from headwork.tasks.published import task_of

FOUR = group("symmetric", 4)
POINT = "order-6"  # the subgroup that leaves one of four points where it is


@pytest.fixture(scope="module")
def planted() -> PairOutputs:
    return pair_outputs(point_network(FOUR), GroupComposition("symmetric", 4))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shares_are_those_of_a_regression_on_the_parts() -> None:
    values = drawn(24, 5)
    numbers = torch.stack([torch.arange(24) % 4, torch.arange(24) // 6])
    found = shares(values, numbers)
    for part, share in zip(numbers, found):
        design = torch.nn.functional.one_hot(part).double()
        rest = values - design @ torch.linalg.lstsq(design, values).solution
        expected = 1 - rest.square().sum(0) / (values - values.mean(0)).square().sum(0)
        torch.testing.assert_close(share, expected)
    assert shares(torch.ones(24, 1).double(), numbers).tolist() == [[0], [0]]


def test_turns_keep_irreps_and_singular_values_and_nothing_else() -> None:
    for name, parameter in (("symmetric", 4), ("cyclic", 7), ("alternating", 4)):
        structure = group(name, parameter)
        found = turn(structure, generator())
        torch.testing.assert_close(found @ found.T, torch.eye(structure.order).double(), rtol=0, atol=1e-12)
        values = drawn(structure.order, 3)
        for irrep in irreps(structure):
            before, after = irrep.functions.T @ values, irrep.functions.T @ (found @ values)
            torch.testing.assert_close(before.norm(dim=0), after.norm(dim=0))
            if irrep.norm == 1:
                d = irrep.degree
                before, after = (torch.linalg.svdvals(each.T.reshape(-1, d, d)) for each in (before, after))
                torch.testing.assert_close(before, after)
    standard = irrep_named(FOUR, "standard").functions
    values = standard @ drawn(9, 1)
    assert float((turn(FOUR, generator()) @ values - values).norm() / values.norm()) > 0.5


def test_drawn_partitions_have_parts_of_the_same_sizes() -> None:
    numbers = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]])
    found = shuffled(numbers, generator())
    assert [sorted(row) for row in found.tolist()] == numbers.tolist()
    assert not torch.equal(found, numbers)


def test_planted_coset_neurons_are_found_with_their_conjugates(planted: PairOutputs) -> None:
    left, right = planted.embeddings["left"], planted.embeddings["right"]
    found = coset_neurons(left, right, FOUR, draws=10)
    assert set(found.assigned.values) == {POINT}
    assert found.beyond_irreps.all()
    assert found.share.sel(subgroup=POINT).values == pytest.approx(1)
    # Neuron 2(4i + k) + sign belongs to the points i and k; the conjugates are those that leave a point where it is.
    arrays = FOUR.arrays
    assert arrays is not None
    members = next(each for each in subgroups(FOUR) if each.name == POINT).members
    kept = [(arrays[each] == torch.arange(4)).all(0).nonzero().item() for each in members]
    neurons = range(left.shape[1])
    assert [kept[i] for i in found.left_conjugate.sel(subgroup=POINT).values] == [n // 8 for n in neurons]
    assert [kept[i] for i in found.right_conjugate.sel(subgroup=POINT).values] == [n // 2 % 4 for n in neurons]


def test_the_other_sides_cosets_are_no_coset_neurons(planted: PairOutputs) -> None:
    left, right = planted.embeddings["left"], planted.embeddings["right"]
    found = coset_neurons(left[FOUR.inverses], right[FOUR.inverses], FOUR, draws=3)
    # A neuron whose values are nearly those of one point against all others is a function of both sides' cosets.
    assert float(found.share.sel(subgroup=POINT).median()) < 0.9
    assert (found.assigned == POINT).sum() <= 8


def test_neurons_of_the_same_irreps_in_a_turned_basis_are_no_coset_neurons(planted: PairOutputs) -> None:
    a, b = turn(FOUR, generator(1)), turn(FOUR, generator(2))
    left, right = a @ planted.embeddings["left"], b @ planted.embeddings["right"]
    found = coset_neurons(left, right, FOUR, draws=20, seed=5)
    assert (found.assigned == POINT).sum() <= 4
    # Each real one is but one more of its null's draws.
    beyond = found.share.sel(subgroup=POINT) > found.rotation_null.sel(subgroup=POINT)
    assert float(beyond.mean()) < 0.5


def test_noise_has_no_coset_neurons_of_small_index() -> None:
    found = coset_neurons(drawn(24, 30), drawn(24, 30, seed=1), FOUR, draws=5)
    assert float(found.share.where(found["index"] <= 8).max()) < 0.9
    assert not [name for name in found.assigned.values if name]


def test_what_partitions_at_random_explain_as_well_is_not_assigned() -> None:
    found = coset_neurons(drawn(24, 30), drawn(24, 30, seed=1), FOUR, draws=40, least=0.02)
    assert (found.assigned != "").mean() < 0.6
    assert (found.share > found.partition_null).mean() < 0.15


def test_in_irreps_of_degree_one_the_accounts_agree() -> None:
    sign = irrep_named(FOUR, "sign").character[:, None]
    found = coset_neurons(sign, -sign, FOUR, draws=3)
    assert found.assigned.values.tolist() == ["order-12"]
    assert float(found.rotation_null.sel(subgroup="order-12").squeeze()) == pytest.approx(1)
    assert not found.beyond_irreps.any()


def test_dead_neurons_are_no_coset_neurons(planted: PairOutputs) -> None:
    left, right = (planted.embeddings[side][:, :4].clone() for side in ("left", "right"))
    left[:, 1] *= 1e-5
    found = coset_neurons(left, right, FOUR, draws=2)
    assert found.dead.values.tolist() == [False, True, False, False]
    assert found.assigned.values.tolist() == [POINT, "", POINT, POINT]
    assert found.share.isel(neuron=1).isnull().all()


# --- Accounts --------------------------------------------------------------------------------------------------------


def test_both_accounts_explain_a_network_of_cosets(planted: PairOutputs) -> None:
    neurons = coset_neurons(planted.embeddings["left"], planted.embeddings["right"], FOUR, draws=3)
    found = fitted_accounts(planted, neurons)
    explained = found.logits_explained.to_series().to_dict()
    for account in ("network", "cosets", "cosets and unembedding", "irrep", "irrep of rank 1"):
        assert explained[account] == pytest.approx(1, abs=1e-9)
        assert float(found.accuracy.sel(account=account)) == 1
    assert explained["cosets in a turned basis"] < 0.8
    assert explained["random partitions"] < 0.2
    count = 32 * 2
    numbers = found.numbers.to_series().astype(int).to_dict()
    assert numbers["network"] == count * 24
    assert {numbers[name] for name in numbers if "cosets" in name or "partitions" in name} == {count * 4}
    assert (numbers["irrep"], numbers["irrep of rank 1"]) == (count * 10, count * 6)
    assert numbers["irreps, as many numbers"] == count * 4


def test_cosets_of_a_normal_subgroup_are_the_same_in_every_basis() -> None:
    # Their functions are whole spaces of irreps, which turning maps to themselves.
    normal = next(each for each in subgroups(FOUR) if each.index == 6 and len(each.members) == 1)
    numbers = normal.cosets("left")[0]
    left, right = drawn(6, 3)[numbers], drawn(6, 3, seed=1)[numbers]
    neurons = coset_neurons(left, right, FOUR, draws=1)
    assert set(neurons.assigned.values) == {normal.name}
    found = fitted_accounts(of_halves(FOUR, left, right, drawn(3, 24, seed=2)), neurons, draws=2)
    assert float(found.logits_explained.sel(account="cosets in a turned basis")) == pytest.approx(1)
    assert float(found.logits_explained.sel(account="random partitions")) < 0.9


def test_cosets_explain_no_network_whose_irreps_are_in_a_turned_basis(planted: PairOutputs) -> None:
    a, b = turn(FOUR, generator(1)), turn(FOUR, generator(2))
    outputs = of_halves(FOUR, a @ planted.embeddings["left"], b @ planted.embeddings["right"], planted.outward)  # type: ignore[arg-type]
    neurons = coset_neurons(planted.embeddings["left"], planted.embeddings["right"], FOUR, draws=3)
    found = fitted_accounts(outputs, neurons).logits_explained.to_series().to_dict()
    assert found["cosets"] < 0.8
    assert found["irrep of rank 1"] == pytest.approx(1, abs=1e-9)


def test_accounts_are_what_a_neuron_by_neuron_fit_gives() -> None:
    left, right, outward = drawn(24, 3), drawn(24, 3, seed=1), drawn(3, 24, seed=2)
    outputs = of_halves(FOUR, left, right, outward)
    neurons = coset_neurons(left, right, FOUR, draws=2, least=0.05)
    found = fitted_accounts(outputs, neurons, draws=1)
    by_name = {each.name: each for each in subgroups(FOUR)}

    def explained(l_kept: list[Tensor], r_kept: list[Tensor]) -> float:
        logits = sum(
            ((a[:, None] + b[None]).relu()[..., None] * u for a, b, u in zip(l_kept, r_kept, outward)),
            torch.zeros(24, 24, 24).double(),
        )
        goal = outputs.logits - outputs.logits.mean(2, keepdim=True)
        return float(1 - (logits - logits.mean(2, keepdim=True) - goal).square().sum() / goal.square().sum())

    def coset_fit(values: Tensor, name: str, side: Any) -> Tensor:
        fits = []
        for numbers in by_name[name].cosets(side):
            design = torch.nn.functional.one_hot(numbers).double()
            fits.append(design @ torch.linalg.lstsq(design, values[:, None]).solution[:, 0])
        return min(fits, key=lambda fit: float((fit - values).norm()))

    names = neurons.assigned.values.tolist()
    assert all(names)
    expected = explained(
        [coset_fit(left[:, i], name, "right") for i, name in enumerate(names)],
        [coset_fit(right[:, i], name, "left") for i, name in enumerate(names)],
    )
    assert float(found.logits_explained.sel(account="cosets")) == pytest.approx(expected)
    assert int(found.numbers.sel(account="cosets")) == sum(2 * by_name[name].index for name in names)

    def irrep_fit(i: int) -> tuple[Tensor, Tensor]:
        best = max(
            irreps(FOUR)[1:],
            key=lambda rho: sum(float((rho.functions.T @ v[:, i]).square().sum()) for v in (left, right)),
        )
        entries = torch.cat([torch.ones(24, 1).double(), best.matrices.flatten(1)], 1)
        return tuple(entries @ torch.linalg.lstsq(entries, v[:, i : i + 1]).solution[:, 0] for v in (left, right))  # type: ignore[return-value]

    fits = [irrep_fit(i) for i in range(3)]
    expected = explained([a for a, _ in fits], [b for _, b in fits])
    assert float(found.logits_explained.sel(account="irrep")) == pytest.approx(expected)
    assert float(found.logits_explained.sel(account="network")) == pytest.approx(1)


def test_with_all_numbers_the_largest_coordinates_are_the_network(planted: PairOutputs) -> None:
    left, right, outward = drawn(6, 2), drawn(6, 2, seed=1), drawn(2, 6, seed=2)
    structure = group("symmetric", 3)
    neurons = coset_neurons(left, right, structure, draws=1, least=0.01)
    neurons["assigned"] = "neuron", np.array(["order-2", "order-2"])
    found = fitted_accounts(of_halves(structure, left, right, outward), neurons, draws=1)
    assert int(found.numbers.sel(account="irreps, as many numbers")) == 12
    assert float(found.logits_explained.sel(account="irreps, as many numbers")) < 1
    basis = torch.cat([irrep.functions for irrep in irreps(structure)], 1)
    parts = torch.stack([basis.T @ left, basis.T @ right])
    kept = parts * (parts.abs() >= parts.abs().flatten().sort().values[-12])
    expected = of_halves(structure, basis @ kept[0], basis @ kept[1], outward).logits
    goal = of_halves(structure, left, right, outward).logits
    goal, expected = (each - each.mean(2, keepdim=True) for each in (goal, expected))
    share = float(1 - (goal - expected).square().sum() / goal.square().sum())
    assert float(found.logits_explained.sel(account="irreps, as many numbers")) == pytest.approx(share)


def test_characters_and_permutation_characters_are_fitted_by_least_squares() -> None:
    structure = group("symmetric", 3)
    logits = drawn(6, 6, 6) + character_logits(structure, {irrep_named(structure, "standard"): 1.0})
    centred = logits - logits.mean(2, keepdim=True)
    arrays = structure.arrays
    assert arrays is not None
    fixed = (arrays == torch.arange(3)).sum(1).double()
    fixed = fixed - fixed.mean()  # the cosets of a subgroup of order 2 are the points
    element = structure.table[structure.table[:, :, None], structure.inverses]
    column = fixed[element].flatten()
    expected = float((column @ centred.flatten()) ** 2 / column.square().sum() / centred.square().sum())
    found = fitted_characters(logits, structure, 1)
    assert found.chosen.values.tolist() == [["standard"], ["order-2"]]
    assert found.explained.values == pytest.approx([expected, expected])
    both = fitted_characters(logits, structure, 2)  # two of each span the same functions
    assert float(both.explained[0]) == pytest.approx(float(both.explained[1]))
    assert float(both.explained[0]) > float(found.explained[0])


def test_what_does_not_fit_is_refused(planted: PairOutputs, unchecked: None) -> None:
    left, right = planted.embeddings["left"], planted.embeddings["right"]
    neurons = coset_neurons(left, right, FOUR, draws=1)
    embedded = PairOutputs(FOUR, planted.logits, planted.hidden, planted.outward, {"embed": left})
    wrong: list[tuple[Any, str]] = [
        (lambda: coset_neurons(left[:5], right, FOUR), r"left has shape \[5, 32\]; .* a row for each of the 24"),
        (lambda: coset_neurons(left, right[:, :3], FOUR), r"right has shape \[24, 3\]"),
        (lambda: coset_neurons(left * torch.nan, right, FOUR), r"left has values that are not finite"),
        (lambda: coset_neurons(left, right, FOUR, least=1.5), r"least = 1\.5"),
        (lambda: coset_neurons(left, right, FOUR, draws=0), r"draws = 0"),
        (lambda: coset_neurons(drawn(7, 2), drawn(7, 2), group("cyclic", 7)), r"no subgroup that could have cosets"),
        (lambda: fitted_accounts(embedded, neurons), r"a part for x and one for y; this network has none"),
        (lambda: fitted_accounts(planted, neurons.isel(neuron=[0])), r"The table has 1 neurons, and the network 32"),
        (lambda: fitted_characters(planted.logits, FOUR, 0), r"count = 0"),
        (lambda: fitted_characters(planted.logits, FOUR, 9), r"count = 9; the best of 4 characters"),
    ]
    for act, says in wrong:
        with pytest.raises(UserError, match=says):
            act()


# --- The authors' networks -------------------------------------------------------------------------------------------


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize(
    ("seed", "assigned", "explained"),
    [
        (1, {"A4": 56, "S4": 31, "F20": 30, "A5": 3}, (0.9987, 0.3905)),
        (2, {"S4": 108, "S3×S2": 11, "A5": 7, "": 2}, (1.0, 0.8481)),
        (3, {"S3×S2": 62, "S4": 59, "A5": 5, "": 2}, (0.9994, 0.5989)),
    ],
)
def test_the_authors_neurons_are_functions_of_coset_pairs(
    seed: int, assigned: dict[str, int], explained: tuple[float, float]
) -> None:
    model = load(f"artifact:group-s5_mlp_seed{seed}", dtype=torch.float64)
    outputs = pair_outputs(model, task_of(model.card.data))
    found = coset_neurons(outputs.embeddings["left"], outputs.embeddings["right"], outputs.group, draws=2)
    counted = Counter(found.assigned.values.tolist())
    assert {name: counted[name] for name in assigned} == assigned
    accounts = fitted_accounts(outputs, found, draws=1)
    assert float(accounts.logits_explained.sel(account="cosets")) == pytest.approx(explained[0], abs=1e-4)
    keys = {1: 4, 2: 2, 3: 3}[seed]
    characters = fitted_characters(outputs.logits, outputs.group, keys)
    # As many characters as the authors list, or as many permutation characters, span the same functions here.
    assert characters.explained.values == pytest.approx([explained[1]] * 2, abs=1e-4)
