"""What forest plots and interval bars share: rows under group headings, and a column of numbers at the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from headwork.draw import colour
from headwork.draw.checks import interval
from headwork.draw.style import SIZE, SMALL, printable, with_interval, wrapped
from headwork.errors import UserError

ROW_CM = 0.47
_NOTE_CM, _NOTE_SIZE = 4.2, SMALL - 0.6


@dataclass(frozen=True)
class Row:
    """One row: a value with its interval (None: not measured), the group it stands under, and a note."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    group: str
    note: str


@dataclass(frozen=True)
class Lines:
    """Where things stand, from the top: y of each row, (y, text) of each heading, and the whole height."""

    rows: tuple[float, ...]
    headings: tuple[tuple[float, str], ...]
    height: float


def place(rows: Sequence[Row]) -> Lines:
    """One line per row and one per change of group. Raises UserError for no rows or an impossible interval."""
    if not rows:
        raise UserError("There is no row to draw; give at least one.")
    y, at, headings, group = 0.0, [], [], ""
    for row in rows:
        interval(f"The row {row.label!r}", row.value, row.low, row.high)
        if row.group != group:
            if at:
                y += 0.35
            if row.group:
                headings.append((y, row.group))
                y += 1.0
            group = row.group
        extra = 0.28 * max(0, len(_texts(row)) - 2)
        at.append(y + extra)
        y += 1.0 + 2 * extra
    return Lines(tuple(at), tuple(headings), y)


def span(rows: Sequence[Row], extra: Sequence[float]) -> tuple[float, float]:
    """The x range that holds every number, with a little air."""
    given = [x for row in rows for x in (row.value, row.low, row.high) if x is not None]
    given.extend(extra)
    low, high = (min(given), max(given)) if given else (0.0, 1.0)
    air = 0.05 * (high - low) or 0.5
    return low - air, high + air


def frame(axes: Axes, rows: Sequence[Row], lines: Lines, x_label: str, x_range: tuple[float, float]) -> None:
    """Labels at the left, headings, the column of numbers and notes at the right, thin guides between."""
    axes.set_xlim(*x_range)
    axes.set_ylim(lines.height - 0.45, -0.55)
    axes.set_yticks(lines.rows, [printable(row.label) for row in rows], fontsize=SIZE)
    axes.tick_params(axis="y", left=False, pad=4)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    axes.grid(axis="x")
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for y, text in lines.headings:
        axes.annotate(
            text, (0, y), xycoords=beside, xytext=(-4, 0), textcoords="offset points",
            va="center", ha="right", fontweight="bold", fontsize=SIZE,
        )  # fmt: skip
    for y, row in zip(lines.rows, rows):
        _beside(axes, y, _texts(row))
        if row.value is None:
            axes.plot(x_range, [y, y], color=colour.FAINT, linewidth=0.8, linestyle=(0, (1, 2.5)), zorder=1)


def _texts(row: Row) -> list[tuple[str, bool]]:
    """The lines at the right of a row, each with whether it is a note: the numbers, then the note or in its place."""
    numbers = [] if row.value is None else [(with_interval(row.value, row.low, row.high), False)]
    note = [(line, True) for line in wrapped(row.note, _NOTE_CM, _NOTE_SIZE).split("\n")] if row.note else []
    return numbers + note


def _beside(axes: Axes, y: float, texts: Sequence[tuple[str, bool]]) -> None:
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for index, (text, is_note) in enumerate(texts):
        axes.annotate(
            text, (1, y), xycoords=beside, xytext=(8, 6.8 * ((len(texts) - 1) / 2 - index)),
            textcoords="offset points", va="center", ha="left", fontsize=_NOTE_SIZE if is_note else SMALL,
            color=colour.MUTED if is_note else colour.INK, fontstyle="italic" if is_note else "normal",
        )  # fmt: skip


def vertical(axes: Axes, x: float, label: str) -> None:
    """A dashed reference line over the whole height, named above the axes."""
    axes.axvline(x, color=colour.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)
    if label:
        above = blended_transform_factory(axes.transData, axes.transAxes)
        axes.annotate(
            label, (x, 1), xycoords=above, xytext=(0, 2), textcoords="offset points",
            va="bottom", ha="center", fontsize=SMALL, color=colour.MUTED,
        )  # fmt: skip


def jitter(count: int) -> np.ndarray:
    """Vertical offsets in rows for this many points: by index alone, so that the same data gives the same picture."""
    return 0.0 * np.arange(count) if count < 2 else ((np.arange(count) * 0.618034) % 1.0 - 0.5) * 0.2
