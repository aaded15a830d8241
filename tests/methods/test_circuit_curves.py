"""Faithfulness over size, and MIB's CPR and CMD: by their definition, on curves whose areas are known, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray
from hypothesis import given
from hypothesis import strategies as st
from tests.architectures import network, prompts

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods.circuit_curves import MIB_FRACTIONS, areas, circuit_curve
from headwork.methods.circuit_measures import faithfulness
from headwork.methods.circuit_selection import greedy, node_scores, top_n
from headwork.methods.edge_attribution import edge_attribution
from headwork.methods.graph import graph
from headwork.tasks.prompt_pairs import PromptPairs

METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
MIB = np.array(MIB_FRACTIONS)
curves = st.lists(st.floats(-2, 3), min_size=len(MIB), max_size=len(MIB)).map(np.array)


def pairs(name: str) -> PromptPairs:
    return PromptPairs(prompts(name, 1), prompts(name, 2))


def test_the_areas_of_known_curves() -> None:
    assert areas(MIB, np.ones(10)) == pytest.approx((0.999, 0))
    assert areas(MIB, np.zeros(10)) == pytest.approx((0, 0.999))
    assert areas(MIB, MIB) == pytest.approx(((1 - 1e-6) / 2, 0.999 - (1 - 1e-6) / 2))
    # Above 1 counts for the one and against the other.
    assert areas(MIB, np.full(10, 1.5)) == pytest.approx((1.4985, 0.4995))
    # Half the width of each trapezoid beside .1 has its height.
    peak = np.where(MIB == 0.1, 1.0, 0.0)
    assert areas(MIB, peak) == pytest.approx(((0.2 - 0.05) / 2, 0.999 - (0.2 - 0.05) / 2))
    assert all(np.isnan(area) for area in areas(MIB, np.full(10, np.nan)))


@given(curves)
def test_the_areas_are_sums_of_trapezoids_and_bound_each_other(curve: np.ndarray) -> None:
    cpr, cmd = areas(MIB, curve)
    steps = list(zip(MIB[:-1], MIB[1:], curve[:-1], curve[1:]))
    assert cpr == pytest.approx(sum((b - a) * (f + g) / 2 for a, b, f, g in steps), abs=1e-12)
    assert cmd == pytest.approx(sum((b - a) * (abs(1 - f) + abs(1 - g)) / 2 for a, b, f, g in steps), abs=1e-12)
    assert cmd >= abs(0.999 - cpr) - 1e-12


@pytest.mark.parametrize("selection, order", [("top-n", "absolute"), ("greedy", "lowest"), ("top-n", "highest")])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_curve_is_the_faithfulness_of_each_of_its_circuits(name: str, selection: str, order: str) -> None:
    model, data, done = network(name), pairs(name), []
    scores = edge_attribution(model, data.clean, data.corrupt, METRIC)
    fractions = (0.0, 0.05, 0.3, 1.0)
    options = {"selection": selection, "order": order, "value": "mean"}
    found = circuit_curve(model, data, METRIC, scores, fractions=fractions, progress=done.append, **options)  # type: ignore[arg-type]
    choose = {"top-n": top_n, "greedy": greedy}[selection]
    expected = []
    for share in fractions:
        circuit = choose(model.config, scores, fraction=share, order=order)  # type: ignore[arg-type]
        expected.append(faithfulness(model, data, METRIC, circuit, value="mean"))
        assert int(found["size"].sel(fraction=share)) == len(circuit) == int(share * graph(model.config).edges + 1e-9)
        np.testing.assert_allclose(found["circuit"].sel(fraction=share), expected[-1]["circuit"], rtol=1e-9, atol=1e-9)
    shares = [float(one["faithfulness"]) for one in expected]
    np.testing.assert_allclose(found["faithfulness"], shares, rtol=1e-9, atol=1e-9)
    assert found["faithfulness"].values[[0, -1]].tolist() == [0, 1]
    assert (float(found["cpr"]), float(found["cmd"])) == pytest.approx(areas(np.array(fractions), np.array(shares)))
    assert sum(done) == 4
    assert {"ablation_value": "mean", "selection": selection, "order": order}.items() <= found.attrs.items()


def test_mibs_fractions_are_the_default_and_nodes_have_curves_too() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    heads = xarray.DataArray(np.array([[1.0, -5.0], [3.0, 0.5]]), dims=("layer", "head"))
    scores = node_scores(model.config, heads, xarray.DataArray([0.1, -4.0], dims="layer"))
    found = circuit_curve(model, data, METRIC, scores)
    assert list(found["fraction"].values) == list(MIB_FRACTIONS)
    assert list(found["size"].values) == [0, 0, 0, 0, 0, 0, 0, 1, 3, 6]
    assert float(found["faithfulness"][-1]) == 1
    expected = faithfulness(model, data, METRIC, top_n(model.config, scores, 3))["faithfulness"]
    assert float(found["faithfulness"].sel(fraction=0.5)) == pytest.approx(float(expected))


def test_a_metric_that_nothing_changes_gives_nan_and_says_why() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    scores = edge_attribution(model, data.clean, data.corrupt, METRIC)
    with torch.no_grad():
        model.unembed.weight[:] = model.unembed.weight[0]
    found = circuit_curve(model, data, METRIC, scores)
    assert found["faithfulness"].isnull().all()
    assert np.isnan(found["cpr"])
    assert np.isnan(found["cmd"])
    assert "same mean metric" in found.attrs["undefined"]


@pytest.mark.parametrize(
    "fractions", [(0.5,), (0.5, 0.1), (0.1, 0.1, 1.0), (-0.1, 1.0), (0.5, 1.5), (float("nan"), 1.0)]
)
def test_fractions_that_are_no_grid_are_named(fractions: tuple[float, ...]) -> None:
    model, data = network("gpt2"), pairs("gpt2")
    scores = edge_attribution(model, data.clean, data.corrupt, METRIC)
    with pytest.raises(UserError, match="two or more are needed, increasing, from 0 to 1"):
        circuit_curve(model, data, METRIC, scores, fractions=fractions)
