"""The PDF: the report as data for a Typst template, set so that each section keeps to its page where it can."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import typst

from headwork.draw.picture import xml_safe
from headwork.errors import UserError
from headwork.report import numbers
from headwork.report.document import (
    Badge,
    Link,
    Part,
    Report,
    Section,
    Shown,
    Source,
    Table,
    Value,
    keys_in,
    walk,
    words_in,
)
from headwork.report.glyphs import printable
from headwork.report.svg import natural_width
from headwork.report.verdicts import SYMBOLS, tone

# From roomy to tight: the size of figures against their own, the size of the text in points. Figures give way first.
_DENSITIES = ((1.0, 9.8), (0.85, 9.8), (0.85, 9.4), (0.75, 9.3), (0.66, 9.2), (0.66, 8.8), (0.6, 8.6), (0.55, 8.4))
_TEXT_WIDTH_PT = 481.9
# Pictures are drawn for a text width a little below ours; more than this makes their letters larger than the text.
_MOST_ENLARGED = 1.06


@dataclass(frozen=True)
class Pages:
    """`count` pages in all; `long` are the sections, by id, that take more than the page of the plan."""

    count: int
    long: tuple[str, ...]


def write(report: Report, folder: Path) -> Pages:
    """Write `report.pdf` into the folder. Raises UserError where the record's date cannot be read."""
    root = folder / ".typst"
    root.mkdir()
    try:
        _write_inputs(report, root)
        return _compile(report, root, folder / "report.pdf")
    finally:
        shutil.rmtree(root)


def _compile(report: Report, root: Path, target: Path) -> Pages:
    """Set the sections ever tighter until each fits; those that never do are set roomy and say so."""
    compiler = typst.Compiler(root / "report.typ", root=root, ignore_system_fonts=True)
    density = {section.id: 0 for section in report.sections}
    long: list[str] = []
    while True:
        pdf, spans, count = _attempt(compiler, report, density, long)
        over = [name for name, pages in spans.items() if pages > 1 and name not in long]
        if not over:
            target.write_bytes(pdf)
            return Pages(count, tuple(long))
        for name in over:
            density[name] += 1
            if density[name] == len(_DENSITIES):
                density[name] = 0
                long.append(name)


def _attempt(
    compiler: typst.Compiler, report: Report, density: Mapping[str, int], long: list[str]
) -> tuple[bytes, dict[str, int], int]:
    """One setting: the PDF, how many pages each section takes, and how many there are."""
    fit = {
        section.id: {
            "figure": _DENSITIES[density[section.id]][0],
            "size": _DENSITIES[density[section.id]][1],
            "note": _overflow(section) if section.id in long else "",
        }
        for section in report.sections
    }
    inputs = {"fit": json.dumps(fit)}
    pdf = compiler.compile(sys_inputs=inputs, format="pdf", timestamp=_moment(report.created))
    assert isinstance(pdf, bytes)  # noqa: S101 – the stub also allows a list, which is for pictures of pages
    edges = json.loads(compiler.query("<edge>", field="value"))
    first, last = ({edge["section"]: edge["page"] for edge in edges if edge["end"] is end} for end in (False, True))
    return pdf, {name: last[name] - page + 1 for name, page in first.items()}, max(last.values())


def _overflow(section: Section) -> str:
    """What stands at the top of a section that is longer than its page."""
    named = [(words_in(node), node) for node in walk(section) if isinstance(node, (Part, Table))]
    count, longest = max(named, key=lambda pair: pair[0], default=(0, None))
    note = f"The section “{section.title}” is longer than the one page of the plan. Nothing was left out."
    if longest is None:
        return note
    name = longest.title if isinstance(longest, Part) else longest.caption.split(":")[0]
    return f"{note} Its longest part is “{name}” ({count:,} words)."


def _write_inputs(report: Report, root: Path) -> None:
    shutil.copy(str(files("headwork.report").joinpath("report.typ")), root / "report.typ")
    for shown in (node for node in walk(report) if isinstance(node, Shown)):
        (root / f"figure-{shown.number}.svg").write_text(shown.figure.picture.svg, encoding="utf-8")
    (root / "report.json").write_text(json.dumps(_plain(report), ensure_ascii=True), encoding="utf-8")


def _plain(node: Any) -> Any:
    """A node as data: its class under `is`, its fields under their names. Text stays text: nothing is ever markup."""
    if isinstance(node, str):
        return printable(node)
    if isinstance(node, (tuple, list)):
        return [_plain(child) for child in node]
    if isinstance(node, Shown):
        return _shown(node)
    if not dataclasses.is_dataclass(node):
        return node
    data: dict[str, Any] = {"is": type(node).__name__} | {
        f.name: _plain(getattr(node, f.name)) for f in dataclasses.fields(node)
    }
    if isinstance(node, Report):
        data["date"] = numbers.moment(node.created)
    if isinstance(node, Source):
        data["short"] = node.short
    if isinstance(node, Badge):
        data |= {"tone": tone(node), "symbol": SYMBOLS.get(node.verdict, "–")}
    if isinstance(node, Section):
        data["keys"] = keys_in(node)
    if isinstance(node, Value) and not node.marked:
        data["key"] = ""
    if isinstance(node, Link):
        data["url"] = xml_safe(node.url)
    return data


def _shown(shown: Shown) -> dict[str, Any]:
    figure = shown.figure
    wanted = figure.width * _TEXT_WIDTH_PT
    natural = natural_width(figure.picture.svg)
    return {
        "is": "Shown",
        "number": shown.number,
        "file": f"figure-{shown.number}.svg",
        "alt": printable(figure.picture.alt),
        "title": printable(figure.title),
        "caption": printable(figure.caption),
        "basis": printable(figure.basis),
        "share": figure.width,
        "width": wanted if natural is None else min(wanted, natural * _MOST_ENLARGED),
    }


def _moment(created: str) -> int:
    """The record's date as Unix seconds, so that the same record makes the same bytes; no zone means UTC."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        raise UserError(
            f"The record was created at {created!r}, which is no date; a date such as 2026-01-31T12:00:00+00:00 is."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
