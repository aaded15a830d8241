"""Irreps in logits and embeddings: known characters, nulls, losses by hand, and what the authors recorded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import network
from tests.methods.group_networks import character_logits, drawn, mlp, point_network
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.irrep_attribution import (
    embedding_shares,
    key_irreps,
    restricted_and_excluded,
    restricted_and_excluded_neurons,
    squares,
)
from headwork.methods.pair_outputs import pair_outputs
from headwork.methods.representations import irrep_named, irreps
from headwork.model.config import TransformerConfig
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks.group_composition import GroupComposition
from headwork.tasks.groups import Group, group
from headwork.tasks.published import task_of

SMALL = [("cyclic", 7), ("cyclic", 8), ("dihedral", 5), ("symmetric", 3), ("alternating", 4), ("symmetric", 4)]


def slow_similarity(logits: Tensor, structure: Group, name: str) -> float:
    """The cosine, triple by triple."""
    character = irrep_named(structure, name).character.tolist()
    table, inverses = structure.table.tolist(), structure.inverses.tolist()
    product = size = known = 0.0
    values = (logits - logits.mean(2, keepdim=True)).tolist()
    for x, y, z in itertools.product(range(structure.order), repeat=3):
        expected = character[table[table[x][y]][inverses[z]]]
        product += expected * values[x][y][z]
        size += values[x][y][z] ** 2
        known += expected**2
    return product / (size * known) ** 0.5


@pytest.mark.parametrize(("name", "parameter"), SMALL)
def test_trace_similarity_is_the_cosine_over_all_triples(name: str, parameter: int) -> None:
    structure = group(name, parameter)
    logits = drawn(structure.order, structure.order, structure.order)
    logits = logits + 0.3 * character_logits(structure, {irreps(structure)[-1]: 1.0})
    found = key_irreps(logits, structure, draws=1)
    for irrep in found.irrep.values:
        assert float(found.trace_similarity.sel(irrep=irrep)) == pytest.approx(
            slow_similarity(logits, structure, str(irrep)), abs=1e-12
        )


def test_logits_that_are_a_character_have_similarity_one_with_it_and_none_with_others() -> None:
    structure = group("symmetric", 4)
    for irrep in irreps(structure)[1:]:
        found = key_irreps(5 * character_logits(structure, {irrep: 2.0}) + 3, structure, draws=5)
        assert found.irrep.values[found.key.values].tolist() == [irrep.name]
        assert float(found.trace_similarity.sel(irrep=irrep.name)) == pytest.approx(1)
        assert float(np.abs(found.trace_similarity.drop_sel(irrep=irrep.name)).max()) < 1e-12
        assert found.attrs["explained_by_key"] == pytest.approx(1)


def test_shares_of_a_sum_of_characters_are_its_weights_squared() -> None:
    structure = group("dihedral", 7)
    one, other = irrep_named(structure, "freq_1"), irrep_named(structure, "sign")
    found = key_irreps(character_logits(structure, {one: 3.0, other: -4.0}), structure, draws=5)
    assert float(found.explained.sel(irrep="freq_1")) == pytest.approx(9 / 25)
    assert float(found.trace_similarity.sel(irrep="sign")) == pytest.approx(-4 / 5)
    assert found.irrep.values[found.key.values].tolist() == ["freq_1"]  # the other votes against the right answer
    assert found.attrs["explained_by_all"] == pytest.approx(1)


def test_key_irreps_are_found_in_noise_and_not_in_noise_alone() -> None:
    structure = group("cyclic", 13)
    noise = drawn(13, 13, 13)
    planted = character_logits(
        structure, {irrep_named(structure, "freq_3"): 0.5, irrep_named(structure, "freq_5"): 0.4}
    )
    found = key_irreps(noise + planted, structure)
    assert found.irrep.values[found.key.values].tolist() == ["freq_3", "freq_5"]
    assert not key_irreps(noise, structure).key.any()


def test_a_network_that_is_right_for_another_order_of_the_elements_has_no_key_irrep() -> None:
    structure = group("symmetric", 4)
    logits = character_logits(structure, {irrep_named(structure, "standard"): 1.0})
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    again = torch.randperm(24, generator=torch.Generator().manual_seed(4))
    assert not key_irreps(logits[order][:, again], structure).key.any()


def test_the_nulls_spread_is_within_its_bound() -> None:
    structure = group("cyclic", 11)
    logits = character_logits(structure, {irrep_named(structure, "freq_2"): 1.0})
    drawn_nulls = [key_irreps(logits, structure, draws=1, seed=seed).attrs["null"] for seed in range(60)]
    bound = key_irreps(logits, structure, draws=1).attrs["null_sd_bound"]
    assert bound == pytest.approx(10**-1.5)
    # The largest of five normal deviates: 1.16 standard deviations on average, and hardly ever above 4.
    assert 0.7 * bound < np.mean(drawn_nulls) < 1.6 * bound
    assert max(drawn_nulls) < 5 * bound


def test_a_network_of_cosets_has_the_irreps_of_its_cosets() -> None:
    structure = group("symmetric", 4)
    outputs = pair_outputs(point_network(structure), GroupComposition("symmetric", 4))
    found = key_irreps(outputs.logits, structure)
    assert found.irrep.values[found.key.values].tolist() == ["standard"]
    shares = embedding_shares(outputs.embeddings, structure)
    assert shares.share.sel(irrep="standard").values == pytest.approx(1)
    assert shares.above.sel(embedding="left").values.tolist() == [False, False, True, False, False]
    assert outputs.outward is not None
    torch.testing.assert_close(outputs.logits, outputs.hidden @ outputs.outward)
    assert (outputs.logits.argmax(2) == structure.table).all()


def test_embedding_shares_are_those_of_projections_and_random_ones_are_not_above() -> None:
    structure = group("dihedral", 5)
    embedding = drawn(10, 4)
    found = embedding_shares({"one": embedding, "two": drawn(10, 50, seed=1)}, structure)
    for irrep in irreps(structure):
        entries = irrep.matrices.flatten(1)
        fitted = entries @ torch.linalg.lstsq(entries, embedding, driver="gelsd").solution
        share = float(fitted.square().sum() / embedding.square().sum())
        assert float(found.share.sel(embedding="one", irrep=irrep.name)) == pytest.approx(share)
    assert found.share.sum("irrep").values == pytest.approx(1)
    assert found.chance.values == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert not found.above.any()


def test_squares_of_frequencies_are_twice_as_high() -> None:
    found = squares(group("cyclic", 7))
    assert found.sel(of="freq_2").to_series().to_dict() == {"trivial": 2, "freq_1": 0, "freq_2": 0, "freq_3": 1}
    found = squares(group("symmetric", 5))
    assert found.sel(of="standard").to_series().to_dict() == {
        "trivial": 1, "sign": 0, "standard": 1, "standard_sign": 0, "s5_5d_a": 0, "s5_5d_b": 1, "s5_6d": 1
    }  # fmt: skip


# --- Losses ----------------------------------------------------------------------------------------------------------


def slow_losses(logits: Tensor, structure: Group, names: list[str], pairs: list[int]) -> tuple[float, float]:
    """By least squares on the characters as functions of triples."""
    n = structure.order
    centred = logits - logits.mean(2, keepdim=True)
    columns = torch.stack(
        [character_logits(structure, {irrep_named(structure, name): 1.0}).flatten() for name in names], 1
    )
    kept = (columns @ torch.linalg.lstsq(columns, centred.flatten()[:, None]).solution).reshape(n, n, n)

    def loss(values: Tensor, chosen: list[int]) -> float:
        shares = values.softmax(2)
        return float(np.mean([-float(shares[p // n, p % n, structure.table[p // n, p % n]].log()) for p in chosen]))

    return loss(kept, list(range(n * n))), loss(centred - kept, pairs)


@pytest.mark.parametrize(("name", "parameter"), [("cyclic", 7), ("dihedral", 4), ("symmetric", 3)])
def test_restricted_and_excluded_losses_are_those_of_least_squares(name: str, parameter: int) -> None:
    structure = group(name, parameter)
    logits = drawn(structure.order, structure.order, structure.order) + character_logits(
        structure, {irreps(structure)[-1]: 2.0}
    )
    names = [irrep.name for irrep in irreps(structure)[-2:]]
    pairs = [0, 5, 7, 20, 30]
    found = restricted_and_excluded(logits, structure, names, pairs=torch.tensor(pairs))
    assert (found["restricted"], found["excluded"]) == pytest.approx(slow_losses(logits, structure, names, pairs))
    assert found["uniform"] == pytest.approx(np.log(structure.order))


def test_without_its_only_character_a_network_knows_nothing() -> None:
    structure = group("symmetric", 4)
    logits = character_logits(structure, {irrep_named(structure, "standard"): 4.0})
    found = restricted_and_excluded(logits, structure, ["standard"])
    assert found["restricted"] == pytest.approx(found["full"])
    assert found["full"] < 0.01
    assert found["excluded"] == pytest.approx(np.log(24))
    other = restricted_and_excluded(logits, structure, ["standard_sign", "sign"])
    assert other["restricted"] == pytest.approx(np.log(24))
    assert other["excluded"] == pytest.approx(found["full"])


def test_neurons_are_split_by_their_functions_of_the_product() -> None:
    structure = group("dihedral", 5)
    hidden, outward = drawn(10, 10, 6).abs(), drawn(6, 10, seed=1)
    names = ["freq_2", "sign"]
    columns = torch.cat([irrep_named(structure, name).matrices.flatten(1) for name in names], 1)[structure.table]
    columns = columns.flatten(0, 1)
    kept = columns @ torch.linalg.lstsq(columns, hidden.flatten(0, 1), driver="gelsd").solution
    labels = structure.table.flatten()
    found = restricted_and_excluded_neurons(hidden, outward, structure, names, pairs=torch.tensor([3, 4, 50]))
    restricted = torch.nn.functional.cross_entropy(kept @ outward, labels)
    excluded = ((hidden.flatten(0, 1) - kept) @ outward)[[3, 4, 50]]
    assert found["restricted"] == pytest.approx(float(restricted))
    assert found["excluded"] == pytest.approx(float(torch.nn.functional.cross_entropy(excluded, labels[[3, 4, 50]])))
    variance = (hidden - hidden.mean((0, 1))).square().sum()
    assert found["explained"] == pytest.approx(float(kept.square().sum() / variance))


# --- Networks --------------------------------------------------------------------------------------------------------


def test_a_transformers_last_position_is_read() -> None:
    config = TransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=7, n_ctx=3, d_mlp=12, activation="relu", d_vocab_out=6
    )
    torch.manual_seed(0)
    model = Transformer(config).double()
    outputs = pair_outputs(model, GroupComposition("symmetric", 3, equals=6))
    whole = model(torch.tensor([[4, 2, 6]]))[0, -1]
    torch.testing.assert_close(outputs.logits[4, 2], whole.detach())
    assert outputs.hidden.shape == (6, 6, 12)
    assert outputs.outward is not None
    # All that differs between networks without and with the neuron's part is in `outward`.
    model.layers[0].mlp.outward.weight.data[:, 5] = 0  # type: ignore[union-attr]
    less = pair_outputs(model, GroupComposition("symmetric", 3, equals=6))
    torch.testing.assert_close(outputs.logits - less.logits, outputs.hidden[:, :, 5:6] * outputs.outward[5])


def test_networks_and_arrays_that_do_not_fit_are_refused(unchecked: None) -> None:
    structure = group("cyclic", 5)
    module = mlp(drawn(5, 3), drawn(5, 3), drawn(3, 5))
    wrong: list[tuple[Any, str]] = [
        (lambda: pair_outputs(module, GroupComposition("cyclic", 6)), r"5 elements and 5 answers, but the cyclic .* 6"),
        (lambda: pair_outputs(torch.nn.Linear(2, 2), GroupComposition("cyclic", 5)), r"this network is a Linear"),  # type: ignore[arg-type]
        (lambda: pair_outputs(network("gpt2"), GroupComposition("cyclic", 5, equals=5)), r"reads x, y and =, 6 tokens"),
        (lambda: pair_outputs(module, GroupComposition("cyclic", 300)), r"300 elements; .* of up to 256"),
        (lambda: key_irreps(drawn(5, 5, 4), structure), r"shape \[5, 5, 4\]; for the cyclic group of 5 elements"),
        (lambda: key_irreps(torch.ones(5, 5, 5), structure), r"the same for all answers"),
        (lambda: key_irreps(drawn(5, 5, 5) * torch.nan, structure), r"not all finite"),
        (lambda: key_irreps(drawn(5, 5, 5), structure, draws=0), r"draws = 0"),
        (lambda: restricted_and_excluded(drawn(5, 5, 5), structure, ["freq_7"]), r"Unknown irreducible .* 'freq_7'"),
        (lambda: embedding_shares({"e": drawn(4, 2)}, structure), r"embedding e has shape \[4, 2\]"),
    ]
    for act, says in wrong:
        with pytest.raises(UserError, match=says):
            act()


# --- The authors' networks -------------------------------------------------------------------------------------------

THEIRS = ["C113_MLP_seed1", "C113_T_seed1", "D59_MLP_seed1", "S5_MLP_seed1", "S5_MLP_seed2", "S5_MLP_seed3"]
THEIRS += ["S5_MLP_hidden_dim_32_seed1", "S5_T_seed1"]


@pytest.mark.artifacts
@pytest.mark.parametrize("folder", THEIRS)
def test_key_irreps_shares_and_losses_are_those_that_the_authors_recorded(artifacts: Path, folder: str) -> None:
    model = load(f"artifact:group-{folder.lower()}", dtype=torch.float64)
    outputs = pair_outputs(model, task_of(model.card.data))
    structure, here = outputs.group, artifacts / "group-composition" / folder
    recorded = json.loads((here / "summary_metrics.json").read_text())
    settings = json.loads((here / "cfg.json").read_text())
    found = key_irreps(outputs.logits, structure, draws=10)
    keys = found.irrep.values[found.key.values].tolist()
    assert keys == (here / "key_reps.txt").read_text().split()
    assert found.attrs["explained_by_all"] == pytest.approx(recorded["percent_logits_explained"], abs=1e-6)
    for name in found.irrep.values:
        theirs = recorded[f"logit_{name}_rep_trace_similarity"]
        assert float(found.trace_similarity.sel(irrep=name)) == pytest.approx(theirs, abs=1e-6)
    # The pairs that they trained on are the first of their seed's shuffle; the recorded training loss confirms it.
    order = structure.order
    torch.manual_seed(settings["seed"])
    trained = torch.randperm(order**2)[: int(order**2 * settings["frac_train"])]
    losses = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1)[trained], structure.table.flatten()[trained]
    )
    assert losses.item() == pytest.approx(recorded["train_loss"], rel=1e-5)
    logit = restricted_and_excluded(outputs.logits, structure, keys, pairs=trained)
    assert logit["restricted"] == pytest.approx(recorded["total_logit_restricted_loss"], rel=1e-4)
    assert logit["excluded"] == pytest.approx(recorded["total_logit_excluded_loss"], rel=1e-4)
    if structure.name == "cyclic":
        return  # theirs have two columns more for each ρ: a QR of its four entries, which span two dimensions
    assert outputs.outward is not None
    neurons = restricted_and_excluded_neurons(outputs.hidden, outputs.outward, structure, keys, pairs=trained)
    assert neurons["restricted"] == pytest.approx(recorded["total_hidden_restricted_loss"], rel=1e-4)
    assert neurons["excluded"] == pytest.approx(recorded["total_hidden_excluded_loss"], rel=1e-4)
    assert neurons["explained"] == pytest.approx(recorded["percent_hidden_xy_explained"], abs=1e-5)
