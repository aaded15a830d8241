"""Heat maps and attention maps."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from tests.draw.examples import causal

from headwork import draw
from headwork.draw import cells, colour, style
from headwork.errors import UserError


def images(svg: str) -> list[np.ndarray]:
    """The images inside an SVG, as sRGB arrays in 0–1, the largest first."""
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return sorted((imread(io.BytesIO(base64.b64decode(data))) for data in found), key=np.size, reverse=True)


def heatmap(values: object, **options: object) -> str:
    array = np.asarray(values, dtype=float)
    rows, columns = [f"r{i}" for i in range(array.shape[0])], [f"c{i}" for i in range(array.shape[1])]
    return draw.heatmap(array, rows=rows, columns=columns, alt="x", **options).svg  # pyright: ignore[reportArgumentType]


def test_few_cells_carry_their_numbers_and_many_do_not() -> None:
    assert "<!-- 0.25 -->" in heatmap([[0.25, 1.0]])
    assert "<!-- −1.00 -->" in heatmap([[-1.0, 1.0]])
    assert "<!-- 0.50 -->" not in heatmap(np.full((9, 9), 0.5), limits=(0, 1))
    assert "<!-- 0.50 -->" not in heatmap([[0.5]], annotate=False, limits=(0, 2))


def test_each_cell_has_the_colour_of_its_value() -> None:
    image = images(heatmap([[0.0, 1.0], [0.5, 0.0]], limits=(0, 1)))[0]
    step = image.shape[0] // 2
    ramp = colour.sequential()
    for row, column, expected in ((0, 0, ramp[0]), (0, 1, ramp[-1]), (1, 0, ramp[128]), (1, 1, ramp[0])):
        seen = image[row * step : (row + 1) * step, column * step : (column + 1) * step, :3]
        assert np.abs(seen - expected).max() < 0.01


def test_the_centre_of_a_diverging_map_is_the_lightest_colour() -> None:
    image = images(heatmap([[-3.0, 1.0, 7.0]], centre=1.0))[0]
    step = image.shape[1] // 3
    left, middle, right = (image[0, i * step, :3] for i in range(3))
    assert middle.min() > 0.95
    assert left[0] > left[2]
    assert right[2] > right[0]


def test_what_was_not_measured_is_hatched() -> None:
    assert "pattern" in heatmap([[np.nan, 1.0]])
    assert "pattern" not in heatmap([[0.0, 1.0]])
    assert "pattern" in heatmap([[np.nan, np.nan]])


def test_marked_cells_are_outlined_and_touching_ones_share_a_border() -> None:
    assert colour.MARK.lower() in heatmap([[0.0, 1.0]], marks=[(0, 1)])
    assert colour.MARK.lower() not in heatmap([[0.0, 1.0]])


def test_a_large_map_stays_small() -> None:
    assert len(heatmap(np.random.default_rng(0).random((64, 64)))) < 150_000


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": ["a"]}, "1 row names for 2 rows"),
        ({"columns": ["a"]}, "1 column names for 3 columns"),
        ({"marks": [(2, 0)]}, r"\(2, 0\) is outside the heat map"),
        ({"limits": (1, 1)}, "not in order"),
        ({"values": [1.0, 2.0]}, r"axes \[row, column\], and has shape \(2,\)"),
        ({"values": [[1.0, np.inf, 2], [1, 2, 3]]}, "infinite"),
        ({"values": np.zeros((0, 3))}, "is empty"),
        ({"values": [["a", "b", "c"]] * 2}, "must be numbers"),
    ],
)
def test_impossible_heat_maps_are_refused(options: dict[str, object], message: str) -> None:
    given_options = {"values": np.zeros((2, 3)), "rows": ["a", "b"], "columns": ["a", "b", "c"], **options}
    with pytest.raises(UserError, match=message):
        draw.heatmap(given_options.pop("values"), alt="x", **given_options)  # pyright: ignore[reportArgumentType]


def test_tokens_show_their_white_space_and_missing_glyphs() -> None:
    assert style.token_text(" the") == "␣the"
    assert style.token_text("\n") == "↵"
    assert style.token_text("") == "∅"
    assert style.token_text("中") == "\\u4e2d"
    assert style.token_text("\u202e") == "\\u202e"


def test_every_token_of_a_short_sequence_is_named() -> None:
    svg = draw.attention(causal(4), tokens=["one", " two", "three", "\n"], alt="x").svg
    for name in ("one", "␣two", "three", "↵"):
        assert svg.count(f"<!-- {name} -->") == 2


def test_panels_of_a_grid_share_one_scale() -> None:
    panels = [draw.AttentionPanel(np.eye(2) * top, ["a", "b"]) for top in (1.0, 0.5)]
    maps = [image for image in images(draw.attention_grid(panels, alt="x").svg) if image.shape[0] == image.shape[1]]
    first, second = (image[0, 0, :3] for image in maps)
    assert sorted([first.sum(), second.sum()]) == pytest.approx(
        sorted([colour.sequential()[-1].sum(), colour.sequential()[128].sum()]), abs=0.02
    )


@pytest.mark.parametrize(
    "pattern, tokens, highlight, message",
    [
        (np.zeros((2, 3)), ["a", "b"], None, "must be square"),
        (np.zeros((2, 2)), ["a"], None, "1 tokens for 2 positions"),
        (-np.ones((2, 2)), ["a", "b"], None, "negative"),
        (np.zeros((2, 2)), ["a", "b"], np.zeros((2, 2)), "true or false for each cell"),
        (np.zeros((2, 2)), ["a", "b"], np.zeros((3, 3), bool), r"of shape \(3, 3\)"),
    ],
)
def test_impossible_attention_maps_are_refused(
    pattern: np.ndarray, tokens: list[str], highlight: np.ndarray | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw.attention(pattern, tokens=tokens, highlight=highlight, alt="x")


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(UserError, match="at least one panel"):
        draw.attention_grid([], alt="x")
    with pytest.raises(UserError, match="0 columns"):
        draw.attention_grid([draw.AttentionPanel([[1.0]], ["a"])], columns=0, alt="x")


def test_lightness_falls_evenly_along_the_sequential_map() -> None:
    rgb = colour.sequential(64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    steps = np.diff(np.cbrt(linear @ [0.2126, 0.7152, 0.0722]))
    assert (steps < 0).all()
    assert steps.min() / steps.max() < 2.0


@given(st.floats(-1e6, 1e6), st.one_of(st.none(), st.floats(-10, 10)))
def test_a_constant_map_has_a_colour(value: float, centre: float | None) -> None:
    scale = cells.scale(np.full((1, 2), value), centre, None)
    low, high = scale.get_clim()
    assert low is not None
    assert high is not None
    assert low < high
