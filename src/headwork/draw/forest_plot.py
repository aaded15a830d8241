"""Forest plots: estimates with intervals and the individual seeds behind them, under group headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwork.draw import colour, rows
from headwork.draw.picture import Picture, require_alt
from headwork.draw.style import SIZE, TEXT_WIDTH_CM, finish, look, new_figure, put_title, wrapped
from headwork.errors import UserError


@dataclass(frozen=True)
class ForestRow:
    """One estimate. `value` None: not measurable or diverged, said by `note`. `points` are single seeds."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = ()
    group: str = ""
    note: str = ""


def forest(
    estimates: Sequence[ForestRow],
    *,
    x_label: str,
    alt: str,
    title: str = "",
    reference: float | None = None,
    reference_label: str = "",
    limits: tuple[float, float] | None = None,
    width_cm: float = TEXT_WIDTH_CM,
    height_cm: float | None = None,
) -> Picture:
    """Draw estimates from top to bottom, consecutive ones of the same group under its heading.

    Each has its value, its interval where given, its seeds as small dots (NaN among them is left out), and at the
    right the numbers and the note. `reference` is a dashed vertical line. Sizes in cm. Raises UserError for empty alt
    text, no rows, or an interval with one end or out of order.
    """
    require_alt(alt)
    parts = [rows.Row(r.label, r.value, r.low, r.high, r.group, _note(r)) for r in estimates]
    lines = rows.place(parts)
    seeds = [np.asarray([p for p in r.points if np.isfinite(p)], dtype=float) for r in estimates]
    extra = [*np.concatenate(seeds), *([] if reference is None else [reference])]
    height = height_cm or lines.height * rows.ROW_CM + 1.1 + (0.4 if title or reference_label else 0.0)
    with look():
        figure = new_figure(width_cm, height)
        axes = figure.add_subplot()
        rows.frame(axes, parts, lines, wrapped(x_label, width_cm * 0.5, SIZE), limits or rows.span(parts, extra))
        if reference is not None:
            rows.vertical(axes, reference, reference_label)
        for y, row, points in zip(lines.rows, estimates, seeds):
            if points.size:
                axes.scatter(
                    points, y + 0.27 + rows.jitter(points.size), s=9, color="#3a9bd6", edgecolors=colour.PAPER,
                    linewidths=0.3, zorder=2,
                )  # fmt: skip
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [y, y], color=colour.INK, linewidth=1.3, zorder=3)
            if row.value is not None:
                axes.plot([row.value], [y], marker="s", markersize=4, color=colour.INK, zorder=4, linestyle="none")
        put_title(axes, title, width_cm * 0.6, pad=12 if reference_label else 5)
        return finish(figure, name=title, alt=alt)


def _note(row: ForestRow) -> str:
    if row.value is None and not row.note:
        raise UserError(f"The row {row.label!r} has no value and no note; say in the note why it was not measured.")
    return row.note
