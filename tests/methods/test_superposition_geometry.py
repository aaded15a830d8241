"""Dimensionalities, phases and figures of weights that are known exactly, and of a few trained networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import xarray
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.superposition_geometry import (
    FIGURES,
    exact_figure,
    feature_dimensionality,
    figures,
    interference,
    neurons_reading,
    phases,
    superposition_geometry,
)
from headwork.train.superposition import Schedule, Toy, TrainedToy, toys, train_toys

SHARES = {
    "digon": 1 / 2,
    "triangle": 2 / 3,
    "tetrahedron": 3 / 4,
    "pentagon": 2 / 5,
    "4-simplex": 4 / 5,
    "hexagon": 1 / 3,
    "heptagon": 2 / 7,
    "octagon": 1 / 4,
    "square antiprism": 3 / 8,
}


def turned(W: Tensor, seed: int = 0) -> Tensor:
    """The same features in another order and another basis of the hidden space."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(len(W), len(W), generator=generator, dtype=W.dtype)).Q
    return (rotation @ W)[:, torch.randperm(W.shape[1], generator=generator)]


def slow_dimensionality(W: Tensor) -> list[float]:
    found = []
    for i in range(W.shape[1]):
        length = math.sqrt(sum(float(w) ** 2 for w in W[:, i]))
        shared = sum((float(W[:, i] @ W[:, j]) / length) ** 2 for j in range(W.shape[1]))
        found.append(length**2 / shared)
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_an_exact_figure_has_its_dimensionality_and_its_name(name: str) -> None:
    corners = exact_figure(name)
    torch.testing.assert_close(corners.norm(dim=0), torch.ones(corners.shape[1], dtype=torch.float64))
    W = 1.2 * turned(corners)
    assert set(FIGURES) == set(SHARES)
    shares = torch.full((W.shape[1],), SHARES[name], dtype=torch.float64)
    torch.testing.assert_close(feature_dimensionality(W), shares)
    assert SHARES[name] == pytest.approx(len(corners) / corners.shape[1])
    [figure] = figures(W)
    assert figure[:3] == (name, tuple(range(W.shape[1])), len(corners))
    assert figure.deviation < 1e-12
    assert phases(W) == ["superposed"] * W.shape[1]


def test_dimensionality_is_the_papers_quotient() -> None:
    W = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert feature_dimensionality(W).tolist() == pytest.approx(slow_dimensionality(W))
    both = feature_dimensionality(torch.stack([W, 2 * W]))
    torch.testing.assert_close(both[0], both[1])  # it does not depend on the scale
    W[:, 2] = 0
    assert float(feature_dimensionality(W)[2]) == 0
    assert float(interference(W)[2]) == 0


def test_figures_side_by_side_are_told_apart() -> None:
    blocks = [exact_figure("pentagon"), exact_figure("digon"), torch.ones(1, 1), torch.zeros(1, 1)]
    W = torch.block_diag(*(block.double() for block in blocks))
    found = figures(W)
    assert [(f.name, f.features, f.dimensions) for f in found] == [
        ("pentagon", (0, 1, 2, 3, 4), 2),
        ("digon", (5, 6), 1),
        ("dedicated", (7,), 1),
    ]
    assert phases(W) == ["superposed"] * 7 + ["dedicated", "ignored"]
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)], 1).double()
    assert [f.name for f in figures(turned(octahedron))] == ["digon"] * 3
    square = torch.cat([torch.eye(2), -torch.eye(2)], 1).double()
    assert [f.name for f in figures(turned(square))] == ["digon"] * 2


@pytest.mark.parametrize("height", [math.sqrt(1 / 3), math.sqrt(math.sqrt(0.5) / (2 + math.sqrt(0.5)))])
def test_the_square_antiprism_is_known_at_both_heights(height: float) -> None:
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    sides = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    radius = math.sqrt(1 - height**2)
    W = turned(torch.stack([radius * angles.cos(), radius * angles.sin(), height * sides]))
    [figure] = figures(W)
    assert (figure.name, figure.deviation) == ("square antiprism", pytest.approx(0, abs=1e-12))
    assert feature_dimensionality(W).tolist() == pytest.approx([3 / 8 if height > 0.55 else 0.3665] * 8, abs=1e-4)


def test_what_is_no_regular_figure_is_unnamed() -> None:
    angles = torch.tensor([0.0, 0.5, 1.2, 3.0], dtype=torch.float64)
    fan = torch.stack([angles.cos(), angles.sin()])
    [figure] = figures(fan)
    assert (figure.name, figure.dimensions) == ("unnamed", 2)
    assert math.isnan(figure.deviation)


def test_the_tolerance_decides_what_bears_a_name() -> None:
    for angle, names in ((0.05, ["pentagon"]), (0.2, ["unnamed"])):
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        W = exact_figure("pentagon")
        W[:, 0] = turn @ W[:, 0]
        found = figures(W)
        assert [f.name for f in found] == names
        if names == ["pentagon"]:
            cosines = W.T @ W
            exact = exact_figure("pentagon").T @ exact_figure("pentagon")
            assert found[0].deviation == pytest.approx(float((cosines - exact).abs().max()))
        assert [f.name for f in figures(W, 0.25)] == ["pentagon"]
    with pytest.raises(UserError, match="tolerance of cosines is"):
        figures(exact_figure("digon"), 0.4)


