"""Heat maps: head × layer scores, patching effects by layer and position, any labelled matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from headwork.draw import cells
from headwork.draw.checks import numbers, same_length
from headwork.draw.picture import Picture, require_alt
from headwork.draw.style import (
    POINTS_PER_CM,
    SIZE,
    SMALL,
    TEXT_WIDTH_CM,
    finish,
    look,
    new_figure,
    printable,
    put_title,
    shorten,
    text_width,
    wrapped,
)
from headwork.errors import UserError

LONGEST_NAME = 32
LONGEST_WORD = 10
_WIDEST_CM = 60.0


def heatmap(
    values: npt.ArrayLike,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    alt: str,
    title: str = "",
    row_label: str = "",
    column_label: str = "",
    value_label: str = "",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    marks: Sequence[tuple[int, int]] = (),
    annotate: bool | None = None,
    words: Sequence[Sequence[str]] | None = None,
    width_cm: float | None = None,
    height_cm: float | None = None,
) -> Picture:
    """Draw values [row, column], row 0 on top. NaN is hatched: not measured.

    `centre` asks for the diverging map about that value; `limits` are the ends of the colours; `marks` are outlined
    cells (row, column); `annotate` writes numbers in the cells, by default where there are at most 64; `words` [row]
    [column] are written there instead, and widen the picture where they need it. Sizes in cm; the default fits the
    cells. Raises UserError for empty alt text, sizes that disagree, or a mark outside the map.
    """
    require_alt(alt)
    array = numbers(values, "The heat map's values", ["row", "column"])
    same_length("row names", len(rows), "rows of the heat map", array.shape[0])
    same_length("column names", len(columns), "columns of the heat map", array.shape[1])
    mask = _mask(marks, array.shape)
    if words is not None:
        same_length("rows of words", len(words), "rows of the heat map", array.shape[0])
        for row in words:
            same_length("words of a row", len(row), "columns of the heat map", array.shape[1])
        words, annotate = [[shorten(printable(word), LONGEST_WORD) for word in row] for row in words], False
    if annotate is None:
        annotate = array.size <= cells.ANNOTATED_CELLS
    fitted = _size(array.shape, rows, columns, annotate, words)
    width, height = width_cm or fitted[0], height_cm or fitted[1]
    with look():
        figure = new_figure(width, height)
        axes = figure.add_subplot()
        colours = cells.scale(array, centre, limits)
        cells.paint(axes, array, colours)
        cells.bare(axes)
        name_axis(axes, "y", rows, max(height - 1.4, 1.0))
        name_axis(axes, "x", columns, max(width - _beside_cm(rows), 1.0))
        axes.set_xlabel(wrapped(column_label, width * 0.7, SIZE))
        axes.set_ylabel(wrapped(row_label, height - 1.2, SIZE))
        put_title(axes, title, width * 0.8)
        cells.outline(axes, mask)
        if annotate:
            cells.write_numbers(axes, array, colours, SMALL)
        if words is not None:
            cells.write_words(axes, array, words, colours, SMALL)
        cells.colour_bar(figure, axes, colours, value_label, height - 1.4)
        return finish(figure, name=title, alt=alt)


def name_axis(axes: Axes, axis: str, names: Sequence[str], length_cm: float) -> None:
    """Label the cells along one axis; x labels turn upright where they would touch; every n-th where space is short."""
    step = _step(len(names), length_cm)
    places = range(0, len(names), step)
    labels = [shorten(printable(names[i]), LONGEST_NAME) for i in places]
    if axis == "y":
        axes.set_yticks(places, labels)
    else:
        axes.set_xticks(places, labels, rotation=90 if _upright(names, length_cm) else 0)


def _step(count: int, length_cm: float) -> int:
    """Every how many cells a name finds room."""
    return max(1, int(np.ceil(SMALL * 1.05 * count / (length_cm * POINTS_PER_CM))))


def _upright(names: Sequence[str], length_cm: float) -> bool:
    """Whether names side by side along this length would touch."""
    each = length_cm / len(names) * _step(len(names), length_cm)
    return _longest_cm(names) > each * 0.92


def _longest_cm(names: Sequence[str]) -> float:
    return max(text_width(shorten(printable(name), LONGEST_NAME), SMALL) for name in names) / POINTS_PER_CM


def _mask(marks: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    for row, column in marks:
        if not (0 <= row < shape[0] and 0 <= column < shape[1]):
            raise UserError(
                f"The mark ({row}, {column}) is outside the heat map, whose rows are 0–{shape[0] - 1} "
                f"and columns 0–{shape[1] - 1}."
            )
        mask[row, column] = True
    return mask


def _size(
    shape: tuple[int, ...],
    rows: Sequence[str],
    columns: Sequence[str],
    annotate: bool,
    words: Sequence[Sequence[str]] | None,
) -> tuple[float, float]:
    """A width and height in cm that give cells a comfortable size within the text width, and words theirs beyond it."""
    beside = _beside_cm(rows)
    width = min(TEXT_WIDTH_CM, max(5.5, shape[1] * (1.0 if annotate else 0.55) + beside))
    if words is not None:
        longest = max(text_width(word, SMALL) for row in words for word in row) / POINTS_PER_CM
        width = min(_WIDEST_CM, max(width, shape[1] * (longest + 0.2) + beside))
    height = min(14.0, max(1.3, shape[0] * (0.62 if annotate else 0.42)) + 1.9)
    upright = _upright(columns, max(width - beside, 1.0))
    return width, height + (_longest_cm(columns) - 0.3 if upright else 0.0)


def _beside_cm(rows: Sequence[str]) -> float:
    """The width in cm that row names, labels and the colour bar take beside the cells."""
    return _longest_cm(rows) + 2.6
