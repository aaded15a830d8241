"""Circuits: names, sets, nodes and paths, and errors that name the nearest edge."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.methods.circuit import Circuit, Granularity
from headwork.methods.graph import graph

NETWORKS = ("gpt2", "neox", "llama", "attention-only-rotary-half", "no-layers")
GPT2 = ARCHITECTURES["gpt2"]


def some(name: str, seed: int, granularity: Granularity = "edge") -> Circuit:
    """A random circuit."""
    config, draw = ARCHITECTURES[name], np.random.default_rng(seed)
    known = graph(config)
    if granularity == "edge":
        return Circuit(config, known.visible & (draw.random(known.visible.shape) < draw.random()))
    return Circuit.from_nodes(config, [str(w) for w in known.writers[1:] if draw.random() < 0.5])


kinds = st.sampled_from(["edge", "node"])


def test_edges_and_nodes_have_the_graphs_names() -> None:
    names = ("embed->0.1<q>", "embed->m0", "0.1->1.0<v>", "m0->logits", "1.0->m1")
    circuit = Circuit.from_names(GPT2, [names[3], names[0], *names, "embed -> m0"])
    assert set(circuit.names) == set(names)
    assert len(circuit) == 5
    assert circuit.nodes == ("embed", "0.1", "m0", "1.0", "m1", "logits")
    assert circuit.mask.sum() == 5
    assert len(Circuit.whole(GPT2)) == graph(GPT2).edges == len(Circuit.whole(GPT2).names)
    assert not Circuit.empty(GPT2)
    assert Circuit.empty(GPT2).nodes == ()


def test_under_grouped_query_attention_keys_belong_to_every_head_of_the_group() -> None:
    assert Circuit.from_names(ARCHITECTURES["llama"], ["embed->1.1<k>"]).nodes == ("embed", "1.2", "1.3")
    assert Circuit.from_names(ARCHITECTURES["llama"], ["embed->1.1<q>"]).nodes == ("embed", "1.1")


def test_a_node_circuit_is_rows_of_edges_and_always_has_the_embedding() -> None:
    circuit = Circuit.from_nodes(GPT2, ["m0", "1.1"])
    assert circuit.nodes == ("m0", "1.1")
    assert len(circuit) == 2
    writers = {name.split("->")[0] for name in circuit.names}
    assert writers == {"embed", "m0", "1.1"}
    assert len(circuit.names) == graph(GPT2).visible[[0, 3, 5]].sum()
    assert circuit.complement().nodes == ("0.0", "0.1", "1.0", "m1")
    assert not Circuit.empty(GPT2, "node")
    assert Circuit.empty(GPT2, "node") == Circuit.from_nodes(GPT2, ["embed"])
    assert Circuit.empty(GPT2, "node").edges[0].any()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NETWORKS), st.integers(0, 99), st.integers(0, 99), kinds)
def test_set_operations_are_those_of_the_names(name: str, seed: int, second: int, kind: Granularity) -> None:
    circuit, other, whole = some(name, seed, kind), some(name, second, kind), Circuit.whole(ARCHITECTURES[name], kind)
    parts = lambda c: set(c.names if c.granularity == "edge" else c.nodes)  # noqa: E731
    assert parts(circuit | other) == parts(circuit) | parts(other)
    assert parts(circuit & other) == parts(circuit) & parts(other)
    assert parts(circuit - other) == parts(circuit) - parts(other)
    assert parts(circuit.complement()) == parts(whole) - parts(circuit)
    assert circuit.complement().complement() == circuit
    assert len(circuit) == len(parts(circuit))
    assert (circuit == other) == (parts(circuit) == parts(other))
    assert hash(circuit) == hash(circuit | circuit)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NETWORKS), st.integers(0, 99), kinds)
def test_a_circuit_survives_json(name: str, seed: int, kind: Granularity) -> None:
    circuit = some(name, seed, kind)
    assert Circuit.from_dict(json.loads(json.dumps(circuit.to_dict()))) == circuit


def by_walking(circuit: Circuit) -> set[str]:
    """The edges on a path from the embedding to the logits, each found by enumerating paths."""
    group = circuit.config.n_heads // circuit.config.kv_heads
    found: set[str] = set()

    def follow(node: str, path: list[str]) -> None:
        if node == "logits":
            found.update(path)
        for name in circuit.names:
            writer, reader = name.split("->")
            if writer != node:
                continue
            head, _, slot = reader.partition("<")
            if slot in ("k>", "v>"):
                layer, index = map(int, head.split("."))
                heads = [f"{layer}.{index * group + i}" for i in range(group)]
            else:
                heads = [head]
            for next_node in heads:
                follow(next_node, [*path, name])

    follow("embed", [])
    return found


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["gpt2", "neox", "llama"]), st.integers(0, 999), st.floats(0.02, 0.25))
def test_pruning_keeps_what_lies_on_a_path(name: str, seed: int, share: float) -> None:
    known = graph(ARCHITECTURES[name])
    draw = np.random.default_rng(seed)
    circuit = Circuit(ARCHITECTURES[name], known.visible & (draw.random(known.visible.shape) < share))
    assert set(circuit.prune().names) == by_walking(circuit)
    assert circuit.prune().prune() == circuit.prune()


def test_the_whole_network_has_nothing_to_prune() -> None:
    for name in NETWORKS:
        whole = Circuit.whole(ARCHITECTURES[name])
        assert whole.prune() == whole


def test_the_edges_of_a_circuit_cannot_change() -> None:
    edges = graph(GPT2).visible.copy()
    circuit = Circuit(GPT2, edges)
    edges[:] = False
    assert len(circuit) == graph(GPT2).edges
    with pytest.raises(ValueError, match="read-only"):
        circuit.edges[0, 0] = False


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_named_with_the_nearest() -> None:
    for names, says in [
        (["embed->0.5<q>"], "Unknown edge 'embed->0.5<q>': the nearest valid ones are .*embed->0.0<q>"),
        (["m1->0.0<q>"], "Unknown edge 'm1->0.0<q>': the nearest valid one is m1->logits"),
        (["embd->m0"], "Unknown edge 'embd->m0': the nearest valid ones are embed->m0"),
        (["embed"], "Unknown edge"),
        (["1.0->2.0<q>"], "the nearest valid one"),
        (["??->m0"], "An edge is named like embed->0.1<q>"),
    ]:
        with pytest.raises(UserError, match=says):
            Circuit.from_names(GPT2, names)
    with pytest.raises(UserError, match=r"Unknown node '2\.1': the nearest valid ones are .*1\.1"):
        Circuit.from_nodes(GPT2, ["2.1"])
    visible = graph(GPT2).visible
    for edges, grain, says in [
        (visible[:-1], "edge", r"bool of shape \[6, 15\]; this network needs bool \[7, 15\]"),
        (visible.astype(float), "edge", "float64"),
        (~visible, "edge", "Unknown edge"),
        (visible, "edges", "Unknown granularity of a circuit: 'edges': the nearest valid ones are edge"),
        (np.zeros_like(visible), "node", "has the embedding"),
        (visible & (np.arange(15) > 3), "node", "keeps or loses all edges"),
    ]:
        with pytest.raises(UserError, match=says):
            Circuit(GPT2, edges, grain)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one is of edges, the other of nodes"):
        _ = Circuit.whole(GPT2) | Circuit.whole(GPT2, "node")
    with pytest.raises(UserError, match="another architecture"):
        _ = Circuit.whole(GPT2) - Circuit.whole(ARCHITECTURES["neox"])


def test_damaged_files_are_refused() -> None:
    good = Circuit.from_names(GPT2, ["embed->m0"]).to_dict()
    wrong = [
        ({}, "keys config and either"),
        ({**good, "nodes": []}, "keys config and either"),
        ({**good, "edges": "embed->m0"}, "list of names"),
        ({**good, "edges": [3]}, "list of names"),
        ({**good, "config": 3}, "table of fields"),
        ({**good, "edges": ["embed->m7"]}, "Unknown edge"),
    ]
    for values, says in wrong:
        with pytest.raises(UserError, match=says):
            Circuit.from_dict(values)
