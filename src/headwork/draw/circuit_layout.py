"""Where the parts of a circuit diagram stand: layered drawing, after Sugiyama, Tagawa and Toda (1981).

Long edges get a waypoint in every level they pass, waypoints take part in the ordering, and so no edge runs through a
node. All lengths are in cm, x to the right and y upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwork.draw.circuit_graph import ROUTES, WIDE_KINDS, CircuitEdge, CircuitNode, check, has_ports, levels
from headwork.draw.spread import spread
from headwork.draw.style import POINTS_PER_CM, SIZE, SMALL, text_width

PORT_CM = 0.3
_NODE_GAP, _WAY_WIDTH, _LABEL_CM = 0.8, 0.7, (1.75, 0.62)
_LEAST_GAP, _LEAST_WAY = 0.25, 0.3


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """A box per node id, the points that each edge passes (in the order of the edges), and the size of the whole."""

    boxes: dict[str, Box]
    ways: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


# One stop of a level: a node (its id, "") or the waypoint of a long edge ("", index of the edge).
_Stop = tuple[str, int]


def lay_out(
    nodes: Sequence[CircuitNode], edges: Sequence[CircuitEdge], most_width: float, height: float | None
) -> Layout:
    """Place nodes and edges; the height follows from the labels unless it is given.

    At most so wide, unless the nodes of one level do not fit.

    Raises UserError for repeated or unknown ids, an edge that does not go upwards, an unknown route, a bad interval.
    """
    check(nodes, edges)
    level = levels(nodes)
    stops, links = _stops(nodes, edges, level)
    stops = _order(stops, links)
    size = {node.id: node_size(node, edges) for node in nodes}
    x, width = _columns(stops, links, size, most_width)
    y, tall = _lines(nodes, edges, level, size, width, height)
    boxes = {n.id: Box(x[n.id, -1], y[level[n.id]], *size[n.id]) for n in nodes}
    _widen(boxes, nodes, edges, x, width)
    return Layout(boxes, _ways(edges, nodes, boxes, x, y, level), width, tall)


def node_size(node: CircuitNode, edges: Sequence[CircuitEdge]) -> tuple[float, float]:
    """Width and height of a node's box, its ports included."""
    text = max(text_width(node.label, SIZE, "bold"), text_width(node.note, SMALL - 0.6)) / POINTS_PER_CM
    ports = PORT_CM if has_ports(node.id, edges) else 0.0
    least = 2.6 if node.kind in WIDE_KINDS else 1.35
    return max(least, text + 0.4), 0.55 + (0.28 if node.note else 0.0) + ports


def _stops(
    nodes: Sequence[CircuitNode], edges: Sequence[CircuitEdge], level: dict[str, int]
) -> tuple[list[list[_Stop]], list[tuple[_Stop, _Stop]]]:
    """The stops of each level, and the links between stops of neighbouring levels."""
    stops: list[list[_Stop]] = [[] for _ in range(max(level.values()) + 1)]
    for node in nodes:
        stops[level[node.id]].append((node.id, -1))
    links: list[tuple[_Stop, _Stop]] = []
    for index, edge in enumerate(edges):
        before: _Stop = (edge.source, -1)
        for passed in range(level[edge.source] + 1, level[edge.target]):
            way: _Stop = ("", index)
            stops[passed].append(way)
            links.append((before, (f"@{passed}", index)))
            before = (f"@{passed}", index)
        links.append((before, (edge.target, -1)))
    named = [[stop if stop[0] else (f"@{i}", stop[1]) for stop in row] for i, row in enumerate(stops)]
    return named, links


