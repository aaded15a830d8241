"""Circuit diagrams: measured effects with their intervals, layers from the bottom up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from headwork.draw import colour
from headwork.draw.circuit_graph import WIDE_KINDS, CircuitEdge, CircuitNode, check, has_ports
from headwork.draw.circuit_labels import LABEL_SIZE, LINE_CM, Label, decimals, label_of, place_labels, sample
from headwork.draw.circuit_layout import PORT_CM, Box, Layout, lay_out, port_x
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
    text_width,
    wrapped,
)

_FILL = {"embed": "#ececec", "logits": "#ececec", "mlp": "#f5f0e1"}
_EMPHASIS = "#fff1bf"
UNCLEAR = "#8c8c8c"
_MARGIN, _GUTTER, _LEGEND_CM = 0.25, 1.3, 0.42


@dataclass(frozen=True)
class _Entry:
    """One entry of the legend; without a colour it is words alone."""

    text: str
    ink: str

    @property
    def width(self) -> float:
        return text_width(self.text, SMALL) / POINTS_PER_CM + (1.1 if self.ink else 0.4)


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
    route enters its head by the q, k or v port. `effect_label` names the effect and its unit. Sizes in cm: a small
    circuit takes less than `width_cm`, one with a layer that does not fit takes more, and the height follows from the
    labels. Raises UserError for empty alt text, unknown or repeated ids, or an edge that does not go upwards.
    """
    require_alt(alt)
    check(nodes, edges)
    gutter = _GUTTER if any(node.kind not in WIDE_KINDS for node in nodes) else 0.0
    heading = wrapped(title, width_cm - 2 * _MARGIN, TITLE, "bold")
    legend = _legend_rows(edges, effect_label, width_cm - 2 * _MARGIN)
    above = _MARGIN + (0.2 + 0.36 * len(heading.split("\n")) if title else 0.0)
    below = _MARGIN + _LEGEND_CM * len(legend)
    room = None if height_cm is None else height_cm - above - below
    layout = lay_out(nodes, edges, width_cm - gutter - 2 * _MARGIN, room)
    words = [sum(entry.width for entry in row) for row in legend]
    words += [text_width(line, TITLE, "bold") / POINTS_PER_CM for line in heading.split("\n")]
    width = max(layout.width + gutter, *words) + 2 * _MARGIN
    left = -gutter - _MARGIN
    with look():
        figure = new_figure(width, layout.height + above + below)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(left, left + width)
        axes.set_ylim(-below, layout.height + above)
        _draw_edges(axes, edges, layout)
        for node in nodes:
            _draw_node(axes, node, layout.boxes[node.id], has_ports(node.id, edges))
        _name_layers(axes, nodes, layout, left + _MARGIN)
        _draw_legend(axes, legend, left + _MARGIN, -0.42)
        place = {"x": left + _MARGIN, "y": layout.height + above - 0.15, "va": "top", "ha": "left"}
        axes.text(s=heading, fontsize=TITLE, fontweight="bold", **place)
        return finish(figure, name=title, alt=alt)


def _draw_edges(axes: Axes, edges: Sequence[CircuitEdge], layout: Layout) -> None:
    largest = max((abs(edge.effect) for edge in edges), default=0.0) or 1.0
    labels = [label_of(edge, decimals(largest)) for edge in edges]
    places = place_labels(
        labels, [sample(way) for way in layout.ways], list(layout.boxes.values()), (-0.15, layout.width + 0.2)
    )
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
    for edge, label, place in zip(edges, labels, places):
        _draw_label(axes, label, place, _ink(edge))


def _ink(edge: CircuitEdge) -> str:
    if edge.unclear:
        return UNCLEAR
    return colour.POSITIVE if edge.effect > 0 else colour.NEGATIVE if edge.effect < 0 else UNCLEAR


def _curve(way: Sequence[tuple[float, float]]) -> Path:
    """A smooth path through the points that leaves and enters each upright."""
    points, codes = [way[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(way):
        bend = 0.5 * (y1 - y0)
        points += [(x0, y0 + bend), (x1, y1 - bend), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


def _draw_label(axes: Axes, label: Label, place: Box, ink: str) -> None:
    corner = (place.x - place.width / 2, place.y - place.height / 2)
    axes.add_patch(
        FancyBboxPatch(
            corner, place.width, place.height, boxstyle="round,pad=0,rounding_size=0.06", facecolor=colour.PAPER,
            edgecolor="none", alpha=0.94, zorder=3,
        )
    )  # fmt: skip
    top = place.y + LINE_CM * (len(label.lines) - 1) / 2
    for i, line in enumerate(label.lines):
        effect = i == label.effect_line
        axes.text(
            place.x, top - i * LINE_CM, line, ha="center", va="center", fontsize=LABEL_SIZE, zorder=4,
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


def _name_layers(axes: Axes, nodes: Sequence[CircuitNode], layout: Layout, left: float) -> None:
    """Name the layers in the left margin, each once."""
    named: dict[str, float] = {}
    for node in nodes:
        if node.kind not in WIDE_KINDS:
            y = layout.boxes[node.id].y
            named[f"layer {node.layer}"] = min(y, named.get(f"layer {node.layer}", y))
    for text, y in named.items():
        axes.text(left, y, text, ha="left", va="center", fontsize=SMALL, color=colour.MUTED)


def _legend_rows(edges: Sequence[CircuitEdge], effect_label: str, most_cm: float) -> list[list[_Entry]]:
    """What the legend says, in as many rows as the width asks for."""
    entries = [_Entry(line, "") for line in wrapped(effect_label, most_cm, SMALL).split("\n")]
    if any(e.effect > 0 and not e.unclear for e in edges):
        entries.append(_Entry("positive", colour.POSITIVE))
    if any(e.effect < 0 and not e.unclear for e in edges):
        entries.append(_Entry("negative", colour.NEGATIVE))
    if any(e.unclear for e in edges):
        entries.append(_Entry("interval includes 0", UNCLEAR))
    rows: list[list[_Entry]] = [[]]
    for entry in entries:
        if rows[-1] and sum(e.width for e in rows[-1]) + entry.width > most_cm + 0.4:
            rows.append([])
        rows[-1].append(entry)
    return rows


def _draw_legend(axes: Axes, rows: Sequence[Sequence[_Entry]], left: float, y: float) -> None:
    for i, row in enumerate(rows):
        x, level = left, y - i * _LEGEND_CM
        for entry in row:
            if entry.ink:
                dashes = (0, (3, 2)) if entry.ink == UNCLEAR else "-"
                axes.add_line(Line2D([x, x + 0.55], [level] * 2, color=entry.ink, linewidth=1.8, linestyle=dashes))
            axes.text(
                x + (0.7 if entry.ink else 0.0), level, entry.text, ha="left", va="center", fontsize=SMALL,
                color=colour.MUTED if entry.ink else colour.INK,
            )  # fmt: skip
            x += entry.width
