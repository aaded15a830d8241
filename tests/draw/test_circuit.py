"""Circuit diagrams: what they carry, and that nothing overlaps."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwork import draw
from headwork.draw.circuit_graph import levels
from headwork.draw.circuit_labels import decimals, label_of, place_labels, sample
from headwork.draw.circuit_layout import Box, lay_out, port_x
from headwork.errors import UserError


def shared(a: Box, b: Box) -> float:
    """The area in cm² that two boxes share."""
    return max(0.0, (a.width + b.width) / 2 - abs(a.x - b.x)) * max(0.0, (a.height + b.height) / 2 - abs(a.y - b.y))


def random_circuit(seed: int) -> tuple[list[draw.CircuitNode], list[draw.CircuitEdge]]:
    """At most 14 nodes and 20 edges."""
    random = np.random.default_rng(seed)
    count, layers = int(random.integers(3, 13)), int(random.integers(1, 5))
    nodes = [draw.CircuitNode("in", "embedding", -1, "embed"), draw.CircuitNode("out", "logits", layers, "logits")]
    for i in range(count):
        kind = "head" if random.random() < 0.8 else "mlp"
        note = "induction" if random.random() < 0.3 else ""
        nodes.append(draw.CircuitNode(str(i), f"{i}.{i}", int(random.integers(layers)), kind, note))
    level = levels(nodes)
    pairs = [(a, b) for a in nodes for b in nodes if level[a.id] < level[b.id]]
    edges = []
    for i in random.permutation(len(pairs))[: min(20, count + 5)]:
        source, target = pairs[i]
        effect = float(random.normal())
        route = str(random.choice(["q", "k", "v"])) if target.kind == "head" else ""
        edges.append(draw.CircuitEdge(source.id, target.id, effect, effect - 0.3, effect + 0.3, route=route))
    return nodes, edges


@settings(max_examples=15, deadline=None)
@example(2050)
@given(st.integers(0, 10_000))
def test_no_node_or_label_overlaps_another_and_all_are_inside(seed: int) -> None:
    nodes, edges = random_circuit(seed)
    layout = lay_out(nodes, edges, 14.0, None)
    boxes = list(layout.boxes.values())
    labels = place_labels(
        [label_of(e) for e in edges], [sample(way) for way in layout.ways], boxes, (0.0, layout.width)
    )
    assert all(shared(a, b) < 1e-6 for a, b in combinations(boxes, 2))
    assert all(shared(a, b) < 0.02 for a, b in combinations(labels, 2))
    assert all(shared(a, b) < 0.02 for a in labels for b in boxes)
    assert all(a.x - a.width / 2 > -0.01 and a.x + a.width / 2 < layout.width + 0.01 for a in labels)


@pytest.mark.parametrize(
    "effect, lines",
    [
        (0.0123, ("+0.012", "[−0.001, 0.026]")),
        (1.234, ("+1.23", "[−0.14, 2.60]")),
        (-0.00004, ("−0.000040", "[−0.000084, 0.000004]")),
        (0.0, ("+0.00", "[0.00, 0.00]")),
    ],
)
def test_small_effects_keep_two_of_their_digits(effect: float, lines: tuple[str, ...]) -> None:
    low, high = sorted((-0.112 * effect, 2.11 * effect))
    edge = draw.CircuitEdge("a", "b", effect, low, high)
    assert label_of(edge, decimals(abs(effect))).lines == lines


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_edges_go_upwards_between_their_nodes_and_through_no_other(seed: int) -> None:
    nodes, edges = random_circuit(seed)
    layout = lay_out(nodes, edges, 14.0, None)
    for edge, way in zip(edges, layout.ways):
        points = sample(way)
        assert (np.diff(points[:, 1]) >= -1e-9).all()
        source, target = layout.boxes[edge.source], layout.boxes[edge.target]
        assert abs(points[0, 0] - source.x) <= source.width / 2
        assert abs(points[-1, 0] - target.x) <= target.width / 2
        for name, box in layout.boxes.items():
            if name not in (edge.source, edge.target):
                inside = np.abs(points - [box.x, box.y]) < [box.width / 2 - 0.1, box.height / 2 - 0.1]
                assert not inside.all(axis=1).any(), (edge.source, edge.target, name)


def test_an_edge_enters_its_head_by_its_port() -> None:
    nodes = [draw.CircuitNode("a", "0.0", 0), draw.CircuitNode("b", "1.0", 1)]
    ends = {}
    for route in ("q", "k", "v"):
        layout = lay_out(nodes, [draw.CircuitEdge("a", "b", 1.0, route=route)], 14.0, None)
        ends[route] = layout.ways[0][-1][0]
        assert ends[route] == port_x(layout.boxes["b"], route)
    assert ends["q"] < ends["k"] < ends["v"]


def test_mlps_stand_above_the_heads_of_their_layer() -> None:
    nodes = [draw.CircuitNode("m", "MLP 0", 0, "mlp"), draw.CircuitNode("h", "0.1", 0)]
    layout = lay_out(nodes, [draw.CircuitEdge("h", "m", 1.0)], 14.0, None)
    assert layout.boxes["m"].y > layout.boxes["h"].y


def test_every_edge_carries_its_effect_and_interval() -> None:
    nodes = [draw.CircuitNode("a", "0.0", 0), draw.CircuitNode("b", "1.0", 1, note="induction")]
    svg = draw.circuit(nodes, [draw.CircuitEdge("a", "b", -1.5, -1.75, -1.25)], effect_label="nats", alt="x").svg
    for text in ("−1.50", "[−1.75, −1.25]", "0.0", "1.0", "induction", "nats", "negative", "layer 1"):
        assert f"<!-- {text} -->" in svg, text
    assert "interval includes 0" not in svg


def test_an_interval_that_includes_zero_is_dashed_and_named_in_the_legend() -> None:
    nodes = [draw.CircuitNode("a", "0.0", 0), draw.CircuitNode("b", "1.0", 1)]
    svg = draw.circuit(nodes, [draw.CircuitEdge("a", "b", 0.1, -0.1, 0.3)], effect_label="nats", alt="x").svg
    assert "stroke-dasharray" in svg
    assert "<!-- interval includes 0 -->" in svg
    assert "<!-- positive -->" not in svg


def test_a_circuit_without_edges_can_be_drawn() -> None:
    assert "<!-- 0.0 -->" in draw.circuit([draw.CircuitNode("a", "0.0", 0)], [], effect_label="nats", alt="x").svg


@pytest.mark.parametrize(
    "nodes, edges, message",
    [
        ([], [], "at least one node"),
        ([draw.CircuitNode("a", "a", 0)] * 2, [], "'a' is given 2 times"),
        ([draw.CircuitNode("1.3", "a", 0)], [draw.CircuitEdge("1.3", "1.4", 1.0)], "Unknown node of the circuit '1.4'"),
        (
            [draw.CircuitNode("a", "a", 1), draw.CircuitNode("b", "b", 0)],
            [draw.CircuitEdge("a", "b", 1.0)],
            "a → b does not go upwards",
        ),
        (
            [draw.CircuitNode("a", "a", 0), draw.CircuitNode("b", "b", 1)],
            [draw.CircuitEdge("a", "b", 1.0, route="o")],
            "Unknown route of an edge 'o'",
        ),
        (
            [draw.CircuitNode("a", "a", 0), draw.CircuitNode("b", "b", 1)],
            [draw.CircuitEdge("a", "b", 1.0, low=0.0)],
            "only one end",
        ),
        (
            [draw.CircuitNode("a", "a", 0), draw.CircuitNode("b", "b", 1)],
            [draw.CircuitEdge("a", "b", float("nan"))],
            "use None for what was not measured",
        ),
    ],
)
def test_impossible_circuits_are_refused(
    nodes: list[draw.CircuitNode], edges: list[draw.CircuitEdge], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw.circuit(nodes, edges, effect_label="nats", alt="x")