def _order(stops: list[list[_Stop]], links: list[tuple[_Stop, _Stop]]) -> list[list[_Stop]]:
    """Sort each level by the mean place of its neighbours, sweeping up and down; keep the fewest crossings seen."""
    near: dict[_Stop, list[_Stop]] = {}
    for a, b in links:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    best, fewest = stops, _crossings(stops, links)
    for sweep in range(24):
        place = {stop: (i + 0.5) / len(row) for row in stops for i, stop in enumerate(row)}
        upwards = range(len(stops)) if sweep % 2 == 0 else range(len(stops) - 1, -1, -1)
        stops = [list(row) for row in stops]
        for index in upwards:
            done = {stop for row in (stops[:index] if sweep % 2 == 0 else stops[index + 1 :]) for stop in row}
            beside = {s: [place[other] for other in near.get(s, []) if other in done] for s in stops[index]}
            aims = {s: sum(at) / len(at) if at else place[s] for s, at in beside.items()}
            stops[index].sort(key=lambda stop, aims=aims: aims[stop])
            place.update({stop: (i + 0.5) / len(stops[index]) for i, stop in enumerate(stops[index])})
        crossings = _crossings(stops, links)
        if crossings < fewest:
            best, fewest = stops, crossings
    return best


def _crossings(stops: list[list[_Stop]], links: list[tuple[_Stop, _Stop]]) -> int:
    place = {stop: (level, i) for level, row in enumerate(stops) for i, stop in enumerate(row)}
    ends = [(place[a], place[b]) for a, b in links]
    return sum(
        1
        for i, (a, b) in enumerate(ends)
        for c, d in ends[i + 1 :]
        if a[0] == c[0] and (a[1] - c[1]) * (b[1] - d[1]) < 0
    )


def _columns(
    stops: list[list[_Stop]], links: list[tuple[_Stop, _Stop]], size: dict[str, tuple[float, float]], most_width: float
) -> tuple[dict[_Stop, float], float]:
    """x of every stop: near its neighbours, none touching; and the width of the whole."""
    # As Gansner et al. (1993): the straighter, the longer the edge; repeating a neighbour gives it that weight.
    near: dict[_Stop, list[_Stop]] = {stop: [] for row in stops for stop in row}
    for a, b in links:
        weight = 1 + 2 * (a[1] >= 0) + 2 * (b[1] >= 0)
        near[a] += [b] * weight
        near[b] += [a] * weight
    gap, way = _NODE_GAP, _WAY_WIDTH
    if _needed(stops, size, gap, way) > most_width - 0.6:
        gap, way = _LEAST_GAP, _LEAST_WAY
    wide = {stop: size[stop[0]][0] if stop[1] < 0 else way for row in stops for stop in row}
    busiest = max((sum(1 for a, _ in links if a in row) for row in map(set, stops)), default=0)
    width = float(min(most_width, max(0.8 * _LABEL_CM[0] * busiest, 5.0) + 0.6))
    width = max(width, _needed(stops, size, gap, way) + 0.6)
    x: dict[_Stop, float] = {}
    for row in stops:
        step = width / len(row)
        x.update({stop: step * (i + 0.5) for i, stop in enumerate(row)})
    for turn in range(40):
        for row in stops if turn % 2 else reversed(stops):
            wanted = np.array([np.mean([x[o] for o in near[s]]) if near[s] else x[s] for s in row])
            # Ties and inversions would undo the order that has the fewest crossings.
            wanted = np.maximum.accumulate(wanted)
            half = np.array([wide[s] for s in row]) / 2
            gaps = half[1:] + half[:-1] + gap
            x.update(zip(row, spread(wanted, gaps, 0.3 + half[0], width - 0.3 - half[-1]).tolist()))
    left = min(x[s] - wide[s] / 2 for row in stops for s in row)
    right = max(x[s] + wide[s] / 2 for row in stops for s in row)
    return {stop: at + (width - left - right) / 2 for stop, at in x.items()}, width


def _needed(stops: list[list[_Stop]], size: dict[str, tuple[float, float]], gap: float, way: float) -> float:
    """The width of the widest level."""
    return max(sum(size[s[0]][0] if s[1] < 0 else way for s in row) + gap * (len(row) - 1) for row in stops)


