"""Circuit diagrams: measured effects with their intervals, layers from the bottom up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from headwork.draw import colour
from headwork.draw.checks import Array
from headwork.draw.circuit_layout import (
    PORT_CM,
    Box,
    CircuitEdge,
    CircuitNode,
    Layout,
    has_ports,
    lay_out,
    levels,
    port_x,
)
from headwork.draw.picture import Picture, require_alt
from headwork.draw.style import (
    POINTS_PER_CM,
    SIZE,
    SMALL,
    TEXT_WIDTH_CM,
    TITLE,
    finish,
    look,
    new_figure,
    number,
    signed,
    text_width,
)

_FILL = {"embed": "#ececec", "logits": "#ececec", "mlp": "#f5f0e1"}
_EMPHASIS = "#fff1bf"
_MARGIN, _GUTTER, _LEGEND_CM = 0.25, 1.3, 0.55
_LABEL_SIZE = SMALL - 0.4


@dataclass(frozen=True)
class _Label:
    """The lines of an edge's label, and its size in cm."""

    lines: tuple[str, ...]
    width: float
    height: float


def circuit(
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
    *,
    effect_label: str,
    alt: str,
    title: str = "",
    width_cm: float = TEXT_WIDTH_CM,
    height_cm: float | None = None,
) -> Picture:
    """Draw a circuit: nodes by layer from the bottom up, an edge as wide as its effect is large, coloured by sign.

    Every edge carries its effect and interval; one whose interval includes zero is dashed and grey. An edge with a
    route enters its head by the q, k or v port. `effect_label` names the effect and its unit. Sizes in cm; a small
    circuit takes less than `width_cm`, and the height follows from the labels. Raises UserError for empty alt text,
    unknown or repeated ids, or an edge that does not go upwards.
    """
    require_alt(alt)
    gutter = _GUTTER if len(set(levels(nodes).values())) > 1 else 0.0
    above = _MARGIN + (0.55 if title else 0.0)
    below = _MARGIN + _LEGEND_CM
    layout = lay_out(
        nodes, edges, width_cm - gutter - 2 * _MARGIN, None if height_cm is None else height_cm - above - below
    )
    legend = _legend_entries(edges, effect_label)
    across = max(layout.width + gutter, sum(w for *_, w in legend)) + 2 * _MARGIN
    with look():
        figure = new_figure(min(across, width_cm), layout.height + above + below)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-gutter - _MARGIN, min(across, width_cm) - gutter - _MARGIN)
        axes.set_ylim(-below, layout.height + above)
        _draw_edges(axes, edges, layout)
        for node in nodes:
            _draw_node(axes, node, layout.boxes[node.id], has_ports(node.id, edges))
        _name_layers(axes, nodes, layout)
        _draw_legend(axes, legend, -below + 0.3)
        if title:
            axes.text(
                -gutter, layout.height + above - 0.15, title, fontsize=TITLE, fontweight="bold", va="top", ha="left"
            )
        return finish(figure, name=title, alt=alt)


def _draw_edges(axes: Axes, edges: Sequence[CircuitEdge], layout: Layout) -> None:
    largest = max((abs(edge.effect) for edge in edges), default=0.0) or 1.0
    labels = [_label(edge) for edge in edges]
    places = _place_labels(labels, [_sample(way) for way in layout.ways], list(layout.boxes.values()))
    for edge, way in zip(edges, layout.ways):
        ink, width = _ink(edge), 0.7 + 3.0 * abs(edge.effect) / largest
        x, y = way[-1]
        tip = 0.13 + 0.03 * width
        axes.add_patch(
            PathPatch(
                _curve((*way[:-1], (x, y - tip * 0.8))), fill=False, edgecolor=ink, linewidth=width, capstyle="butt",
                linestyle=(0, (3, 2)) if edge.unclear else "solid", zorder=1,
            )
        )  # fmt: skip
        half = 0.06 + 0.025 * width
        axes.add_patch(
            Polygon([(x - half, y - tip), (x + half, y - tip), (x, y)], facecolor=ink, edgecolor="none", zorder=2)
        )
    for edge, label, (x, y) in zip(edges, labels, places):
        _draw_label(axes, label, x, y, _ink(edge))


