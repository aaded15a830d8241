"""One small example of every picture, so that what holds for all is tested on all."""

from __future__ import annotations

import numpy as np

from headwork import draw


def causal(positions: int, seed: int = 0) -> np.ndarray:
    """A causal attention pattern [query, key] whose rows sum to one."""
    scores = np.tril(np.random.default_rng(seed).random((positions, positions)) + 0.01)
    return scores / scores.sum(axis=1, keepdims=True)


def every_picture(alt: str, text: str = "text") -> dict[str, draw.Picture]:
    """Each kind of picture, with `text` wherever a caller's own words go."""
    nodes = [draw.CircuitNode("a", text, 0, note=text), draw.CircuitNode("b", "1.1", 1)]
    return {
        "heatmap": draw.heatmap(
            [[0.25, -1.0], [np.nan, 2.0]], rows=[text, "r"], columns=["c", text], title=text, value_label=text,
            row_label=text, column_label=text, centre=0, marks=[(0, 1)], alt=alt,
        ),
        "attention": draw.attention(causal(3), tokens=["a", text, ""], title=text, highlight=np.eye(3) > 0, alt=alt),
        "curves": draw.curves(
            [
                draw.Series(text, [0, 1, 2], [1, np.nan, 3], [0, 1, 2], [2, 3, 4]),
                draw.Series("dots", [1], [1], style="points"),
            ],
            x_label=text, y_label=text, title=text, references=[draw.Reference(2, text)], spans=[draw.Span(0, 1, text)],
            alt=alt,
        ),
        "forest": draw.forest(
            [draw.ForestRow(text, 0.5, 0.4, 0.6, [0.4, 0.6], text, text), draw.ForestRow("none", None, note=text)],
            x_label=text, title=text, reference=0.4, reference_label=text, alt=alt,
        ),
        "interval_bars": draw.interval_bars(
            [draw.BarRow(text, 1.0, 0.5, 1.5, "x", text, text), draw.BarRow("other", -1.0, kind=text)],
            x_label=text, title=text, alt=alt,
        ),
        "circuit": draw.circuit(
            nodes, [draw.CircuitEdge("a", "b", 1.5, 1.25, 1.75, text, "k")], effect_label=text, title=text, alt=alt
        ),
    }  # fmt: skip