def _lines(
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
    level: dict[str, int],
    size: dict[str, tuple[float, float]],
    width: float,
    height: float | None,
) -> tuple[list[float], float]:
    """y of every level, with room between levels for the labels of the edges that pass; and the height of the whole."""
    count = max(level.values()) + 1
    tallest = [max(size[n.id][1] for n in nodes if level[n.id] == i) for i in range(count)]
    gaps = []
    for i in range(count - 1):
        starting = sum(1 for e in edges if level[e.source] == i or level[e.target] == i + 1)
        lines = int(np.ceil(starting * _LABEL_CM[0] / max(width * 0.8, _LABEL_CM[0])))
        gaps.append(0.9 + _LABEL_CM[1] * max(lines, 1))
    total = sum(tallest) + sum(gaps)
    if height is not None and gaps:
        stretch = max(0.3, (height - sum(tallest)) / sum(gaps))
        gaps = [gap * stretch for gap in gaps]
        total = max(height, sum(tallest) + sum(gaps))
    y, at = [], 0.0
    for i in range(count):
        y.append(at + tallest[i] / 2)
        at += tallest[i] + (gaps[i] if i < count - 1 else 0.0)
    return y, total


def _widen(
    boxes: dict[str, Box],
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
    x: dict[_Stop, float],
    width: float,
) -> None:
    """Stretch an embedding or unembedding that is alone in its level over the columns of its neighbours."""
    for node in nodes:
        box = boxes[node.id]
        if node.kind not in WIDE_KINDS or sum(b.y == box.y for b in boxes.values()) > 1:
            continue
        beside = [
            at for (_, edge), at in x.items() if edge >= 0 and node.id in (edges[edge].source, edges[edge].target)
        ]
        beside += [boxes[e.source].x for e in edges if e.target == node.id]
        beside += [boxes[e.target].x for e in edges if e.source == node.id]
        left = max(0.1, min([box.x - box.width / 2, *(at - 0.35 for at in beside)]))
        right = min(width - 0.1, max([box.x + box.width / 2, *(at + 0.35 for at in beside)]))
        boxes[node.id] = Box((left + right) / 2, box.y, right - left, box.height)


def _ways(
    edges: Sequence[CircuitEdge],
    nodes: Sequence[CircuitNode],
    boxes: dict[str, Box],
    x: dict[_Stop, float],
    y: list[float],
    level: dict[str, int],
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The points that each edge passes: top of its source, its waypoints, its place at the bottom of its target."""
    inner = [
        [(x[f"@{i}", index], y[i]) for i in range(level[e.source] + 1, level[e.target])]
        for index, e in enumerate(edges)
    ]
    wide = {node.id: node.kind in WIDE_KINDS for node in nodes}
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for name, box in boxes.items():
        leaving = [i for i, e in enumerate(edges) if e.source == name]
        toward = {i: inner[i][0][0] if inner[i] else boxes[edges[i].target].x for i in leaving}
        starts.update(_along(box, toward, wide[name]))
        plain = [i for i, e in enumerate(edges) if e.target == name and not e.route]
        toward = {i: inner[i][-1][0] if inner[i] else boxes[edges[i].source].x for i in plain}
        ends.update(_along(box, toward, wide[name]))
        routed = [i for i, e in enumerate(edges) if e.target == name and e.route]
        ends.update({i: port_x(box, edges[i].route) for i in routed})
    return tuple(
        (
            (starts[i], boxes[e.source].y + boxes[e.source].height / 2),
            *inner[i],
            (ends[i], boxes[e.target].y - boxes[e.target].height / 2),
        )
        for i, e in enumerate(edges)
    )


def _along(box: Box, toward: dict[int, float], wide: bool) -> dict[int, float]:
    """Where each edge touches a side of the box: straight towards its next point, none touching."""
    if not toward:
        return {}
    order = sorted(toward, key=lambda i: (toward[i], i))
    room = box.width * (0.96 if wide else 0.7)
    low, high = box.x - room / 2, box.x + room / 2
    gap = min(0.5 if wide else 0.3, room / max(len(order) - 1, 1))
    aims = [toward[i] if wide else box.x + 0.12 * (toward[i] - box.x) for i in order]
    wanted = np.clip(np.array(aims), low, high)
    return dict(zip(order, spread(wanted, np.full(len(order) - 1, gap), low, high).tolist()))


def port_x(box: Box, route: str) -> float:
    """x of the query, key or value input of a head."""
    return box.x + (ROUTES.index(route) - 2) * min(0.42, box.width / 3.2)
