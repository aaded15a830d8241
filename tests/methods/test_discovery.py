"""Every way of finding a circuit finds the one of a network wired by hand, and does not find a permuted one.

The bar, an AUROC of 0.9 over edges, is the issue's and was not chosen on this network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
import xarray
from tests.handwired_circuit import CONFIG, EDGES, NODES, known_circuit, known_nodes, wired_network, wired_pairs

from headwork.engine.run import run
from headwork.methods.acdc import acdc
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_curves import circuit_curve
from headwork.methods.circuit_measures import completeness, faithfulness, minimality
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_recovery import circuit_recovery
from headwork.methods.circuit_selection import Order, greedy, node_scores, top_n
from headwork.methods.circuit_stability import circuit_stability
from headwork.methods.edge_attribution import edge_attribution
from headwork.methods.edge_masks import edge_masks
from headwork.methods.edge_patching import edge_patching
from headwork.methods.graph import graph
from headwork.methods.node_attribution import node_attribution
from headwork.model.transformer import Transformer

PAIRS, METRIC = wired_pairs(each=2)
BAR, CHANCE = 0.9, 0.1
MODERATE, SATURATED = 4.0, 40.0
# What is added to every weight, so that edges outside the circuit have small effects of their own.
NOISES = (0.0, 0.01)

wired = lru_cache(wired_network)


def on_edges(values: np.ndarray) -> xarray.DataArray:
    known = graph(CONFIG)
    coords = {"writer": list(map(str, known.writers)), "reader": list(map(str, known.readers))}
    return xarray.DataArray(np.where(known.visible, values, np.nan), dims=("writer", "reader"), coords=coords)


def attribution(variant: str) -> Callable[[Transformer], xarray.DataArray]:
    return lambda model: edge_attribution(model, PAIRS.clean, PAIRS.corrupt, METRIC, variant=variant)  # type: ignore[arg-type]


def one_by_one(model: Transformer) -> xarray.DataArray:
    """What ablating each edge alone does, by whole runs."""
    whole = Circuit.whole(CONFIG)
    alone = [whole, *(whole - Circuit.from_names(CONFIG, [name]) for name in whole.names)]
    values = circuit_metric(model, PAIRS, METRIC)(alone).mean(1)
    found = np.zeros(whole.edges.shape)
    found[whole.edges] = values[1:] - values[0]
    return on_edges(found)


def acdc_sweep(model: Transformer) -> xarray.DataArray:
    """At how many thresholds of a sweep ACDC keeps each edge; Conmy et al. 2023 draw their ROC curves so."""
    thresholds = np.geomspace(1e-3, 1, 7).tolist()
    return on_edges(np.sum([acdc(model, PAIRS, None, threshold).mask for threshold in thresholds], 0))


@lru_cache
def learned(model: Transformer) -> xarray.Dataset:
    return edge_masks(model, PAIRS, METRIC, len(EDGES), steps=150)


EDGE_METHODS: dict[str, tuple[Callable[[Transformer], xarray.DataArray], Order]] = {
    "EAP": (attribution("eap"), "absolute"),
    "EAP-IG (inputs)": (attribution("inputs"), "absolute"),
    "EAP-IG (activations)": (attribution("activations"), "absolute"),
    "EAP clean–corrupt": (attribution("clean-corrupt"), "absolute"),
    "edge patching": (lambda model: edge_patching(model, PAIRS, METRIC), "absolute"),
    "edge patching, denoising": (lambda model: edge_patching(model, PAIRS, METRIC, direction="denoising"), "absolute"),
    "ACDC": (acdc_sweep, "highest"),
    "learned masks": (lambda model: learned(model)["log_alpha"], "highest"),
}


def attributed(model: Transformer, steps: int, between: str = "inputs") -> xarray.DataArray:
    """Scores of heads and MLPs by attribution patching of their outputs at all positions."""

    def effect(site: str, by: str) -> xarray.DataArray:
        options = {"site": site, "by": by, "direction": "noising", "steps": steps, "between": between}
        return node_attribution(model, PAIRS, METRIC, **options)["effect"].mean("prompt")  # type: ignore[arg-type]

    return node_scores(CONFIG, effect("attn.z", "head"), effect("mlp_out", "layer"))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", EDGE_METHODS)
def test_every_edge_method_finds_the_wired_circuit_and_no_permuted_one(name: str, noise: float) -> None:
    method, order = EDGE_METHODS[name]
    found = circuit_recovery(method(wired(MODERATE, noise)), known_circuit(), order=order, permutations=200)
    assert float(found["auroc"]) >= BAR
    assert abs(float(found["null_auroc"].mean()) - 0.5) <= CHANCE
    assert float(found["p_value"]) < 0.01


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("steps, between", [(1, "inputs"), (5, "inputs"), (5, "activations")])
def test_attribution_patching_finds_the_wired_nodes_and_no_permuted_ones(
    steps: int, between: str, noise: float
) -> None:
    scores = attributed(wired(MODERATE, noise), steps, between)
    found = circuit_recovery(scores, known_nodes(), permutations=200)
    assert float(found["auroc"]) >= BAR
    assert abs(float(found["null_auroc"].mean()) - 0.5) <= CHANCE


@pytest.mark.parametrize("noise", NOISES)
def test_the_network_answers_and_its_corrupt_run_answers_otherwise(noise: float) -> None:
    rows = torch.arange(len(PAIRS.clean))
    for tokens, answer in ((PAIRS.clean, METRIC.correct), (PAIRS.corrupt, METRIC.wrong)):
        logits = run(wired(MODERATE, noise), tokens).logits[rows, -1]
        assert torch.equal(logits.argmax(-1), answer)


def test_the_known_circuit_is_the_truth() -> None:
    """By whole runs: it is enough, nothing else matters alone or together, and each of its edges does."""
    model, truth = wired(MODERATE, 0.0), known_circuit()
    assert truth.prune() == truth
    assert set(NODES) == set(truth.nodes) - {"embed", "logits"}
    np.testing.assert_allclose(faithfulness(model, PAIRS, METRIC, truth)["faithfulness_by_prompt"], 1, rtol=1e-9)
    np.testing.assert_allclose(faithfulness(model, PAIRS, METRIC, known_nodes())["faithfulness"], 1, rtol=1e-9)
    assert float(completeness(model, PAIRS, METRIC, truth, sets=10, greedy=1)["incompleteness"]) < 1e-9
    alone = one_by_one(model).values
    assert np.abs(alone[truth.edges]).min() > 0.5
    assert np.abs(alone[truth.complement().edges]).max() < 1e-9
    assert float(minimality(model, PAIRS, METRIC, truth)["minimality"].min()) > 0.5


def test_the_distractors_carry_values_that_differ_between_the_prompts() -> None:
    """Else no method could be misled by them."""
    model = wired(MODERATE, 0.0)
    sites = ["blocks.*.attn.result", "blocks.*.mlp_out"]
    clean, corrupt = (run(model, tokens, sites) for tokens in (PAIRS.clean, PAIRS.corrupt))
    sizes = {}
    for writer in graph(CONFIG).writers[1:]:
        site = f"blocks.{writer.layer}." + ("attn.result" if writer.kind == "head" else "mlp_out")
        change = corrupt[site] - clean[site]
        sizes[str(writer)] = float((change[:, :, writer.index] if writer.kind == "head" else change).abs().mean())
    inside, outside = ([s for name, s in sizes.items() if (name in NODES) == here] for here in (True, False))
    assert min(outside) > 0.2 * np.median(inside)


def test_the_best_twelve_edges_are_the_circuit_and_the_curve_ends_at_one() -> None:
    model, n = wired(MODERATE, 0.01), len(EDGES)
    scores = attribution("inputs")(model)
    assert top_n(CONFIG, scores, n) == greedy(CONFIG, scores, n) == known_circuit()
    # Signed, the head that speaks against the answer comes last, as it should.
    assert not {"1.0->3.2<v>", "3.2->logits"} & set(top_n(CONFIG, scores, n, order="lowest").names)
    share = n / graph(CONFIG).edges
    curve = circuit_curve(model, PAIRS, METRIC, scores, fractions=(0.0, share, 1.0))
    np.testing.assert_allclose(curve["faithfulness"], [0, 1, 1], atol=0.1)
    each = edge_attribution(model, PAIRS.clean, PAIRS.corrupt, METRIC, variant="inputs", per_example=True)
    assert float(circuit_stability(CONFIG, each, n, resamples=20)["jaccard"]) > 0.5


def test_the_learned_circuit_does_what_the_network_does() -> None:
    """AUROC alone would not tell: gates trained to do the opposite also close the circuit's edges last."""
    model = wired(MODERATE, 0.0)
    found = learned(model)
    circuit = Circuit(CONFIG, found["chosen"].values)
    assert circuit == known_circuit()
    assert float(faithfulness(model, PAIRS, METRIC, circuit)["faithfulness"]) == pytest.approx(1, abs=1e-9)
    assert float(found["loss"][-20:].mean()) < float(found["loss"][:20].mean())


