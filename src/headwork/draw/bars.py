"""Horizontal bars with intervals: what each ablation costs, against its matched sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.patches import Patch

from headwork.draw import colour, rows
from headwork.draw.picture import Picture, require_alt
from headwork.draw.style import SIZE, TEXT_WIDTH_CM, finish, look, new_figure, put_title, wrapped
from headwork.errors import UserError


@dataclass(frozen=True)
class BarRow:
    """One bar from zero to its value; `kind` chooses its colour and stands in the legend, `group` is its heading."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = ""
    group: str = ""
    note: str = ""


def interval_bars(
    bars: Sequence[BarRow],
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
    """Draw bars from top to bottom, each from zero to its value with its interval, coloured by kind.

    A value of None is not measured and says why in its note. At most seven kinds. Sizes in cm. Raises UserError for
    empty alt text, no bars, too many kinds, or an interval with one end or out of order.
    """
    require_alt(alt)
    parts = [rows.Row(b.label, b.value, b.low, b.high, b.group, b.note) for b in bars]
    lines = rows.place(parts)
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    if len(kinds) > len(colour.CATEGORIES):
        raise UserError(f"There are {len(kinds)} kinds of bars; at most {len(colour.CATEGORIES)} can be told apart.")
    inks = dict(zip(kinds, colour.CATEGORIES))
    named = [kind for kind in kinds if kind] if len(kinds) > 1 else []
    height = (
        height_cm or lines.height * rows.ROW_CM + 1.1 + (0.4 if title or reference_label else 0) + bool(named) * 0.5
    )
    with look():
        figure = new_figure(width_cm, height)
        axes = figure.add_subplot()
        extra = [0.0, *([] if reference is None else [reference])]
        rows.frame(axes, parts, lines, wrapped(x_label, width_cm * 0.5, SIZE), limits or rows.span(parts, extra))
        axes.axvline(0, color=colour.MUTED, linewidth=0.6, zorder=3)
        if reference is not None:
            rows.vertical(axes, reference, reference_label)
        for y, bar in zip(lines.rows, bars):
            ink = inks[bar.kind]
            if bar.value is not None:
                axes.barh(y, bar.value, height=0.56, color=ink, alpha=0.35, linewidth=0, zorder=2)
                axes.plot([bar.value], [y], marker="o", markersize=3.6, color=ink, linestyle="none", zorder=4)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [y, y], color=ink, linewidth=1.4, zorder=4)
        put_title(axes, title, width_cm * 0.6, pad=12 if reference_label else 5)
        if named:
            handles = [Patch(facecolor=inks[kind], alpha=0.7, label=kind) for kind in named]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(named), handlelength=1.0)
        return finish(figure, name=title, alt=alt)