def _ink(edge: CircuitEdge) -> str:
    if edge.unclear:
        return "#8c8c8c"
    return colour.POSITIVE if edge.effect > 0 else colour.NEGATIVE if edge.effect < 0 else "#8c8c8c"


def _curve(way: Sequence[tuple[float, float]]) -> Path:
    """A smooth path through the points that leaves and enters each upright."""
    points, codes = [way[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(way):
        bend = 0.5 * (y1 - y0)
        points += [(x0, y0 + bend), (x1, y1 - bend), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


def _sample(way: Sequence[tuple[float, float]]) -> Array:
    """Points [sample, xy] along an edge, evenly in each piece of it."""
    t = np.linspace(0, 1, 25)[:, None]
    pieces = []
    for start, end in pairwise(way):
        p0, p3 = np.array(start), np.array(end)
        bend = np.array([0.0, 0.5 * (p3[1] - p0[1])])
        p1, p2 = p0 + bend, p3 - bend
        pieces.append((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)
    return np.concatenate(pieces)


def _label(edge: CircuitEdge) -> _Label:
    lines = [edge.label] if edge.label else []
    lines.append(signed(edge.effect))
    if edge.low is not None and edge.high is not None:
        lines.append(f"[{number(edge.low)}, {number(edge.high)}]")
    width = max(text_width(line, _LABEL_SIZE, "bold") for line in lines) / POINTS_PER_CM + 0.12
    return _Label(tuple(lines), width, len(lines) * _LABEL_SIZE * 1.22 / POINTS_PER_CM + 0.06)


def _place_labels(
    labels: Sequence[_Label], samples: Sequence[Array], boxes: Sequence[Box]
) -> list[tuple[float, float]]:
    """A place on or beside its own edge for each label: off nodes, other labels and other edges, near the middle.

    Greedy, longest edges last since they have the most choice, then repeated while places still change.
    """
    order = sorted(range(len(labels)), key=lambda i: (float(np.ptp(samples[i][:, 1])), i))
    places: dict[int, Box] = {}
    for _ in range(8):
        before = dict(places)
        for i in order:
            others = [places[j] for j in places if j != i]
            rest = [samples[j] for j in range(len(samples)) if j != i]
            tries = _tries(labels[i], samples[i])
            costs = [extra + _cost(box, others, boxes, rest, samples[i]) for box, extra in tries]
            places[i] = tries[int(np.argmin(costs))][0]
        if places == before:
            break
    return [(places[i].x, places[i].y) for i in range(len(labels))]


def _tries(label: _Label, points: Array) -> list[tuple[Box, float]]:
    """Places for a label, each with what is against it: far from the middle of its edge, or not quite on it."""
    off = label.width / 2 + 0.1
    middle = float(points[:, 1].mean())
    return [
        (Box(float(x) + dx, float(y), label.width, label.height), 0.3 * abs(float(y) - middle) + (0.25 if dx else 0.0))
        for x, y in points[2:-2]
        for dx in (0.0, off, -off)
    ]


def _cost(label: Box, others: Sequence[Box], boxes: Sequence[Box], edges: Sequence[Array], own: Array) -> float:
    """How much a label here hides: other labels and nodes above all, then other edges, then its own edge."""
    return (
        200 * sum(_overlap(label, other, 0.06) for other in others)
        + 400 * sum(_overlap(label, box, 0.12) for box in boxes)
        + 0.4 * sum(_hidden(points, label) for points in edges)
        + 1.2 * _hidden(own, label) / len(own)
    )


def _hidden(points: Array, box: Box) -> int:
    inside = (np.abs(points[:, 0] - box.x) < box.width / 2 + 0.03) & (np.abs(points[:, 1] - box.y) < box.height / 2)
    return int(np.count_nonzero(inside))


def _overlap(a: Box, b: Box, air: float) -> float:
    """The area in cm² that two boxes share when each keeps this much air."""
    x = (a.width + b.width) / 2 + air - abs(a.x - b.x)
    y = (a.height + b.height) / 2 + air - abs(a.y - b.y)
    return max(x, 0.0) * max(y, 0.0)


def _draw_label(axes: Axes, label: _Label, x: float, y: float, ink: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - label.width / 2, y - label.height / 2), label.width, label.height,
            boxstyle="round,pad=0,rounding_size=0.06", facecolor=colour.PAPER, edgecolor="none", alpha=0.94, zorder=3,
        )
    )  # fmt: skip
    step = _LABEL_SIZE * 1.22 / POINTS_PER_CM
    top = y + step * (len(label.lines) - 1) / 2
    for i, line in enumerate(label.lines):
        effect = line == label.lines[-1] if len(label.lines) == 1 else line[:1] in "+\N{MINUS SIGN}"
        axes.text(
            x, top - i * step, line, ha="center", va="center", fontsize=_LABEL_SIZE, zorder=4,
            color=ink if effect else colour.MUTED, fontweight="bold" if effect else "normal",
        )  # fmt: skip


def _draw_node(axes: Axes, node: CircuitNode, box: Box, ports: bool) -> None:
    lift = PORT_CM if ports else 0.0
    bottom, height = box.y - box.height / 2, box.height
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, bottom), box.width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=_EMPHASIS if node.emphasised else _FILL.get(node.kind, colour.PAPER),
            edgecolor=colour.INK if node.emphasised else "#555555", linewidth=1.2 if node.emphasised else 0.7, zorder=5,
        )
    )  # fmt: skip
    middle = bottom + lift + (height - lift) / 2
    weight = "bold" if node.emphasised else "normal"
    up = 0.13 if node.note else 0.0
    axes.text(
        box.x, middle + up, node.label, ha="center", va="center_baseline", fontsize=SIZE, fontweight=weight, zorder=6
    )
    if node.note:
        axes.text(
            box.x, middle - 0.16, node.note, ha="center", va="center_baseline", fontsize=SMALL - 0.6,
            color=colour.MUTED, zorder=6,
        )  # fmt: skip
    if ports:
        axes.add_line(
            Line2D(
                [box.x - box.width / 2 + 0.06, box.x + box.width / 2 - 0.06], [bottom + lift] * 2,
                color="#bbbbbb", linewidth=0.4, zorder=6,
            )
        )  # fmt: skip
        for route in ("q", "k", "v"):
            axes.text(
                port_x(box, route), bottom + lift / 2, route, ha="center", va="center", fontsize=SMALL - 0.4,
                fontstyle="italic", color=colour.INK, zorder=6,
            )  # fmt: skip