ATTENTION_EDGES = ("embed->m0", "embed->0.0<v>", "m0->1.0<q>", "0.0->1.0<k>")


def test_where_attention_is_saturated_plain_gradients_miss_what_steps_between_the_runs_find() -> None:
    """A score of 40 against 0: in the clean run queries and keys have no gradient to speak of, though they decide all.

    This is a known failure of EAP and attribution patching (Hanna et al. 2024; Kramár et al. 2024), not of these: with
    weights a little noisy, so that the rest is not exactly 0, they rank the circuit worse than the same with steps.
    """
    model = wired(SATURATED, 0.0)
    exact, plain = edge_patching(model, PAIRS, METRIC), attribution("eap")(model)
    for name in ATTENTION_EDGES:
        writer, reader = name.split("->")
        assert abs(float(exact.sel(writer=writer, reader=reader))) > 2
        assert abs(float(plain.sel(writer=writer, reader=reader))) < 1e-6
    noisy = wired(SATURATED, 0.02)

    def recovered(scores: xarray.DataArray) -> float:
        truth = known_nodes() if "node" in scores.dims else known_circuit()
        return float(circuit_recovery(scores, truth, permutations=0)["auroc"])

    assert recovered(edge_patching(noisy, PAIRS, METRIC)) >= BAR
    assert recovered(attribution("inputs")(noisy)) >= BAR
    assert recovered(attribution("inputs")(noisy)) > recovered(attribution("eap")(noisy))
    assert recovered(attributed(noisy, 5)) > recovered(attributed(noisy, 1))
