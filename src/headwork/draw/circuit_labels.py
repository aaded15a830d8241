"""Where the labels of a circuit diagram's edges stand: on or beside their edge, hiding as little as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headwork.draw.checks import Array
from headwork.draw.circuit_graph import CircuitEdge
from headwork.draw.circuit_layout import Box
from headwork.draw.style import POINTS_PER_CM, SMALL, number, signed, text_width

LABEL_SIZE = SMALL - 0.4
LINE_CM = LABEL_SIZE * 1.22 / POINTS_PER_CM


@dataclass(frozen=True)
class Label:
    """The lines of an edge's label, which of them is the effect, and its size in cm."""

    lines: tuple[str, ...]
    effect_line: int
    width: float
    height: float


def sample(way: Sequence[tuple[float, float]]) -> Array:
    """Points [sample, xy] along an edge, evenly in each piece of it."""
    t = np.linspace(0, 1, 25)[:, None]
    pieces = []
    for start, end in pairwise(way):
        p0, p3 = np.array(start), np.array(end)
        bend = np.array([0.0, 0.5 * (p3[1] - p0[1])])
        p1, p2 = p0 + bend, p3 - bend
        pieces.append((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)
    return np.concatenate(pieces)


def decimals(largest: float) -> int:
    """How many decimals a diagram's effects have: two, more where the largest would not keep two of its digits."""
    return 2 if largest <= 0 else min(max(2, 1 - math.floor(math.log10(largest))), 6)


def label_of(edge: CircuitEdge, digits: int = 2) -> Label:
    """The label of an edge: what it is called, its effect, its interval, with so many decimals."""
    lines = [edge.label] if edge.label else []
    lines.append(signed(edge.effect, digits))
    if edge.low is not None and edge.high is not None:
        lines.append(f"[{number(edge.low, digits)}, {number(edge.high, digits)}]")
    width = max(text_width(line, LABEL_SIZE, "bold") for line in lines) / POINTS_PER_CM + 0.12
    return Label(tuple(lines), int(bool(edge.label)), width, len(lines) * LINE_CM + 0.06)


def place_labels(
    labels: Sequence[Label], samples: Sequence[Array], boxes: Sequence[Box], within: tuple[float, float]
) -> list[Box]:
    """A place on or beside its own edge for each label: off nodes, other labels and other edges, near the middle.

    `samples` are points [sample, xy] along each edge; `within` is the range of x that labels may use. Greedy, longest
    edges last since they have the most choice, then repeated while places still change.
    """
    order = sorted(range(len(labels)), key=lambda i: (float(np.ptp(samples[i][:, 1])), i))
    nodes = _table(boxes)
    places: dict[int, Box] = {}
    for _ in range(8):
        before = dict(places)
        for i in order:
            tries, against = _tries(labels[i], samples[i], within)
            others = _table([places[j] for j in places if j != i])
            rest = [samples[j] for j in range(len(samples)) if j != i]
            size = np.broadcast_to([labels[i].width, labels[i].height], tries.shape)
            spots = np.concatenate([tries, size], axis=1)
            cost = against + 200 * _shared(spots, others, 0.06) + 400 * _shared(spots, nodes, 0.12)
            cost += 1.2 * _hidden(spots, samples[i]) / len(samples[i])
            if rest:
                cost += 0.4 * _hidden(spots, np.concatenate(rest))
            places[i] = Box(*spots[int(np.argmin(cost))].tolist())
        if places == before:
            break
    return [places[i] for i in range(len(labels))]


def _tries(label: Label, points: Array, within: tuple[float, float]) -> tuple[Array, Array]:
    """Centres [try, xy] for a label within bounds, and what is against each: far from the middle, not on its edge."""
    off = label.width / 2 + 0.1
    inner = points[2:-2]
    tries = np.concatenate([inner, inner + [off, 0.0], inner - [off, 0.0]])
    beside = np.repeat([0.0, 0.25, 0.25], len(inner))
    far = np.abs(tries[:, 1] - points[:, 1].mean())
    least, most = within[0] + label.width / 2, within[1] - label.width / 2
    inside = np.clip(tries[:, 0], min(least, most), max(least, most))
    moved = np.abs(inside - tries[:, 0])
    tries[:, 0] = inside
    return tries, 0.3 * far + beside + 2 * moved


def _table(boxes: Sequence[Box]) -> Array:
    """Boxes as [box, (x, y, width, height)]."""
    return np.array([(b.x, b.y, b.width, b.height) for b in boxes], dtype=np.float64).reshape(-1, 4)


def _shared(spots: Array, boxes: Array, air: float) -> Array:
    """For each spot, the area in cm² that it shares with the boxes when each keeps this much air."""
    near = np.abs(spots[:, None, :2] - boxes[None, :, :2])
    sides = (spots[:, None, 2:] + boxes[None, :, 2:]) / 2 + air - near
    return np.maximum(sides, 0.0).prod(axis=2).sum(axis=1)


def _hidden(spots: Array, points: Array) -> Array:
    """For each spot, how many of the points it covers."""
    near = np.abs(spots[:, None, :2] - points[None, :, :])
    return (near < spots[:, None, 2:] / 2 + [0.03, 0.0]).all(axis=2).sum(axis=1)
