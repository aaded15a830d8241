"""Attention maps for print: who looks where, with the positions a claim is about outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from headwork.draw import cells
from headwork.draw.checks import Array, numbers, same_length
from headwork.draw.picture import Picture, require_alt
from headwork.draw.style import (
    POINTS_PER_CM,
    SMALL,
    TEXT_WIDTH_CM,
    finish,
    look,
    new_figure,
    put_title,
    shorten,
    text_width,
    token_text,
)
from headwork.errors import UserError

LONGEST_TOKEN = 12


@dataclass(frozen=True)
class AttentionPanel:
    """One map: pattern [query, key], a token per position, and a boolean highlight [query, key] to outline."""

    pattern: npt.ArrayLike
    tokens: Sequence[str]
    title: str = ""
    highlight: npt.ArrayLike | None = None


def attention(
    pattern: npt.ArrayLike,
    *,
    tokens: Sequence[str],
    alt: str,
    title: str = "",
    highlight: npt.ArrayLike | None = None,
    value_label: str = "attention",
    width_cm: float | None = None,
    height_cm: float | None = None,
) -> Picture:
    """One attention map: pattern [query, key], queries down, keys across, NaN hatched.

    `highlight` is a boolean mask [query, key] whose cells are outlined. Sizes in cm, fitted to the tokens by default.
    Raises UserError for empty alt text or shapes that disagree.
    """
    return attention_grid(
        [AttentionPanel(pattern, tokens, title, highlight)],
        alt=alt,
        value_label=value_label,
        width_cm=width_cm,
        height_cm=height_cm,
    )


def attention_grid(
    panels: Sequence[AttentionPanel],
    *,
    alt: str,
    columns: int | None = None,
    value_label: str = "attention",
    width_cm: float | None = None,
    height_cm: float | None = None,
) -> Picture:
    """Several attention maps in one picture, on one colour scale from 0 to the largest value (at least 1 %).

    `columns` is the number of maps side by side: all up to three by default. Sizes in cm. Raises UserError for empty
    alt text, no panels, negative attention, or shapes that disagree.
    """
    require_alt(alt)
    if not panels:
        raise UserError("An attention grid needs at least one panel, and none was given.")
    if columns is not None and columns < 1:
        raise UserError(f"An attention grid of {columns} columns was asked for; 1 or more can be drawn.")
    checked = [_checked(panel) for panel in panels]
    across = min(columns or 3, len(panels))
    down = -(-len(panels) // across)
    each = _panel_cm(max(len(p.tokens) for p in panels), across)
    width = width_cm or min(TEXT_WIDTH_CM, across * (each + 0.3) + 1.7)
    height = height_cm or down * (each + 0.55)
    with look():
        figure = new_figure(width, height)
        grid = np.asarray(figure.subplots(down, across, squeeze=False)).ravel()
        everything = np.concatenate([pattern.ravel() for pattern, _ in checked])
        top = float(np.nanmax(everything)) if np.isfinite(everything).any() else 1.0
        colours = cells.scale(everything, None, (0.0, max(top, 0.01)))
        for axes, panel, (pattern, mask) in zip(grid, panels, checked):
            _draw(axes, panel, pattern, mask, colours, ((width - 1.7) / across - 1.4))
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for index, axes in enumerate(grid[: len(panels)]):
            axes.set_ylabel("query" if index % across == 0 else "", fontsize=SMALL)
            axes.set_xlabel("key" if index + across >= len(panels) else "", fontsize=SMALL)
        cells.colour_bar(figure, list(grid), colours, value_label, height - 0.8)
        return finish(figure, name=panels[0].title if len(panels) == 1 else "", alt=alt)


def _draw(
    axes: Axes,
    panel: AttentionPanel,
    pattern: Array,
    mask: npt.NDArray[np.bool_],
    colours: ScalarMappable,
    side_cm: float,
) -> None:
    cells.paint(axes, pattern, colours)
    axes.set_aspect("equal")
    axes.tick_params(left=False, bottom=False, pad=1.5)
    for spine in axes.spines.values():
        spine.set(visible=True, color=cells.colour.FAINT, linewidth=0.5)
    names = [shorten(token_text(token), LONGEST_TOKEN) for token in panel.tokens]
    each = max(side_cm, 1.0) * POINTS_PER_CM / len(names)
    size = float(np.clip(each * 0.9, 4.2, SMALL))
    step = max(1, int(np.ceil(size / each)))
    places = range(0, len(names), step)
    labels = [names[i] for i in places]
    upright = max(text_width(label, size) for label in labels) > each * step * 0.9
    axes.set_yticks(places, labels, fontsize=size)
    axes.set_xticks(places, labels, fontsize=size, rotation=90 if upright else 0)
    put_title(axes, panel.title, side_cm + 0.6)
    cells.outline(axes, mask, width=float(np.clip(each * 0.12, 0.35, 1.1)))


def _checked(panel: AttentionPanel) -> tuple[Array, npt.NDArray[np.bool_]]:
    pattern = numbers(panel.pattern, "The attention pattern", ["query", "key"])
    if pattern.shape[0] != pattern.shape[1]:
        raise UserError(f"The attention pattern [query, key] has shape {pattern.shape}; it must be square.")
    same_length("tokens", len(panel.tokens), "positions of the attention pattern", pattern.shape[0])
    if (pattern < 0).any():
        raise UserError(
            f"The attention pattern holds a negative number ({np.nanmin(pattern):g}); use heatmap for those."
        )
    if panel.highlight is None:
        return pattern, np.zeros(pattern.shape, dtype=bool)
    mask = np.asarray(panel.highlight)
    if mask.shape != pattern.shape or mask.dtype != np.bool_:
        raise UserError(
            f"The highlight must be true or false for each cell of the pattern {pattern.shape}, "
            f"and is {mask.dtype} of shape {mask.shape}."
        )
    return pattern, mask


def _panel_cm(tokens: int, across: int) -> float:
    """The side of one map in cm: room for every token's name, within the text width."""
    return float(np.clip(tokens * 0.26 + 1.6, 4.0, (TEXT_WIDTH_CM - 1.7) / across - 0.3))
