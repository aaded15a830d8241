"""One report built for all tests that only read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from pypdf import PdfReader
from tests.report import example

from headwork.findings.figure import Figure
from headwork.report.build import Built, build
from headwork.studies.record import Record

REBUILD = "headwork reproduce induction-heads --model zoo:attn-only-2l --seeds 5"


@dataclass(frozen=True)
class Case:
    """A report with what it was built from and the texts of its two files."""

    record: Record
    figures: list[Figure]
    built: Built
    pdf: str
    html: str


def make(record: Record, figures: list[Figure], notes: str | None, folder: Path) -> Case:
    built = build(record, figures, notes, folder, rebuild_command=REBUILD)
    return Case(record, figures, built, pdf_text(built.pdf), built.html.read_text(encoding="utf-8"))


def pdf_text(path: Path) -> str:
    """All text of a PDF with single spaces, without the break marks that only typesetting needs."""
    pages = [page.extract_text() for page in PdfReader(path).pages]
    return " ".join(" ".join(pages).replace("\u200b", "").replace("\u00ad", "").split())


@pytest.fixture(scope="session")
def figures() -> list[Figure]:
    return example.figures()


@pytest.fixture(scope="session")
def case(figures: list[Figure], tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(example.record(), figures, example.NOTES, tmp_path_factory.mktemp("report"))