def _name_layers(axes: Axes, nodes: Sequence[CircuitNode], layout: Layout) -> None:
    """Name the layers in the left margin, each once."""
    named: dict[str, float] = {}
    for node in nodes:
        if node.kind not in ("embed", "logits"):
            y = layout.boxes[node.id].y
            named[f"layer {node.layer}"] = min(y, named.get(f"layer {node.layer}", y))
    for text, y in named.items():
        axes.text(-_GUTTER, y, text, ha="left", va="center", fontsize=SMALL, color=colour.MUTED)


def _legend_entries(edges: Sequence[CircuitEdge], effect_label: str) -> list[tuple[str, str, str, float]]:
    """What the legend says: (text, colour, line style, width in cm); a text without a line has no colour."""
    entries = [(effect_label, "", "")]
    if any(e.effect > 0 and not e.unclear for e in edges):
        entries.append(("positive", colour.POSITIVE, "solid"))
    if any(e.effect < 0 and not e.unclear for e in edges):
        entries.append(("negative", colour.NEGATIVE, "solid"))
    if any(e.unclear for e in edges):
        entries.append(("interval includes 0", "#8c8c8c", "dashed"))
    return [(t, ink, style, text_width(t, SMALL) / POINTS_PER_CM + (1.1 if ink else 0.4)) for t, ink, style in entries]


def _draw_legend(axes: Axes, entries: Sequence[tuple[str, str, str, float]], y: float) -> None:
    x = axes.get_xlim()[0] + _MARGIN
    for text, ink, style, width in entries:
        start = x
        if ink:
            axes.add_line(
                Line2D(
                    [x, x + 0.55], [y, y], color=ink, linewidth=1.8, linestyle=(0, (3, 2)) if style == "dashed" else "-"
                )
            )
            start += 0.7
        axes.text(start, y, text, ha="left", va="center", fontsize=SMALL, color=colour.INK if not ink else colour.MUTED)
        x += width
