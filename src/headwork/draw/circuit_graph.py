"""What a circuit diagram shows: nodes by layer, and measured effects of one node on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwork.draw.checks import interval
from headwork.errors import UserError, unknown

ROUTES = ("", "q", "k", "v")
# Where in a layer a kind of node computes; other kinds stand with the heads.
_ORDER_IN_LAYER = {"embed": 0, "head": 1, "mlp": 2, "logits": 3}
WIDE_KINDS = ("embed", "logits")


@dataclass(frozen=True)
class CircuitNode:
    """A node of the circuit. `layer` orders it from the bottom; within a layer, MLPs stand above heads."""

    id: str
    label: str
    layer: int
    kind: str = "head"
    note: str = ""
    emphasised: bool = False


@dataclass(frozen=True)
class CircuitEdge:
    """A measured effect of one node on another, its interval where it has one, and the input (`route`) it enters by."""

    source: str
    target: str
    effect: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    route: str = ""

    @property
    def unclear(self) -> bool:
        """Whether the interval includes zero."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def check(nodes: Sequence[CircuitNode], edges: Sequence[CircuitEdge]) -> None:
    """Raises UserError where the graph cannot be drawn."""
    if not nodes:
        raise UserError("A circuit diagram needs at least one node, and none was given.")
    ids = [node.id for node in nodes]
    for name in ids:
        if ids.count(name) > 1:
            raise UserError(f"The node {name!r} is given {ids.count(name)} times; every node needs an id of its own.")
    level = levels(nodes)
    for edge in edges:
        for end in (edge.source, edge.target):
            if end not in level:
                raise unknown("node of the circuit", end, ids)
        if edge.route not in ROUTES:
            raise unknown("route of an edge", edge.route, ROUTES[1:])
        if level[edge.source] >= level[edge.target]:
            raise UserError(f"The edge {edge.source} → {edge.target} does not go upwards; a later part cannot feed it.")
        interval(f"The edge {edge.source} → {edge.target}", edge.effect, edge.low, edge.high)


def levels(nodes: Sequence[CircuitNode]) -> dict[str, int]:
    """The level of each node from the bottom, counted without gaps."""
    rank = {node.id: (node.layer, _ORDER_IN_LAYER.get(node.kind, 1)) for node in nodes}
    places = {r: i for i, r in enumerate(sorted(set(rank.values())))}
    return {name: places[r] for name, r in rank.items()}


def has_ports(name: str, edges: Sequence[CircuitEdge]) -> bool:
    """Whether some edge enters this node by its query, key or value input."""
    return any(edge.target == name and edge.route for edge in edges)
