"""Text from outside is text, wherever it stands: it neither breaks nor scripts a report."""

from __future__ import annotations

import re
import tempfile
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report import example
from tests.report.conftest import Case, make, pdf_text
from tests.report.test_html import Reader

from headwork.draw.picture import Picture, xml_safe
from headwork.findings.figure import Figure
from headwork.report import pdf
from headwork.report.document import Badge, Paragraph, Report, Section, Text
from headwork.report.glyphs import printable
from headwork.studies.record import Record

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="90pt" height="20pt"><rect width="9" height="9"/></svg>'
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    '#panic("x") #read("/etc/passwd") $x$ @ref <label> *b* _e_ `c` = H',
    '\\u{0} \\" ] ) } // /* comment',
    "{{verdict}} {{nothing.such}} <!-- x -->",
    "]]><![CDATA[ &amp; &#0; \x00\x08\x1b[31m \ud800 \u202e reversed",
    "javascript:alert(1) https://example.org/" + "x" * 150,
    "中文 😀 עברית العربية e\u0301",
)


def everywhere(text: str) -> Record:
    """The record with this text wherever a person, a paper or a network's folder could put it."""
    base = example.record()
    claims = [
        claim.model_copy(
            update=dict.fromkeys(
                ("statement", "quantity_unit", "paper", "paper_source", "null_meaning", "threshold_source", "why"), text
            )
        )
        for claim in base.headline.claims[:2]
    ]
    headline = base.headline.model_copy(
        update={
            "claims": claims, "heads": {text: [text]}, "notes": [text], "run": text,
            "scalars": {text: example.estimate(1.0, 0.1)},
        }
    )  # fmt: skip
    reference = dict.fromkeys(("key", "authors", "title", "venue", "url"), text) | {"year": 2021}
    control = base.controls[0].model_copy(update={"name": text, "model": text, "why": text, "decided_by": text})
    followup = base.followups[0].model_copy(
        update=dict.fromkeys(("factor", "key", "question", "verdict"), text)
        | {"unavailable": [text], "diff": {"1": (text, text)}}
    )  # fmt: skip
    return base.model_copy(
        update={
            "title": text, "finding": text, "model": text, "model_name": text, "data_note": text, "decided_by": text,
            "card": {"claim": text, "networks": text, "data": text, "scope": text, "references": [reference]},
            "model_card": {text: text}, "data": {text: {text: text}}, "settings": {text: text}, "failures": [text],
            "environment": {text: text}, "headline": headline, "controls": [control], "followups": [followup],
            "deviations": [{"status": text, "what": text, "why": text}],
            "grid": [example.grid()[0].model_copy(update={"choice": {text: text}})],
        }
    )  # fmt: skip


def hostile_figure(text: str) -> Figure:
    shown = text.strip() or "x"
    return Figure(name="f", slot="main", title=shown, caption=text, basis=text, picture=Picture(SVG, xml_safe(shown)))


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Case]:
    text: str = request.param
    notes = f"## Motivation\n{text.replace('{{', '(').replace('<!--', '')}\n"
    return text, make(everywhere(text), [hostile_figure(text)], notes, tmp_path_factory.mktemp("hostile"))


def test_hostile_text_becomes_no_element_and_no_attribute(hostile: tuple[str, Case]) -> None:
    page = Reader(hostile[1].html)
    assert page.of("script") == []
    allowed = {"class", "id", "href", "role", "scope", "style", "alt", "src", "title", "content", "name", "charset",
               "lang", "http-equiv", "rel", "tabindex", "width"}  # fmt: skip
    for _, attributes in page.elements:
        assert not [name for name in attributes if name not in allowed and not name.startswith(("data-", "aria-"))]
        assert not (attributes.get("href") or "").lower().startswith(("javascript:", "data:"))


def test_hostile_text_is_still_there_to_read(hostile: tuple[str, Case]) -> None:
    text, case = hostile
    assert " ".join(xml_safe(text).split()) in " ".join(unescape(re.sub(r"<[^>]*>", "", case.html)).split())
    assert "root:" not in case.pdf
    assert "{{verdict}}" in case.pdf or "{{" not in text


@settings(max_examples=6, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_makes_a_report(text: str, prose: str) -> None:
    notes = "## Shows\n" + prose.replace("{{", "").replace("#", "")
    with tempfile.TemporaryDirectory() as folder:
        case = make(everywhere(text), [hostile_figure(text)], notes, Path(folder))
    assert Reader(case.html).of("script") == []
    assert case.built.pages >= 7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "S"]), min_size=1), min_size=1))
def test_what_the_fonts_have_comes_out_of_the_pdf_as_it_went_in(texts: list[str]) -> None:
    blocks = tuple(Paragraph((Text(f"begin {text} end"),)) for text in texts)
    page = Report("t", "f", "m", "2026-01-01", Badge("reproduced"), (Section("s", "s", blocks),), ())
    with tempfile.TemporaryDirectory() as folder:
        pdf.write(page, Path(folder))
        shown = "".join(pdf_text(Path(folder) / "report.pdf").split())
    assert [text for text in texts if f"begin{text}end" not in shown] == []


@given(st.text())
def test_printable_text_loses_nothing_that_can_be_printed(text: str) -> None:
    shown = printable(text)
    assert "\n" not in shown
    assert all(ord(c) >= 32 for c in shown)
    plain = "".join(c for c in text if c.isascii() and c.isalnum())
    assert [c for c in shown if c in plain] or not plain


def test_a_missing_glyph_is_written_out() -> None:
    assert printable("a 中 b") == "a \\u4e2d b"
    assert printable("a\u00a0–\u00a0é") == "a\u00a0–\u00a0é"
