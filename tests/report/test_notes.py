"""The author's notes: sections, the Markdown that they may use, and references."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import example

from headwork.errors import UserError
from headwork.report import markdown
from headwork.report.document import Code, Emph, Link, Listing, Paragraph, Strong, Text, Value, text_of, walk
from headwork.report.notes import SECTIONS, parse
from headwork.report.refs import resolver
from headwork.studies.record import Record


@pytest.fixture(scope="module")
def record() -> Record:
    return example.record()


def plain(name: str) -> Value:
    return Value(f"<{name}>", "a", name)


def test_sections_are_read_whatever_their_order_and_case() -> None:
    notes = parse("# My notes\n\n## ALIGNMENT ##\nSomething.\n\n## motivation\nFirst.\n", plain)
    assert list(notes.written) == ["Alignment", "Motivation"]
    assert notes.missing == tuple(s.name for s in SECTIONS if s.name not in notes.written)


def test_a_section_of_comments_alone_is_not_written() -> None:
    assert parse("## Shows\n<!-- what may a reader\n\n## conclude? -->\n\n", plain).written == {}


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ("## Motivatoin\nx", "'Motivatoin': the nearest valid ones are Motivation"),
        ("## Shows\nx\n## shows\ny", "'Shows' twice"),
        ("Hello there.\n## Shows\nx", "'Hello there.'"),
    ],
)
def test_notes_that_cannot_be_placed_are_refused(notes: str, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        parse(notes, plain)


def test_the_markdown_that_is_understood() -> None:
    text = "A *b* **c** `d*` [e](https://example.org/?a=1&b=2)\nf {{g.h}}.\n\n- one\n- two\n\n1. three\n"
    paragraph, bullets, steps = markdown.blocks(text, plain)
    assert paragraph == Paragraph(
        (
            Text("A "), Emph((Text("b"),)), Text(" "), Strong((Text("c"),)), Text(" "), Code("d*"), Text(" "),
            Link((Text("e"),), "https://example.org/?a=1&b=2"), Text(" f "), plain("g.h"), Text("."),
        )
    )  # fmt: skip
    assert isinstance(bullets, Listing)
    assert not bullets.ordered
    assert [text_of(item) for item in bullets.items] == ["one", "two"]  # pyright: ignore[reportArgumentType]
    assert isinstance(steps, Listing)
    assert steps.ordered


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](data:text/html,y)",
        "![x](https://example.org/x.png)",
        "#import \"x.typ\": * $ x $ #read(\"/etc/passwd\")",
        "&lt;b&gt;",
    ],
)  # fmt: skip
def test_other_markup_stays_text(text: str) -> None:
    kinds = {type(node) for node in walk(markdown.blocks(text, plain))} - {tuple}
    assert kinds <= {Paragraph, Text, Link, str, bool}
    assert [node.url for node in walk(markdown.blocks(text, plain)) if isinstance(node, Link)] in (
        [],
        ["https://example.org/x.png"],
    )


@given(st.text())
def test_no_text_breaks_the_parser_or_makes_a_link_that_is_not_of_the_web(text: str) -> None:
    for node in walk(markdown.blocks(text, plain)):
        if isinstance(node, Link):
            assert node.url.lower().startswith(("http://", "https://"))


@given(st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_words_come_out_as_they_went_in(text: str) -> None:
    assert "".join(text_of(block.parts) for block in markdown.blocks(text, plain)) == text  # pyright: ignore


def test_references_resolve(record: Record) -> None:
    resolve = resolver(record)
    texts = {
        "verdict": "reproduced",
        "seeds": "5",
        "headline.advantage": "3.22 [3.14,\xa03.30]",
        "headline.advantage.low": "3.14",
        "headline.advantage.null": "0.01 [−0.07,\xa00.09]",
        "headline.advantage.n": "256",
        "headline.customary-0.4": "0.40 [0.35,\xa00.45]",
        "headline.customary-0.4.threshold": "0.4",
        "headline.scalars.loss_inside.value": "1.11",
        "headline.heads.induction": "1.1, 1.4, 1.6",
        "control.untrained.verdict": "not reproduced",
        "control.untrained.advantage.value": "0.16",
        "followup.depth.1.advantage": "0.35 [0.22,\xa00.49]",
        "followup.depth.verdict": "appears between one and two layers",
        "run.depth=3/seed-3.verdict": "reproduced",
        "grid.zero.difference.value": "2.19",
    }
    assert {name: resolve(name).text for name in texts} == texts


def test_a_reference_leads_to_its_own_run(record: Record) -> None:
    resolve = resolver(record)
    keys = {
        resolve(name).key
        for name in ("headline.advantage", "control.untrained.advantage", "followup.depth.1.advantage")
    }
    assert len(keys) == 3


def test_an_unknown_reference_names_the_nearest(record: Record) -> None:
    with pytest.raises(UserError, match=r"'headline\.advantge'.*headline\.advantage"):
        parse("## Shows\nIt is {{headline.advantge}}.", resolver(record))
