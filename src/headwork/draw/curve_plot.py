"""Curves with bands: loss by position, scores over training. Lines are named at their ends, not in a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from headwork.draw import colour
from headwork.draw.checks import Array, numbers, same_length
from headwork.draw.picture import Picture, require_alt
from headwork.draw.spread import spread
from headwork.draw.style import (
    POINTS_PER_CM,
    SIZE,
    SMALL,
    figure_of,
    finish,
    look,
    new_figure,
    printable,
    put_title,
    text_width,
    wrapped,
)
from headwork.errors import UserError

STYLES = ("line", "points")
# Lines of text that fit beside a plot before a legend serves better.
_MOST_NAMES = 9
_LINE_POINTS = SMALL * 1.35


@dataclass(frozen=True)
class Series:
    """One curve: x and y [point], a band from low to high [point] where there is one. NaN leaves a gap."""

    name: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    low: npt.ArrayLike | None = None
    high: npt.ArrayLike | None = None
    style: str = "line"


@dataclass(frozen=True)
class Reference:
    """A horizontal dashed line at a value, such as chance."""

    value: float
    label: str


@dataclass(frozen=True)
class Span:
    """A shaded range of x, named above the plot."""

    start: float
    end: float
    label: str = ""


@dataclass(frozen=True)
class _Curve:
    name: str
    x: Array
    y: Array
    low: Array | None
    high: Array | None
    style: str
    ink: str


def curves(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    title: str = "",
    references: Sequence[Reference] = (),
    spans: Sequence[Span] = (),
    x_log: bool = False,
    y_log: bool = False,
    x_whole: bool = False,
    y_limits: tuple[float, float] | None = None,
    width_cm: float = 12.0,
    height_cm: float = 6.0,
) -> Picture:
    """Draw one or more curves over the same x. Sizes in cm. Series of one name share a colour and are named once.

    `x_whole` marks whole numbers only on the x axis: layers, steps.

    Up to nine names stand beside the plot, each at the height where its curve ends; more or long ones go into a legend.
    Raises UserError for empty alt text, no series, more than seven names, lengths that disagree, or a log axis with
    values of zero or less.
    """
    require_alt(alt)
    drawn = _checked(series, x_log, y_log)
    with look():
        figure = new_figure(width_cm, height_cm)
        axes = figure.add_subplot()
        axes.grid(axis="y")
        for curve in drawn:
            _draw(axes, curve)
        axes.set_xlabel(wrapped(x_label, width_cm * 0.7, SIZE))
        axes.set_ylabel(wrapped(y_label, height_cm - 1.2, SIZE))
        _scale(axes, x_log, y_log)
        if x_whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        for reference in references:
            axes.axhline(reference.value, color=colour.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        shaded = _shade(axes, spans)
        put_title(axes, title, width_cm * 0.75, pad=14 if shaded else 5)
        names = list(dict.fromkeys([curve.name for curve in drawn] + [printable(r.label) for r in references]))
        longest_cm = max(text_width(name, SIZE) for name in names) / POINTS_PER_CM
        if len(names) > _MOST_NAMES or longest_cm > 0.4 * width_cm:
            _legend(axes, references, max(1, int((width_cm - 0.5) / (longest_cm + 1.3))))
        elif len(names) > 1:
            _name_ends(axes, drawn, references)
        return finish(figure, name=title, alt=alt)


def _checked(series: Sequence[Series], x_log: bool, y_log: bool) -> list[_Curve]:
    if not series:
        raise UserError("There is no curve to draw; give at least one series.")
    names = list(dict.fromkeys(s.name for s in series))
    if len(names) > len(colour.CATEGORIES):
        raise UserError(
            f"There are {len(names)} curves; at most {len(colour.CATEGORIES)} can be told apart in one plot."
        )
    inks = dict(zip(names, colour.CATEGORIES))
    return [_curve(s, inks[s.name], x_log, y_log) for s in series]


def _curve(series: Series, ink: str, x_log: bool, y_log: bool) -> _Curve:
    name = f"the curve {series.name!r}"
    if series.style not in STYLES:
        raise UserError(f"Unknown style {series.style!r} of {name}; valid ones are {', '.join(STYLES)}.")
    if (series.low is None) != (series.high is None):
        raise UserError(f"The band of {name} has only one edge; give low and high, or neither.")
    x, y = numbers(series.x, f"x of {name}", ["point"]), numbers(series.y, f"y of {name}", ["point"])
    low = None if series.low is None else numbers(series.low, f"low of {name}", ["point"])
    high = None if series.high is None else numbers(series.high, f"high of {name}", ["point"])
    for key, array in (("y", y), ("low", low), ("high", high)):
        if array is not None:
            same_length(f"{key} values of {name}", array.size, "x values", x.size)
    for axis, array, is_log in (("x", x, x_log), ("y", y, y_log)):
        if is_log and (array <= 0).any():
            raise UserError(f"A logarithmic {axis} axis shows numbers above zero; {name} has {np.nanmin(array):g}.")
    if not np.isfinite(x + y).any():
        raise UserError(f"No point of {name} has both an x and a y value; leave it out and say so in the caption.")
    return _Curve(printable(series.name), x, y, low, high, series.style, ink)


def _draw(axes: Axes, curve: _Curve) -> None:
    if curve.low is not None and curve.high is not None:
        if curve.style == "line":
            axes.fill_between(curve.x, curve.low, curve.high, color=curve.ink, alpha=0.18, linewidth=0)
        else:
            axes.vlines(curve.x, curve.low, curve.high, color=curve.ink, linewidth=0.9)
    if curve.style == "line":
        axes.plot(curve.x, curve.y, color=curve.ink, label=curve.name)
    else:
        axes.plot(curve.x, curve.y, "o", color=curve.ink, markersize=3, markeredgewidth=0, label=curve.name)


def _scale(axes: Axes, x_log: bool, y_log: bool) -> None:
    """Logarithmic axes where asked for, with plain numbers: powers written small cannot be read at this size."""
    for is_log, axis, set_scale in ((x_log, axes.xaxis, axes.set_xscale), (y_log, axes.yaxis, axes.set_yscale)):
        if is_log:
            set_scale("log")
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axis.set_minor_formatter(NullFormatter())


def _shade(axes: Axes, spans: Sequence[Span]) -> bool:
    """Shade the spans and name them above the plot, equal names once. True where there is a name."""
    above = blended_transform_factory(axes.transData, axes.transAxes)
    named: set[str] = set()
    for span in spans:
        if not span.start < span.end:
            raise UserError(f"The span {span.label!r} ends ({span.end:g}) before it starts ({span.start:g}).")
        axes.axvspan(span.start, span.end, color="#f5f0e1", zorder=0, linewidth=0)
        if span.label and span.label not in named:
            named.add(span.label)
            axes.annotate(
                span.label, ((span.start + span.end) / 2, 1), xycoords=above, xytext=(0, 2.5),
                textcoords="offset points", ha="center", va="bottom", fontsize=SMALL, color=colour.MUTED,
            )  # fmt: skip
    return bool(named)


def _legend(axes: Axes, references: Sequence[Reference], columns: int) -> None:
    for reference in references:
        axes.plot([], [], color=colour.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), label=printable(reference.label))
    figure = figure_of(axes)
    named = dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def _name_ends(axes: Axes, drawn: Sequence[_Curve], references: Sequence[Reference]) -> None:
    """Write each name right of the plot at the height of its curve's end; where two would touch, move them apart."""
    figure = figure_of(axes)
    ends = [(*_end(curve), curve.name, curve.ink) for curve in {curve.name: curve for curve in drawn}.values()]
    ends += [(axes.get_xlim()[1], r.value, printable(r.label), colour.MUTED) for r in references]
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    texts = [
        axes.annotate(
            name, (1, y), xycoords=beside, xytext=(13, 0), textcoords="offset points", va="center", ha="left",
            fontsize=SIZE, color=ink, annotation_clip=False,
        )
        for _, y, name, ink in ends
    ]  # fmt: skip
    figure.draw_without_rendering()
    wanted = np.array([axes.transData.transform((axes.get_xlim()[1], y))[1] for _, y, _, _ in ends])
    box = axes.get_window_extent()
    got = spread(wanted, np.full(wanted.size - 1, _LINE_POINTS), float(box.y0), float(box.y1))
    for text, (x, y, _, ink), at, height in zip(texts, ends, got, wanted):
        text.set_position((13, at - height))
        axes.annotate(
            "", (1, y), xycoords=beside, xytext=(11.5, at - height), textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1},
            annotation_clip=False,
        )  # fmt: skip
        if x < axes.get_xlim()[1] and axes.transData.transform((x, y))[0] < box.x1 - 6:
            axes.plot([x, axes.get_xlim()[1]], [y, y], color=ink, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)


def _end(curve: _Curve) -> tuple[float, float]:
    """The right-most point that has a value."""
    given = np.flatnonzero(np.isfinite(curve.y) & np.isfinite(curve.x))
    last = given[np.argmax(curve.x[given])]
    return float(curve.x[last]), float(curve.y[last])
