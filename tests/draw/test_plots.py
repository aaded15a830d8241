"""Curves, forest plots and interval bars."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwork import draw
from headwork.draw import rows
from headwork.draw.spread import spread
from headwork.draw.style import number, signed, with_interval, wrapped
from headwork.errors import UserError


def curves(series: list[draw.Series], **options: object) -> str:
    return draw.curves(series, x_label="x", y_label="y", alt="x", **options).svg  # pyright: ignore[reportArgumentType]


def test_few_curves_are_named_at_their_ends_and_one_alone_is_not() -> None:
    two = curves([draw.Series("first", [0, 1], [0, 1]), draw.Series("second", [0, 1], [1, 0])])
    assert two.count("<!-- first -->") == two.count("<!-- second -->") == 1
    assert "<!-- first -->" not in curves([draw.Series("first", [0, 1], [0, 1])])


def test_series_of_one_name_are_named_once() -> None:
    seeds = [draw.Series("rotary", [0, 1], [0, i]) for i in range(5)] + [draw.Series("learned", [0, 1], [0, 0])]
    assert curves(seeds).count("<!-- rotary -->") == 1


def test_many_names_go_into_a_legend() -> None:
    series = [draw.Series(f"s{i}", [0, 1], [0, i]) for i in range(7)]
    svg = curves(series, references=[draw.Reference(i, f"ref{i}") for i in range(3)])
    for name in ["s0", "s6", "ref0", "ref2"]:
        assert svg.count(f"<!-- {name} -->") == 1


def test_references_and_spans_are_named() -> None:
    svg = curves(
        [draw.Series("a", [0, 1], [0, 1])],
        references=[draw.Reference(0.5, "chance")],
        spans=[draw.Span(0, 0.5, "repeat"), draw.Span(0.6, 0.9, "repeat")],
    )
    assert svg.count("<!-- chance -->") == 1
    assert svg.count("<!-- repeat -->") == 1


def test_logarithmic_axes_have_plain_numbers() -> None:
    svg = curves([draw.Series("a", [1, 10, 1000], [1, 2, 3])], x_log=True)
    assert "<!-- 1,000 -->" in svg
    assert "mathdefault" not in svg


@pytest.mark.parametrize(
    "series, options, message",
    [
        ([], {}, "no curve"),
        ([draw.Series("a", [0, 1], [0])], {}, "1 y values of the curve 'a' for 2 x values"),
        ([draw.Series("a", [0], [0], low=[0])], {}, "only one edge"),
        ([draw.Series("a", [0], [0], [0, 1], [0])], {}, "2 low values"),
        ([draw.Series("a", [0], [0], style="dots")], {}, "Unknown style 'dots'"),
        ([draw.Series("a", [0], [1])], {"x_log": True}, "logarithmic x axis"),
        ([draw.Series("a", [0], [np.nan])], {}, "No point"),
        ([draw.Series(str(i), [0], [0]) for i in range(8)], {}, "8 curves; at most 7"),
        ([draw.Series("a", [0], [0])], {"spans": [draw.Span(1, 1)]}, "before it starts"),
    ],
)
def test_impossible_curves_are_refused(series: list[draw.Series], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        curves(series, **options)


def test_a_forest_plot_carries_its_numbers_groups_and_notes() -> None:
    estimates = [
        draw.ForestRow("2 layers", 0.93, 0.9, 0.96, [0.91, 0.95, np.nan], "Depth", "one of three seeds diverged"),
        draw.ForestRow("1 layer", None, group="Depth", note="no head to read"),
        draw.ForestRow("all pairs", -0.5, group="Weights"),
    ]
    svg = draw.forest(estimates, x_label="score", reference=0.4, reference_label="customary", alt="x").svg
    for text in (
        "2 layers", "0.93 [0.90, 0.96]", "Depth", "Weights", "one of three seeds diverged", "no head to read", "−0.50",
        "customary",
    ):  # fmt: skip
        assert svg.count(f"<!-- {text} -->") == 1, text


def test_bars_carry_their_numbers_and_kinds() -> None:
    bars = [draw.BarRow("1.3", 2.31, 2.1, 2.5, "found head"), draw.BarRow("matched", 0.1, -0.1, 0.3, "matched set")]
    svg = draw.interval_bars(bars, x_label="nats", alt="x").svg
    for text in ("1.3", "2.31 [2.10, 2.50]", "0.10 [−0.10, 0.30]", "found head", "matched set"):
        assert svg.count(f"<!-- {text} -->") == 1, text


@pytest.mark.parametrize(
    "row, message",
    [
        (draw.ForestRow("a", None), "no value and no note"),
        (draw.ForestRow("a", 1.0, low=0.5), "only one end"),
        (draw.ForestRow("a", 1.0, 2.0, 0.5), "before it starts"),
        (draw.ForestRow("a", np.nan), "use None for what was not measured"),
    ],
)
def test_impossible_rows_are_refused(row: draw.ForestRow, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw.forest([row], x_label="x", alt="x")


def test_empty_plots_and_too_many_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="no row"):
        draw.forest([], x_label="x", alt="x")
    with pytest.raises(UserError, match="8 kinds"):
        draw.interval_bars([draw.BarRow("a", 1.0, kind=str(i)) for i in range(8)], x_label="x", alt="x")


def test_seeds_stay_within_their_row_and_never_move() -> None:
    offsets = rows.jitter(50)
    assert np.abs(offsets).max() <= 0.1
    assert (offsets == rows.jitter(50)).all()
    assert len(set(offsets[:5])) == 5


@pytest.mark.parametrize(
    "value, text", [(0.0, "0.00"), (-0.001, "0.00"), (-1.5, "−1.50"), (123.456, "123.5"), (12345.6, "12346")]
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_signs_and_intervals() -> None:
    assert signed(0.5) == "+0.50"
    assert signed(-0.5) == "−0.50"
    assert with_interval(1.0, None, None) == "1.00"
    assert re.fullmatch(r"1\.00 \[0\.50, 1\.50\]", with_interval(1.0, 0.5, 1.5))


def test_wrapping_keeps_every_word() -> None:
    text = "a title that is too long for one line of this width"
    assert wrapped(text, 3.0, 7.0).split() == text.split()
    assert "\n" in wrapped(text, 3.0, 7.0)
    assert "\n" not in wrapped(text, 30.0, 7.0)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.1, 10))
def test_spread_things_never_touch_and_keep_their_order(wanted: list[float], gap: float) -> None:
    aims = np.array(wanted)
    got = spread(aims, np.full(aims.size - 1, gap), -1e4, 1e4)
    order = np.argsort(aims, kind="stable")
    assert (np.diff(got[order]) >= gap - 1e-6).all()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8, unique=True))
def test_spread_leaves_alone_what_has_room(wanted: list[float]) -> None:
    aims = np.array(wanted)
    gaps = np.diff(np.sort(aims)) * 0.5
    assert np.allclose(spread(aims, gaps, -1e3, 1e3), aims)
