"""The page plan, what stands on the pages, and what happens where a page is too small."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader
from tests.report import example
from tests.report.conftest import REBUILD, Case, make

from headwork.draw.picture import Picture
from headwork.errors import UserError
from headwork.findings.figure import Figure
from headwork.report import numbers
from headwork.report.build import build
from headwork.report.notes import SECTIONS
from headwork.report.refs import names
from headwork.studies.record import Record

HEADINGS = (
    "1 Summary",
    "2 Background and the claimed circuit",
    "3 Set-up, deviations and power",
    "4 Main result",
    "5 Follow-ups",
    "6 Robustness, controls and failures",
    "7 Reflection",
)


def spaced(text: str) -> str:
    return " ".join(text.split())


def test_the_report_has_six_pages_and_one_of_reflection(case: Case) -> None:
    pages = [spaced(page.extract_text()) for page in PdfReader(case.built.pdf).pages]
    assert case.built.pages == len(pages) == 7
    assert case.built.long == ()
    assert [heading for heading, page in zip(HEADINGS, pages) if heading in page] == list(HEADINGS)


def test_html_has_the_same_sections_in_the_same_order(case: Case) -> None:
    found = re.findall(r'<h2 id="[a-z]+-title"><span class="number">(\d)</span> ([^<]+)</h2>', case.html)
    assert [f"{number} {title}" for number, title in found] == list(HEADINGS)


def test_every_sub_claims_numbers_stand_in_both_files(case: Case) -> None:
    for claim in case.record.headline.claims:
        for given in (claim.estimate, claim.null, claim.difference):
            if given is not None:
                text = numbers.estimate(given)
                assert spaced(text) in case.pdf, claim.id
                assert text in case.html, claim.id
        assert claim.id in case.pdf.replace("- ", "-")
        assert claim.id in case.html


def test_every_number_in_html_leads_to_a_run(case: Case) -> None:
    known = {address for run in [*case.record.runs, case.record.headline] for address in [run.address]}
    known.add(case.record.card_sha256)
    values = re.findall(r'<span class="value" data-run="([^"]+)" data-address="([^"]+)"', case.html)
    assert len(values) > 100
    assert {address for _, addresses in values for address in addresses.split()} <= known


def test_every_key_in_html_has_its_source(case: Case) -> None:
    used = set(re.findall(r'href="#source-([a-z]+)"', case.html))
    assert used == set(re.findall(r'<tr role="row" id="source-([a-z]+)">', case.html))


def test_the_pdf_names_the_sources_of_each_page(case: Case) -> None:
    for page in PdfReader(case.built.pdf).pages:
        text = page.extract_text()
        assert "Where the numbers come from" in text
        assert case.record.headline.address[:12] in text or "architecture." in text


def test_every_figure_has_its_number_words_and_alt_text(case: Case) -> None:
    for number in range(1, len(case.figures) + 1):
        assert f"Figure {number}." in case.pdf
        assert f"Figure {number}." in case.html
    raw = case.built.pdf.read_bytes()
    assert raw.count(b"/Alt") == len(case.figures)
    for figure in case.figures:
        assert f'alt="{figure.picture.alt}"' in case.html
        for text in (figure.title, figure.caption, figure.basis):
            assert spaced(text) in case.pdf
            assert text in case.html


def test_a_figure_with_a_view_is_interactive_in_html_and_still_printed(case: Case) -> None:
    view = next(figure.view for figure in case.figures if figure.view is not None)
    assert view.html in case.html
    assert case.html.count("<img src=") == len(case.figures)


def test_a_diverged_seed_is_shown(case: Case) -> None:
    assert "seed 3 diverged at step 412" in case.pdf
    assert "depth=3/seed-3 diverged at step 412" in case.pdf
    assert "diverged at step" in case.html


def test_controls_that_fail_as_they_should_read_as_expected(case: Case) -> None:
    assert case.pdf.count("not reproduced as expected") == len(case.record.controls)
    assert case.html.count('<span class="note">as expected</span>') == len(case.record.controls)


def test_a_control_that_succeeds_reads_as_not_expected(tmp_path: Path) -> None:
    good, *others = example.controls()
    bad = good.model_copy(update={"verdict": "reproduced", "as_expected": False})
    case = make(example.record(controls=[bad, *others]), [], example.NOTES, tmp_path)
    assert "not as expected: not reproduced was expected" in case.pdf
    assert "2 of 3 controls came out as expected" in re.sub(r"(\d)[a-z]+ ", r"\1 ", case.pdf)
    assert "tone-unexpected" in case.html


def test_an_expected_failure_reads_as_one(tmp_path: Path) -> None:
    record = example.record(verdict="not reproduced", expected="not reproduced")
    case = make(record, [], example.NOTES, tmp_path)
    for text in (case.pdf, case.html):
        assert "This is an expected failure" in text
    assert "✗ not reproduced as expected" in case.pdf.replace("\xa0", " ")
    assert "banner tone-expected" in case.html


def test_an_unexpected_verdict_says_what_was_expected(tmp_path: Path) -> None:
    case = make(example.record(expected="not reproduced"), [], example.NOTES, tmp_path)
    assert "not as expected: not reproduced was expected" in case.pdf
    assert "expected failure" not in case.pdf + case.html


def test_prose_that_is_missing_is_a_draft_in_its_place(tmp_path: Path) -> None:
    case = make(example.record(), [], None, tmp_path)
    assert case.built.pages == 7
    assert case.built.draft == tuple(section.name for section in SECTIONS)
    assert case.html.count('class="draft"') == case.pdf.count("DRAFT") == len(SECTIONS)
    for section in SECTIONS:
        assert spaced(section.question) in case.pdf
        assert section.question in case.html


def test_finished_notes_leave_no_draft(case: Case) -> None:
    assert case.built.draft == ()
    assert "DRAFT" not in case.pdf + case.html


def test_a_section_that_is_too_long_keeps_all_and_says_so(figures: list[Figure], tmp_path: Path) -> None:
    prose = "\n\n".join(f"Paragraph {i} says that {'heads attend and ' * 20}end{i}." for i in range(60))
    case = make(
        example.record(), figures, example.NOTES.replace("## Background\n", f"## Background\n{prose}\n\n"), tmp_path
    )
    assert case.built.long == ("background",)
    assert case.built.pages > 7
    told = "The section “Background and the claimed circuit” is longer than the one page of the plan."
    assert case.pdf.count(told) == 1
    assert "Its longest part is “Background”" in case.pdf
    assert [i for i in range(60) if f"end{i}." not in case.pdf] == []
    for heading in HEADINGS:
        assert heading in case.pdf


def test_notes_a_little_too_long_are_set_tighter(figures: list[Figure], tmp_path: Path) -> None:
    prose = "heads attend and copy what they see. " * 50
    case = make(
        example.record(), figures, example.NOTES.replace("## Background\n", f"## Background\n{prose}\n\n"), tmp_path
    )
    assert (case.built.pages, case.built.long) == (7, ())
    assert case.pdf.count("heads attend and copy what they see.") == 50


def test_the_same_input_makes_the_same_bytes(case: Case, figures: list[Figure], tmp_path: Path) -> None:
    again = make(example.record(), figures, example.NOTES, tmp_path)
    for first, second in ((case.built.pdf, again.built.pdf), (case.built.html, again.built.html)):
        assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_only_the_two_files_are_left(case: Case) -> None:
    assert sorted(path.name for path in case.built.pdf.parent.iterdir()) == ["report.html", "report.pdf"]


def test_a_bare_record_makes_a_report(tmp_path: Path) -> None:
    """What a finding need not have: follow-ups, controls, a grid, deviations, figures, notes, a seed."""
    headline = example.run("headline", "a folder", None, heads={}, scalars={})
    bare = {"card": {}, "model_card": {}, "data": {}, "settings": {}, "environment": {}, "data_note": ""}
    lists = {name: [] for name in ("controls", "followups", "grid", "deviations", "failures", "runs")}
    case = make(example.record(headline=headline, **bare, **lists), [], None, tmp_path)
    assert case.built.pages == 7
    assert "Nothing failed" in case.pdf


def test_a_date_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'last Tuesday'"):
        build(example.record(created="last Tuesday"), [], None, tmp_path, rebuild_command=REBUILD)
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_was_not_measured_says_so(tmp_path: Path) -> None:
    first, *others = example.claim_results()
    missing = first.model_copy(update={"estimate": example.Estimate(value=None), "difference": None})
    headline = example.record().headline.model_copy(update={"claims": [missing, *others]})
    case = make(example.record(headline=headline), [], None, tmp_path)
    assert numbers.MISSING in case.pdf
    assert numbers.MISSING in case.html


def test_references_become_numbers_that_lead_to_their_runs(case: Case) -> None:
    table = names(case.record)
    # The notes' sections stand in the order of the report, and so do the references in them.
    asked = dict.fromkeys(re.findall(r"\{\{(.*?)\}\}", example.NOTES))
    assert [reference.name for reference in case.built.references] == list(asked)
    for reference in case.built.references:
        text, source = table[reference.name]
        assert (reference.text, reference.addresses) == (text, source.addresses)
        assert f'data-ref="{reference.name}"' in case.html
    assert "{{" not in case.pdf + case.html


def test_the_record_alone_decides_the_keys(case: Case) -> None:
    record: Record = case.record
    first = names(record)
    assert {name: source.key for name, (_, source) in first.items()} == {
        name: source.key for name, (_, source) in names(Record.model_validate(record.model_dump())).items()
    }


def test_the_report_is_made_without_the_heavy_libraries() -> None:
    code = (
        "import sys, headwork.report.build; print([m for m in ('torch', 'xarray', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_picture_that_is_no_svg_is_refused(tmp_path: Path) -> None:
    figure = Figure(name="photo", slot="main", title="t", caption="c", basis="b", picture=Picture("GIF89a", "alt"))
    with pytest.raises(UserError, match="'photo'"):
        build(example.record(), [figure], None, tmp_path, rebuild_command=REBUILD)
