"""Painting a matrix as cells: an image, ruled where the cells are few, hatched where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from headwork.draw import colour
from headwork.draw.checks import Array
from headwork.draw.style import FONT, SMALL, number, wrapped
from headwork.errors import UserError

RULED_CELLS = 900
ANNOTATED_CELLS = 64
# An image cell is this many pixels wide, so that a viewer that smooths images blurs a hair, not the cell.
_PIXELS = 10


def scale(values: Array, centre: float | None, limits: tuple[float, float] | None) -> ScalarMappable:
    """The colours for these values: diverging about `centre` where one is given, otherwise light to dark."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if limits is not None:
        low, high = limits
        if not low < high:
            raise UserError(f"The colour limits ({low:g}, {high:g}) are not in order; the first must be the smaller.")
    if centre is not None:
        reach = max(abs(low - centre), abs(high - centre)) or 1.0
        low, high = centre - reach, centre + reach
    elif low == high:
        low, high = min(low, 0.0), max(high, 0.0) if high > 0 else low + 1.0
    table = colour.sequential() if centre is None else colour.diverging()
    return ScalarMappable(Normalize(low, high, clip=True), ListedColormap(table))


def paint(axes: Axes, values: Array, colours: ScalarMappable) -> None:
    """Draw values [row, column] with row 0 on top; the cell (r, c) is centred on x = c, y = r."""
    rows, columns = values.shape
    rgba = colours.to_rgba(np.ma.masked_invalid(values))
    missing = np.isnan(values)
    rgba[missing] = (0.0, 0.0, 0.0, 0.0)
    pixels = (rgba * 255).round().astype(np.uint8).repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
    axes.imshow(pixels, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="none")
    if values.size <= RULED_CELLS:
        _rule(axes, rows, columns)
    if missing.any():
        squares = [_square(r, c) for r, c in np.argwhere(missing)]
        hatched = Path.make_compound_path(*squares)
        axes.add_patch(PathPatch(hatched, facecolor="#eeeeee", edgecolor="#999999", hatch="//////", linewidth=0))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("auto")


def _rule(axes: Axes, rows: int, columns: int) -> None:
    """Thin white lines between the cells, as one path."""
    across = [Path([(-0.5, r - 0.5), (columns - 0.5, r - 0.5)]) for r in range(1, rows)]
    down = [Path([(c - 0.5, -0.5), (c - 0.5, rows - 0.5)]) for c in range(1, columns)]
    if across or down:
        lines = Path.make_compound_path(*across, *down)
        axes.add_patch(PathPatch(lines, fill=False, edgecolor=colour.PAPER, linewidth=0.5))


def _square(row: int, column: int) -> Path:
    x0, x1, y0, y1 = column - 0.5, column + 0.5, row - 0.5, row + 0.5
    return Path([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], closed=True)


def write_numbers(axes: Axes, values: Array, colours: ScalarMappable, size: float) -> None:
    """Write each value in its cell, in ink or paper by the cell's colour."""
    finite = np.abs(values[np.isfinite(values)])
    digits = 2 if not finite.size or finite.max() < 10 else 1
    rgba = colours.to_rgba(np.ma.masked_invalid(values))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = colour.readable_on(rgba[row, column, :3])
            text = number(float(value), digits)
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size, fontfamily=FONT)


def write_words(
    axes: Axes, values: Array, words: Sequence[Sequence[str]], colours: ScalarMappable, size: float
) -> None:
    """Write each word in its cell, in ink or paper by the cell's colour; a cell without a value is hatched, in ink."""
    rgba = colours.to_rgba(np.ma.masked_invalid(values))
    for (row, column), value in np.ndenumerate(values):
        ink = colour.readable_on(rgba[row, column, :3]) if np.isfinite(value) else colour.INK
        word = words[int(row)][int(column)]
        axes.text(column, row, word, ha="center", va="center", color=ink, fontsize=size, fontfamily=FONT)


def outline(axes: Axes, mask: npt.NDArray[np.bool_], width: float = 1.1) -> None:
    """Draw the border of the masked cells [row, column]; touching cells share one border.

    A white halo sets it off from dark cells, unless the line is so thin that the cells are too small for one.
    """
    padded = np.pad(mask, 1)
    if not mask.any():
        return
    upright = [Path([(c - 0.5, r - 1.5), (c - 0.5, r - 0.5)]) for r, c in np.argwhere(padded[:, 1:] != padded[:, :-1])]
    level = [Path([(c - 1.5, r - 0.5), (c - 0.5, r - 0.5)]) for r, c in np.argwhere(padded[1:] != padded[:-1])]
    border = Path.make_compound_path(*upright, *level)
    halo = [(colour.PAPER, width + 1.0)] if width >= 0.8 else []
    for ink, line_width in [*halo, (colour.MARK, width)]:
        axes.add_patch(
            PathPatch(
                border, fill=False, edgecolor=ink, linewidth=line_width, capstyle="projecting", clip_on=False, zorder=3
            )
        )


def colour_bar(
    figure: Figure, axes: Axes | Sequence[Axes], colours: ScalarMappable, label: str, height_cm: float
) -> None:
    """A colour bar a quarter of a centimetre wide to the right of the axes, at most 5 cm high; an image."""
    long = min(height_cm * 0.9, 5.0)
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02, aspect=long / 0.25, shrink=long / height_cm)
    bar.set_label(wrapped(label, height_cm, SMALL), fontsize=SMALL)
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=SMALL, width=0.4, length=2)
    bar.solids.set_rasterized(True)  # pyright: ignore[reportOptionalMemberAccess]


def bare(axes: Axes) -> None:
    """No frame and no tick marks: the cells are the frame."""
    axes.tick_params(left=False, bottom=False, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
