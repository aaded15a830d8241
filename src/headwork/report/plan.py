"""The plan of the report: six pages and one of reflection, whatever the finding."""

from __future__ import annotations

from collections.abc import Sequence

from headwork.findings.figure import Figure
from headwork.report.document import Report
from headwork.report.material import Material, numbered
from headwork.report.notes import Notes
from headwork.report.pages import background, followups, reflection, result, robustness, setup, summary
from headwork.report.sources import sources
from headwork.report.verdicts import headline_badge
from headwork.studies.record import Record

PAGES = (summary.page, background.page, setup.page, result.page, followups.page, robustness.page, reflection.page)


def compose(record: Record, figures: Sequence[Figure], notes: Notes, rebuild_command: str) -> Report:
    """The whole report, as the PDF and the HTML show it."""
    by_id = sources(record)
    material = Material(record, numbered(figures), notes, by_id, rebuild_command)
    return Report(
        title=record.title,
        finding=record.finding,
        model=record.model_name,
        created=record.created,
        badge=headline_badge(record),
        sections=tuple(page(material) for page in PAGES),
        sources=tuple(by_id.values()),
    )
