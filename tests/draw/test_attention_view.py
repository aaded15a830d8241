"""The attention explorer: what is embedded, what can never get out, what it offers to keyboard and screen reader."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.draw.examples import causal

from headwork import draw
from headwork.errors import UserError

HOSTILE = ["</script><img src=x onerror=alert(1)>", "<!--<script>", "]]>", "&lt;", "\u2028", '"', "\\", "\ud800"]


class Elements(HTMLParser):
    """The elements of a page, the data of its scripts, and whether all are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def view(tokens: list[str] | None = None, **options: object) -> draw.View:
    tokens = tokens or ["a", "b", "c"]
    patterns = np.stack([causal(len(tokens), seed) for seed in range(2)])
    settings = {"patterns": patterns, "heads": ["0.0", "0.1"], "alt": "Two heads.", "tokens": tokens, **options}
    return draw.attention_view(settings.pop("patterns"), **settings)  # pyright: ignore[reportArgumentType]


def embedded(shown: draw.View) -> dict[str, object]:
    return json.loads(Elements(shown.html).scripts[0])


def test_the_values_are_embedded_to_a_part_in_254_of_the_largest() -> None:
    patterns = np.stack([causal(5, 1), causal(5, 2)])
    patterns[1, 2, 0] = np.nan
    data = embedded(view(list("abcde"), patterns=patterns))
    cells = np.frombuffer(base64.b64decode(str(data["cells"])), dtype=np.uint8).reshape(2, 5, 5)
    assert cells[1, 2, 0] == 255
    got = np.where(cells == 255, np.nan, cells / 254 * float(str(data["top"])))
    assert np.nanmax(np.abs(got - patterns)) < 1 / 254
    assert (np.isnan(got) == np.isnan(patterns)).all()


def test_hostile_tokens_stay_text() -> None:
    shown = view(HOSTILE, title="<b>title</b>", alt='<i>"alt"</i>', values_title="</script>")
    page = Elements(shown.html)
    assert page.tags == ["div", "style", "p", "noscript", "p", "script", "script"]
    assert page.open == []
    assert embedded(shown)["tokens"] == [*HOSTILE[:-1], "\ufffd"]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_tokens_leave_the_markup_as_it_is(tokens: list[str]) -> None:
    data = view(tokens).html.split('<script type="application/json">')[1].split("</script>")[0]
    assert not re.search(r"[<>&\u2028\u2029]", data)
    assert data.isascii()
    assert len(json.loads(data)["tokens"]) == len(tokens)


def test_the_script_never_parses_text_as_markup() -> None:
    script = Elements(view().html).scripts[1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way not in script


def test_it_asks_the_network_for_nothing() -> None:
    page = view().page()
    for way in ("http", "//cdn", "@import", "url(", "src=", "fetch(", "XMLHttpRequest", "<link"):
        assert way not in page


def test_same_input_same_bytes_and_other_input_other_scope() -> None:
    assert view().html == view().html
    scopes = [re.findall(r'data-headwork="(\w+)"', view(tokens).html)[0] for tokens in (["a"], ["b"])]
    assert scopes[0] != scopes[1]
    style = re.search(r"<style>(.*?)</style>", view().html, re.DOTALL)
    assert style is not None
    rules = [r.strip() for r in re.findall(r"(?:^|\})\s*([^{}@]+)\{", style[1])]
    assert rules
    assert all(rule.startswith(".hw") for rule in rules)


def test_it_is_named_and_has_roles_keys_a_focus_ring_and_a_dark_side() -> None:
    html = view(alt='Says "this".').html
    assert 'role="group" aria-label="Says &quot;this&quot;."' in html
    for part in (
        "radiogroup", "listbox", "aria-checked", "aria-selected", "aria-live", "ArrowRight", "ArrowLeft", "Home",
        ":focus-visible", "prefers-color-scheme: dark", "max-width: 40rem", "<noscript>",
    ):  # fmt: skip
        assert part in html, part


def test_it_starts_with_the_first_marked_head_unless_told() -> None:
    assert embedded(view(marked=["0.1"]))["start"] == 1
    assert embedded(view(marked=["0.1"], start="0.0"))["start"] == 0
    assert embedded(view(marked=["0.1", "0.1"]))["marked"] == [1]


def test_the_page_is_whole() -> None:
    page = view().page()
    assert page.startswith("<!doctype html>")
    assert '<meta name="viewport"' in page
    assert "<title>Two heads.</title>" in page


@pytest.mark.parametrize(
    "options, message",
    [
        ({"marked": ["0.2"]}, "Unknown head '0.2'"),
        ({"start": "9.9"}, "Unknown head '9.9'"),
        ({"heads": ["0.0"]}, "1 head names for 2 heads"),
        ({"heads": ["0.0", "0.0"]}, "'0.0' is named 2 times"),
        ({"tokens": ["a"], "patterns": np.zeros((2, 3, 3))}, "1 tokens for 3 positions"),
        ({"patterns": np.zeros((2, 3, 4))}, "queries and keys must agree"),
        ({"patterns": np.zeros((3, 3))}, r"\[head, query, key\], and has shape \(3, 3\)"),
        ({"patterns": -np.ones((2, 3, 3))}, "negative"),
    ],
)
def test_impossible_views_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        view(**options)  # pyright: ignore[reportArgumentType]
