"""Faithfulness, completeness and minimality equal a slow twin: circuits run by hand, edge by edge, in float64."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES, BATCH, network, prompts
from tests.methods.masked_edges import outputs, slow_logits
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.edits import replace
from headwork.engine.metrics import LogitDifference
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationValue, Direction
from headwork.methods.circuit import Circuit, Granularity
from headwork.methods.circuit_measures import completeness, faithfulness, minimality
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_runs import bytes_per_prompt
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

NETWORKS = ("gpt2", "neox", "llama", "attention-only-learned")
METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
WAYS: tuple[tuple[AblationValue, Direction], ...] = (
    *((value, "noising") for value in get_args(AblationValue)),
    ("counterfactual", "denoising"),
    ("resample", "denoising"),
)


def pairs(name: str) -> PromptPairs:
    return PromptPairs(prompts(name, 1), prompts(name, 2), ("a", "b", "c"))


def some(name: str, seed: int = 0, granularity: Granularity = "edge") -> Circuit:
    config, draw = ARCHITECTURES[name], np.random.default_rng(seed)
    known = graph(config)
    if granularity == "edge":
        return Circuit(config, known.visible & (draw.random(known.visible.shape) < 0.6))
    return Circuit.from_nodes(config, [str(w) for w in known.writers[1:] if draw.random() < 0.6])


def metric_of(logits: Tensor) -> np.ndarray:
    each = zip(logits, METRIC.positions, METRIC.correct, METRIC.wrong)
    return torch.stack([one[p, c] - one[p, w] for one, p, c, w in each]).detach().numpy()


def drawn(reference: Tensor, seed: int) -> Tensor:
    return reference[torch.randint(len(reference), (BATCH,), generator=torch.Generator().manual_seed(seed))]


def slowly(
    model: Transformer, data: PromptPairs, circuit: Circuit, value: AblationValue, direction: Direction, seed: int = 0
) -> np.ndarray:
    """The metric of every prompt with the rest ablated, by a pass in which every reader mixes its own input."""
    others = drawn(data.corrupt, seed) if value == "resample" else data.corrupt
    if direction == "denoising":
        live = torch.from_numpy(~circuit.edges)
        if circuit.granularity == "node":
            live[0] = True
        return metric_of(slow_logits(model, others, outputs(model, data.clean), live))
    ablated = outputs(model, others)
    if value == "zero":
        ablated = {name: torch.zeros_like(x) for name, x in ablated.items()}
    elif value == "mean":
        ablated = {name: x.mean((0, 1), keepdim=True).expand_as(x) for name, x in ablated.items()}
    elif value == "mean-by-position":
        ablated = {name: x.mean(0, keepdim=True).expand_as(x) for name, x in ablated.items()}
    return metric_of(slow_logits(model, data.clean, ablated, torch.from_numpy(circuit.edges.copy())))


@pytest.mark.parametrize("value, direction", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_faithfulness_equals_the_slow_twin(name: str, value: AblationValue, direction: Direction) -> None:
    model, data = network(name), pairs(name)
    grain: Granularity = "node" if WAYS.index((value, direction)) % 2 else "edge"
    circuit = some(name, granularity=grain)
    found = faithfulness(model, data, METRIC, circuit, value=value, direction=direction)
    whole, empty = Circuit.whole(model.config, grain), Circuit.empty(model.config, grain)
    part, every, none = (slowly(model, data, c, value, direction) for c in (circuit, whole, empty))
    assert np.abs(part - every).min() > 1e-3
    for got, expected in [("circuit", part), ("whole", every), ("empty", none)]:
        np.testing.assert_allclose(found[got], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found["faithfulness"], (part - none).mean() / (every - none).mean(), rtol=1e-7)
    np.testing.assert_allclose(found["faithfulness_by_prompt"], (part - none) / (every - none), rtol=1e-7)
    assert list(found["prompt"].values) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_node_circuit_is_what_replacing_the_other_outputs_gives(name: str) -> None:
    model, data, circuit = network(name), pairs(name), some(name, 3, "node")
    other = run(model, data.corrupt, ["blocks.*.attn.z", "blocks.*.mlp_out"])
    edits = []
    for node in circuit.complement().nodes:
        if node.startswith("m"):
            edits.append(replace(f"blocks.{node[1:]}.mlp_out", other[f"blocks.{node[1:]}.mlp_out"]))
        else:
            site = f"blocks.{node[0]}.attn.z"
            edits.append(replace(site, other[site], [int(node[2:])]))
    expected = metric_of(run(model, data.clean, edits=edits).logits)
    np.testing.assert_allclose(faithfulness(model, data, METRIC, circuit)["circuit"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_everything_is_exactly_faithful_and_nothing_not_at_all(name: str) -> None:
    model, data = network(name), pairs(name)
    grains: tuple[Granularity, ...] = ("edge", "node", "node")
    for (value, direction), grain in zip(WAYS, grains * 3):
        options: dict[str, Any] = {"value": value, "direction": direction}
        whole = faithfulness(model, data, METRIC, Circuit.whole(model.config, grain), **options)
        empty = faithfulness(model, data, METRIC, Circuit.empty(model.config, grain), **options)
        assert float(whole["faithfulness"]) == 1
        assert (whole["faithfulness_by_prompt"] == 1).all()
        assert float(empty["faithfulness"]) == 0
        if value == "counterfactual" and direction == "noising":
            ends = [metric_of(oracle_sites(model, tokens)["logits"]) for tokens in (data.clean, data.corrupt)]
            np.testing.assert_allclose(whole["whole"], ends[0], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(whole["empty"], ends[1], rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["gpt2", "neox", "llama"]), st.integers(0, 999), st.floats(0.05, 0.4))
def test_pruning_changes_nothing_under_counterfactual_ablation(name: str, seed: int, share: float) -> None:
    model, known = network(name), graph(ARCHITECTURES[name])
    draw = np.random.default_rng(seed)
    circuit = Circuit(model.config, known.visible & (draw.random(known.visible.shape) < share))
    both = circuit_metric(model, pairs(name), METRIC)([circuit, circuit.prune()])
    np.testing.assert_allclose(both[0], both[1], rtol=1e-9, atol=1e-9)


def test_the_six_choices_are_recorded() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    found = faithfulness(model, data, METRIC, some("gpt2"), value="resample", direction="denoising", seed=4)
    assert {k: v for k, v in found.attrs.items() if k.startswith("ablation")} == {
        "ablation_granularity": "edge",
        "ablation_component": "heads by q, k, v and MLPs",
        "ablation_value": "resample",
        "ablation_direction": "denoising",
        "ablation_set": "complement",
        "ablation_positions": "all",
    }
    assert found.attrs["seed"] == 4
    bare = network("attention-only-learned")
    nodes = Circuit.from_nodes(bare.config, ["0.0"])
    assert faithfulness(bare, data, METRIC, nodes, value="mean").attrs["ablation_component"] == "heads"
    assert completeness(model, data, METRIC, some("gpt2")).attrs["ablation_set"] == "circuit"
    assert minimality(model, data, METRIC, some("gpt2"), parts=[], sets=0).attrs["ablation_set"] == "circuit"


def test_reference_prompts_and_seeds_matter_where_they_should() -> None:
    model, data, circuit = network("gpt2"), pairs("gpt2"), some("gpt2")
    own = faithfulness(model, data, METRIC, circuit, value="mean-by-position")
    same = faithfulness(model, data, METRIC, circuit, value="mean-by-position", reference=data.corrupt, seed=5)
    other = faithfulness(model, data, METRIC, circuit, value="mean-by-position", reference=data.clean)
    np.testing.assert_array_equal(own["circuit"], same["circuit"])
    assert np.abs(own["circuit"] - other["circuit"]).min() > 1e-6
    many = torch.cat([prompts("gpt2", seed) for seed in range(10)])
    draws = [faithfulness(model, data, METRIC, circuit, value="resample", reference=many, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0]["circuit"], draws[1]["circuit"])
    assert np.abs(draws[0]["circuit"] - draws[2]["circuit"]).max() > 1e-6
    expected = slowly(model, PromptPairs(data.clean, drawn(many, 1)), circuit, "counterfactual", "noising")
    np.testing.assert_allclose(draws[2]["circuit"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("direction", get_args(Direction))
def test_padded_prompts_are_resampled_from_those_with_their_padding(direction: Direction) -> None:
    # Each prompt has padding of its own here, so that its own corrupt prompt alone can stand in for it.
    model, data = network("causal-pad"), pairs("causal-pad")
    circuit = some("causal-pad")
    drawn = faithfulness(model, data, METRIC, circuit, value="resample", direction=direction)
    paired = faithfulness(model, data, METRIC, circuit, direction=direction)
    np.testing.assert_allclose(drawn["circuit"], paired["circuit"], rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="Prompt 1 has no other reference prompt with the same padding"):
        faithfulness(model, data, METRIC, circuit, value="resample", reference=data.clean[[0, 2]])


@pytest.mark.parametrize("grain", get_args(Granularity))
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_completeness_equals_the_slow_twin(name: str, grain: Granularity) -> None:
    model, data, circuit = network(name), pairs(name), some(name, 1, grain)
    whole = Circuit.whole(model.config, grain)
    removed = [circuit & some(name, seed, grain) for seed in (2, 3)]
    found = completeness(model, data, METRIC, circuit, sets=removed)
    assert list(found["kind"].values) == ["nothing", "everything", "given", "given"]
    assert list(found["size"].values) == [0, len(circuit), len(removed[0]), len(removed[1])]
    for i, gone in enumerate([Circuit.empty(model.config, grain), circuit, *removed]):
        small = slowly(model, data, circuit - gone, "counterfactual", "noising")
        large = slowly(model, data, whole - gone, "counterfactual", "noising")
        np.testing.assert_allclose(found["circuit_without"][i], small, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found["network_without"][i], large, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found["difference"][i], abs(small.mean() - large.mean()), rtol=1e-7, atol=1e-9)
    assert float(found["incompleteness"]) == float(found["difference"].max())
    np.testing.assert_array_equal(found["without_circuit"], found["network_without"][1])
    ends = faithfulness(model, data, METRIC, circuit)
    gap = abs(float(ends["whole"].mean() - ends["empty"].mean()))
    np.testing.assert_allclose(found["normalised"], found["difference"] / gap, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grain", get_args(Granularity))
def test_the_whole_network_is_complete_whatever_is_removed(grain: Granularity) -> None:
    model, done = network("llama"), []
    whole = Circuit.whole(model.config, grain)
    found = completeness(model, pairs("llama"), METRIC, whole, sets=4, greedy=2, candidates=3, progress=done.append)
    assert float(found["incompleteness"]) == 0
    assert found.sizes["set"] == 8
    assert sum(done) >= 6


def test_sets_are_drawn_by_the_seed_and_greedy_ones_grow() -> None:
    model, data, circuit = network("gpt2"), pairs("gpt2"), some("gpt2", 5)
    runs = [completeness(model, data, METRIC, circuit, sets=6, greedy=3, candidates=99, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0]["size"], runs[1]["size"])
    np.testing.assert_array_equal(runs[0]["difference"], runs[1]["difference"])
    assert (runs[0]["difference"][2:8] != runs[2]["difference"][2:8]).any()
    assert list(runs[0]["kind"].values[2:]) == ["random"] * 6 + ["greedy"] * 3
    assert list(runs[0]["size"].values[-3:]) == [1, 2, 3]
    # With every part a candidate, the first is the one that parts the circuit from the network most.
    singles = [Circuit.from_names(model.config, [name]) for name in circuit.names]
    each = completeness(model, data, METRIC, circuit, sets=singles)["difference"][2:]
    assert float(runs[0]["difference"][-3]) == pytest.approx(float(each.max()), rel=1e-9)


@pytest.mark.parametrize("grain", get_args(Granularity))
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_minimality_equals_the_slow_twin(name: str, grain: Granularity) -> None:
    model, data, circuit = network(name), pairs(name), some(name, 1, grain)
    names = circuit.names if grain == "edge" else circuit.nodes
    build = Circuit.from_names if grain == "edge" else Circuit.from_nodes
    parts, gone = names[:3], circuit & some(name, 2, grain)
    found = minimality(model, data, METRIC, circuit, parts=parts, sets=[gone])
    assert found["change"].dims == ("part", "set")
    for part in parts:
        single = build(model.config, [part])
        changes = []
        for removed in (Circuit.empty(model.config, grain), gone - single):
            with_it = slowly(model, data, circuit - removed, "counterfactual", "noising")
            without = slowly(model, data, circuit - removed - single, "counterfactual", "noising")
            changes.append(without - with_it)
        here = found.sel(part=part)
        np.testing.assert_allclose(here["change_by_prompt"], changes, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(here["change"], np.mean(changes, 1), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(here["minimality"], np.abs(np.mean(changes, 1)).max(), rtol=1e-7, atol=1e-9)


def test_an_edge_that_leads_nowhere_is_not_needed() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    circuit = Circuit.from_names(model.config, ["embed->m0", "m0->logits", "embed->1.0<q>", "embed->logits"])
    found = minimality(model, data, METRIC, circuit, sets=5)
    assert found.sizes == {"part": 4, "set": 6, "prompt": 3}
    assert float(found["minimality"].sel(part="embed->1.0<q>")) < 1e-12
    assert (found["minimality"].drop_sel(part="embed->1.0<q>") > 1e-3).all()


def test_where_nothing_can_be_recovered_the_share_is_nan_with_the_reason() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    with torch.no_grad():
        model.unembed.weight[:] = model.unembed.weight[0]
    for found in (
        faithfulness(model, data, METRIC, some("gpt2")),
        completeness(model, data, METRIC, some("gpt2"), sets=1),
        minimality(model, data, METRIC, some("gpt2"), sets=1),
    ):
        share = found["faithfulness"] if "faithfulness" in found else found["normalised"]
        assert share.isnull().all()
        assert "same mean metric" in found.attrs["undefined"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_cuts_the_prompts_and_changes_nothing(name: str) -> None:
    model, data, circuit = network(name), pairs(name), some(name)
    each = bytes_per_prompt(model, data.clean.shape[1])
    for value, direction in WAYS:
        whole = circuit_metric(model, data, METRIC, value=value, direction=direction)
        cut = circuit_metric(model, data, METRIC, value=value, direction=direction, memory=2 * each)
        assert (len(whole.runs), len(cut.runs)) == (1, 2)
        np.testing.assert_allclose(cut([circuit]), whole([circuit]), rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match=r"the limit is 0\.0 MB"):
        circuit_metric(model, data, METRIC, memory=1000)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_named() -> None:
    model, data, circuit = network("gpt2"), pairs("gpt2"), some("gpt2")
    outside = circuit.complement()
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (faithfulness, {"value": "means"}, "Unknown value of an ablation: 'means': the nearest valid ones are mean"),
        (faithfulness, {"direction": "noise"}, "the nearest valid ones? .*noising"),
        (faithfulness, {"value": "mean", "direction": "denoising"}, "mean values are no run"),
        (faithfulness, {"value": "resample", "reference": data.clean[:, :3]}, "have 3 tokens, the prompts 5"),
        (completeness, {"sets": -1}, "-1 sets"),
        (completeness, {"sets": [outside]}, f"has {outside.names[0]}, which is not in the circuit"),
        (minimality, {"parts": ["embed->nowhere"]}, "Unknown edge of the circuit 'embed->nowhere'"),
        (minimality, {"parts": [outside.names[0]]}, "Unknown edge of the circuit"),
    ]
    for measure, options, says in wrong:
        with pytest.raises(UserError, match=says):
            measure(model, data, METRIC, circuit, **options)
    for measure in (completeness, minimality):
        with pytest.raises(UserError, match="circuit is empty"):
            measure(model, data, METRIC, Circuit.empty(model.config))
    with pytest.raises(UserError, match="another architecture"):
        faithfulness(model, data, METRIC, some("neox"))
    with pytest.raises(UserError, match="for 3 prompts, but there are 2"):
        faithfulness(model, data.part(slice(0, 2)), METRIC, circuit)
    with torch.no_grad():
        model.embed.weight[data.clean[1, 0]] = torch.nan
    with pytest.raises(UserError, match=r"The metric gave nan for prompt [abc]"):
        faithfulness(model, data, METRIC, circuit)
