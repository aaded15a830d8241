"""One record, its figures and the author's notes make one report, as PDF and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwork.errors import UserError
from headwork.findings.figure import Figure
from headwork.report import html, pdf
from headwork.report.document import Report, Value, walk
from headwork.report.notes import parse
from headwork.report.plan import compose
from headwork.report.refs import resolver
from headwork.studies.record import Record


@dataclass(frozen=True)
class Reference:
    """A `{{name}}` of the notes, the text that it became, and the addresses of the runs that it came from."""

    name: str
    text: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """`pages` of the PDF; `draft` the sections of the notes not written yet; `long` the sections over their page."""

    pdf: Path
    html: Path
    pages: int
    draft: tuple[str, ...]
    long: tuple[str, ...]
    references: tuple[Reference, ...]


def build(record: Record, figures: Sequence[Figure], notes: str | None, folder: Path, *, rebuild_command: str) -> Built:
    """Write `report.pdf` and `report.html` into `folder`, the same bytes for the same input.

    `notes` is the text of the author's notes (`headwork.report.notes`), None where there are none; what is not written
    is marked as draft in its place. `rebuild_command` is what a reader types to make this again. Raises UserError for
    notes with an unknown section or reference, or a picture that is no SVG.
    """
    parsed = parse(notes, resolver(record))
    report = compose(record, figures, parsed, rebuild_command)
    _check(figures)
    pages = pdf.write(report, folder)
    html.write(report, folder)
    return Built(
        pdf=folder / "report.pdf",
        html=folder / "report.html",
        pages=pages.count,
        draft=parsed.missing,
        long=pages.long,
        references=_references(report),
    )


def _check(figures: Sequence[Figure]) -> None:
    for figure in figures:
        if "<svg" not in figure.picture.svg:
            raise UserError(
                f"The picture of the figure {figure.name!r} is not an SVG element, as every picture must be."
            )


def _references(report: Report) -> tuple[Reference, ...]:
    addresses: Mapping[str, tuple[str, ...]] = {source.key: source.addresses for source in report.sources}
    values = [node for node in walk(report.sections) if isinstance(node, Value) and node.ref]
    return tuple(dict.fromkeys(Reference(value.ref, value.text, addresses[value.key]) for value in values))