def test_phases_change_at_the_stated_lengths() -> None:
    def phase(length: float, other: float) -> str:
        return phases(torch.tensor([[length, other], [0.0, 1.0]]))[0]

    assert phase(0.49, 0) == "ignored"
    assert phase(0.51, 0) == "dedicated"
    assert phase(1.0, 0.49) == "dedicated"
    assert phase(1.0, 0.51) == "superposed"


def test_neurons_that_read_a_sign_are_counted() -> None:
    # Neuron 0 reads x₀, 1 reads −x₀, 2 reads x₁ and −x₀ weakly, 3 reads both features' negatives, 4 works against x₁.
    W = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [-0.2, 1.0], [-1.0, -1.0], [0.0, 1.0]])
    W_out = torch.tensor([[1.0, 0.5, 1.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.5, -1.0]])
    found = neurons_reading(W, W_out)
    assert found["positive"].sum(0).tolist() == [1, 1]
    assert found["negative"].sum(0).tolist() == [2, 1]
    toy = Toy(2, 5, 0.5, kind="absolute value")
    data = superposition_geometry([TrainedToy(toy, W, W_out, torch.zeros(2), 0.0)])
    assert data["positive_neurons"].values.tolist() == [[1, 1]]
    assert data["negative_neurons"].values.tolist() == [[2, 1]]
    assert data["served_features"].values.tolist() == [[1, 1, 1, 2, 0]]


# Features, dimensions, the figures' share of a dimension, and the layout. The paper's criterion is ≥ 60 %.
SETTLING = [(5, 2, 2 / 5, "pentagon"), (6, 3, 1 / 2, "digon + digon + digon"), (8, 3, 3 / 8, "square antiprism")]


@pytest.mark.parametrize(("features", "hidden", "share", "layout"), SETTLING)
def test_most_initialisations_settle_into_the_regular_figure(
    features: int, hidden: int, share: float, layout: str
) -> None:
    networks = train_toys(toys(features, hidden, densities=(0.03,), seeds=range(32)), Schedule(600, 256, 2e-2))
    found = superposition_geometry(networks)
    near = (abs(found["dimensionality"] - share) < 0.03).all("feature")
    assert float(near.mean()) >= 0.6
    assert float((found["layout"] == layout).mean()) >= 0.6
    untrained = train_toys(toys(features, hidden, densities=(0.03,), seeds=range(32)), Schedule(1, 4, 1e-12))
    start = superposition_geometry(untrained)
    assert float((abs(start["dimensionality"] - share) < 0.03).all("feature").mean()) <= 0.1
    assert float((start["layout"] == layout).mean()) <= 0.1


def test_a_dense_feature_of_less_importance_is_ignored_and_a_sparse_one_superposed() -> None:
    """The phase change of two features in one dimension, from sparse to dense."""
    made = toys(2, 1, densities=(0.1, 1.0), importances=((1.0, 0.5),), seeds=range(16))
    found = superposition_geometry(train_toys(made, Schedule(600, 256, 2e-2)))
    assert found["phase"].values[16:].tolist() == [["dedicated", "ignored"]] * 16
    shared = (found["phase"].values[:16] == "superposed").all(1)
    assert 0.25 <= shared.mean() <= 0.75  # the start decides: features on one side of zero stay there
    assert set(found["layout"].values[:16][shared]) == {"digon"}


def test_an_absolute_value_is_computed_by_a_neuron_for_each_sign() -> None:
    made = toys(3, 6, densities=(0.5,), seeds=range(16), kind="absolute value")
    networks = train_toys(made, Schedule(600, 256, 2e-2))
    found = superposition_geometry(networks)
    solved = found["loss"] < 0.01
    assert float(solved.mean()) >= 0.4
    for sign in ("positive_neurons", "negative_neurons"):
        assert (found[sign][solved] >= 1).all()
    assert (
        ((found["positive_neurons"] == 0) | (found["negative_neurons"] == 0)).any("feature")[found["loss"] > 0.05].all()
    )


def test_a_result_is_described_and_can_be_saved(tmp_path: Path) -> None:
    found = superposition_geometry(train_toys(toys(3, 2, densities=(0.5,), seeds=(0, 3)), Schedule(30, 8)))
    assert found.sizes == {"network": 2, "feature": 3}
    assert found["seed"].values.tolist() == [0, 3]
    assert found.attrs["cosine_tolerance"] == 0.1
    found.to_netcdf(tmp_path / "geometry.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "geometry.nc", engine="h5netcdf"), found)


def test_networks_of_several_shapes_are_refused() -> None:
    mixed = train_toys([Toy(2, 1, 0.5), Toy(3, 1, 0.5)], Schedule(1, 4))
    for networks in (mixed, []):
        with pytest.raises(UserError, match=f"have {len(networks)} shapes"):
            superposition_geometry(networks)
