"""Words in the cells of a heat map, and whole numbers along the axis of a curve."""

from __future__ import annotations

import re

import pytest

from headwork import draw
from headwork.errors import UserError

VALUES, ROWS, COLUMNS = [[0.0, 1.0], [2.0, float("nan")]], ["a", "b"], ["x", "y"]


def width(picture: draw.Picture) -> float:
    found = re.search(r'width="([\d.]+)pt"', picture.svg)
    assert found is not None
    return float(found[1])


def test_words_stand_in_the_cells_instead_of_numbers_and_widen_the_picture() -> None:
    plain = draw.heatmap(VALUES, rows=ROWS, columns=COLUMNS, alt="x")
    words = [["Mary", "John"], ["a word that is too long to be read", "p"]]
    named = draw.heatmap([v * 1 for v in VALUES], rows=ROWS, columns=COLUMNS, words=words, alt="x")
    assert "<!-- 1.00 -->" in plain.svg
    assert "<!-- 1.00 -->" not in named.svg
    assert all(f"<!-- {word} -->" in named.svg for word in ("Mary", "John", "p", "a word th…"))
    many = draw.heatmap([[0.0] * 12], rows=["a"], columns=list("abcdefghijkl"), words=[["long words"] * 12], alt="x")
    assert width(many) > width(draw.heatmap([[0.0] * 12], rows=["a"], columns=list("abcdefghijkl"), alt="x"))


@pytest.mark.parametrize("words", [[["a", "b"]], [["a", "b"], ["c"]]])
def test_words_that_do_not_fit_the_cells_are_refused(words: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"There are 1 (rows of words for 2 rows|words of a row for 2 columns)"):
        draw.heatmap(VALUES, rows=ROWS, columns=COLUMNS, words=words, alt="x")


def test_layers_are_whole_numbers() -> None:
    series = [draw.Series("a", [0, 1, 2], [0.0, 1.0, 3.0])]
    loose, whole = (draw.curves(series, x_label="x", y_label="y", x_whole=w, alt="x").svg for w in (False, True))
    assert "<!-- 0.25 -->" in loose
    assert "<!-- 0.25 -->" not in whole
    assert "<!-- 1 -->" in whole
