"""The HTML: one file that asks for nothing else, readable on a phone and on paper, in light and dark."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from headwork.draw.picture import xml_safe
from headwork.report.document import (
    Badge,
    Banner,
    Block,
    Blocks,
    Code,
    Command,
    Draft,
    Emph,
    Facts,
    Figures,
    Inline,
    Inlines,
    Link,
    Listing,
    Paragraph,
    Part,
    Report,
    Section,
    Shown,
    Side,
    Source,
    Strong,
    Table,
    Text,
    Value,
    keys_in,
    walk,
)
from headwork.report.numbers import moment
from headwork.report.svg import natural_width
from headwork.report.verdicts import SYMBOLS, tone

# Pixels for a point of a picture: its letters of 7 points then read as well as the text.
_ENLARGED = 1.9
_SOURCES = "Where the numbers come from"
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def write(report: Report, folder: Path) -> None:
    """Write `report.html` into the folder."""
    (folder / "report.html").write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The report as a whole page. Everything but the views of `headwork.draw` is escaped text."""
    writer = _Writer(report)
    views = [shown.figure.view.html for shown in writer.shown if shown.figure.view is not None]
    sections = "".join(writer.section(i, section) for i, section in enumerate(report.sections, 1))
    links = "".join(f'<li><a href="#{s.id}">{_safe(s.title)}</a></li>' for s in report.sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(views)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_safe(report.title)} – {_safe(report.badge.verdict)}</title>\n<style>{_style()}</style>\n</head>\n"
        '<body>\n<a class="skip" href="#main">Skip to the report</a>\n'
        f'<header>\n<p class="over">Reproduction report · {_safe(report.finding)} · {_safe(report.model)} · '
        f"{_safe(moment(report.created))}</p>\n<h1>{_safe(report.title)}</h1>\n</header>\n"
        f'<nav aria-label="Sections"><ol>{links}<li><a href="#sources">{_SOURCES}</a></li></ol></nav>\n'
        f'<main id="main">\n{sections}{writer.sources()}</main>\n</body>\n</html>\n'
    )


def _policy(views: list[str]) -> str:
    """Nothing is loaded from anywhere; of all scripts only those of our own views run, known by their hashes."""
    scripts = dict.fromkeys(script for view in views for script in _SCRIPT.findall(view))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _style() -> str:
    return files("headwork.report").joinpath("report.css").read_text(encoding="utf-8")


def _safe(text: str) -> str:
    return escape(xml_safe(text))


class _Writer:
    """Holds the sources, and numbers the tables as it goes."""

    def __init__(self, report: Report) -> None:
        self.shown = [node for node in walk(report) if isinstance(node, Shown)]
        used = set(keys_in(report))
        self.used = [source for source in report.sources if source.key in used]
        self._by_key = {source.key: source for source in report.sources}
        self._tables = 0

    def section(self, number: int, section: Section) -> str:
        name = f"{section.id}-title"
        return (
            f'<section id="{section.id}" aria-labelledby="{name}">\n'
            f'<h2 id="{name}"><span class="number">{number}</span> {_safe(section.title)}</h2>\n'
            f"{self.blocks(section.blocks)}</section>\n"
        )

    def sources(self) -> str:
        rows = "".join(_source_row(source) for source in self.used)
        heads = "".join(
            f'<th scope="col" role="columnheader">{h}</th>' for h in ("Key", "Source", "Settings", "Address")
        )
        return (
            '<section id="sources" aria-labelledby="sources-title">\n'
            f'<h2 id="sources-title">{_SOURCES}</h2>\n'
            "<p>Each number that the tool printed carries a key. The address leads to the results in the store.</p>\n"
            f'<table role="table" class="sources"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
            f'<tbody role="rowgroup">{rows}</tbody></table>\n</section>\n'
        )

    # ------------------------------------------------------------ blocks

    def blocks(self, blocks: Blocks, level: int = 3) -> str:
        return "".join(self.block(block, level) for block in blocks)

    def block(self, block: Block, level: int) -> str:
        match block:
            case Paragraph(parts, small):
                return f"<p{' class=small' if small else ''}>{self.inlines(parts)}</p>\n"
            case Listing(items, ordered):
                tag = "ol" if ordered else "ul"
                return f"<{tag}>{''.join(f'<li>{self.blocks(item, level)}</li>' for item in items)}</{tag}>\n"
            case Table():
                return self.table(block)
            case Facts(pairs, columns):
                rows = "".join(
                    f"<div><dt>{_breakable(t)}</dt><dd>{self.inlines(parts)}</dd></div>" for t, parts in pairs
                )
                return f'<dl class="columns-{columns}">{rows}</dl>\n'
            case Figures(figures):
                return f'<div class="figures">{"".join(self.figure(shown) for shown in figures)}</div>\n'
            case Draft(section, question):
                return (
                    f'<p class="draft"><strong>DRAFT</strong> — not written yet: {_safe(question)} '
                    f"<span>(“{_safe(section)}” in the notes)</span></p>\n"
                )
            case Banner(badge, parts):
                note = f' <span class="note">{_safe(badge.note)}</span>' if badge.note else ""
                head = f'<p class="verdict">{_symbol(badge)} {_safe(badge.verdict)}{note}</p>'
                return f'<div class="banner tone-{tone(badge)}">{head}<p>{self.inlines(parts)}</p></div>\n'
            case Command(text):
                return f'<pre tabindex="0"><code>{_safe(text)}</code></pre>\n'
            case Part(title, inside, key):
                tag = f"h{level}"
                return f"<div><{tag}>{_safe(title)}{self.mark(key)}</{tag}>\n{self.blocks(inside, level + 1)}</div>\n"
            case Side(left, right):
                return (
                    f'<div class="side"><div>{self.blocks(left, level)}</div>'
                    f"<div>{self.blocks(right, level)}</div></div>\n"
                )

    def table(self, table: Table) -> str:
        self._tables += 1
        heads = "".join(
            f'<th scope="col" role="columnheader">{_safe(column.title)}{self.mark(column.key)}</th>'
            for column in table.columns
        )
        rows = "".join(
            f'<tr role="row">{"".join(self.cell(table, i, cell) for i, cell in enumerate(row))}</tr>\n'
            for row in table.rows
        )
        return (
            f'<table role="table"><caption><strong>Table {self._tables}.</strong> {_safe(table.caption)}</caption>\n'
            f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n'
            f'<tbody role="rowgroup">\n{rows}</tbody></table>\n'
        )

    def cell(self, table: Table, index: int, parts: Inlines) -> str:
        if index == 0:
            return f'<th scope="row" role="rowheader">{self.inlines(parts)}</th>'
        # On a phone each cell stands on a line of its own and is named by its column.
        return f'<td role="cell" data-label="{_safe(table.columns[index].title)}"><div>{self.inlines(parts)}</div></td>'

    def figure(self, shown: Shown) -> str:
        figure = shown.figure
        alt = _safe(" ".join(figure.picture.alt.split()))
        picture = base64.b64encode(figure.picture.svg.encode()).decode()
        width = natural_width(figure.picture.svg)
        size = "" if width is None else f' width="{width * _ENLARGED:.0f}" style="--natural:{width:.0f}"'
        still = (
            f'<div class="still" tabindex="0" role="group" aria-label="Picture of figure {shown.number}">'
            f'<img src="data:image/svg+xml;base64,{picture}" alt="{alt}"{size}></div>'
        )
        if figure.view is not None:
            still = f'<div class="view">{figure.view.html}</div><div class="print">{still}</div>'
        return (
            f'<figure style="--share:{figure.width:g}">{still}<figcaption><strong>Figure {shown.number}. '
            f'{_safe(figure.title)}.</strong> {_safe(figure.caption)} <span class="basis">{_safe(figure.basis)}</span>'
            "</figcaption></figure>"
        )

    # ------------------------------------------------------------ inline parts

    def inlines(self, parts: Inlines) -> str:
        return "".join(self.inline(part) for part in parts)

    def inline(self, part: Inline) -> str:
        match part:
            case Text(text):
                return _safe(text)
            case Strong(parts):
                return f"<strong>{self.inlines(parts)}</strong>"
            case Emph(parts):
                return f"<em>{self.inlines(parts)}</em>"
            case Code(text):
                return f"<code>{_safe(text)}</code>"
            case Link(parts, url):
                return f'<a href="{_safe(url)}" rel="noopener noreferrer external">{self.inlines(parts)}</a>'
            case Badge(verdict, note):
                after = f' <span class="note">{_safe(note)}</span>' if note else ""
                return f'<span class="badge tone-{tone(part)}">{_symbol(part)} {_safe(verdict)}</span>{after}'
            case Value():
                return self.value(part)

    def value(self, value: Value) -> str:
        source = self._by_key[value.key]
        ref = f' data-ref="{_safe(value.ref)}"' if value.ref else ""
        mark = self.mark(value.key) if value.marked else ""
        return (
            f'<span class="value" data-run="{_safe(source.name)}" data-address="{_safe(" ".join(source.addresses))}"'
            f'{ref} title="{_safe(_told(source))}">{_safe(value.text)}</span>{mark}'
        )

    def mark(self, key: str) -> str:
        if not key:
            return ""
        told = _safe(f"source {key}: {self._by_key[key].name}")
        return f'<sup><a href="#source-{key}" aria-label="{told}">{key}</a></sup>'


def _breakable(term: str) -> str:
    """A dotted or underscored name that may go on in the next line after each of these."""
    return _safe(term).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _symbol(badge: Badge) -> str:
    return f'<span aria-hidden="true">{SYMBOLS.get(badge.verdict, "–")}</span>'


def _told(source: Source) -> str:
    """What hovering over a number says."""
    return " · ".join(part for part in (source.name, source.settings, source.short) if part)


def _source_row(source: Source) -> str:
    addresses = "<br>".join(f"<code>{_safe(address)}</code>" for address in source.addresses) or "–"
    return (
        f'<tr role="row" id="source-{source.key}"><th scope="row" role="rowheader">{source.key}</th>'
        f'<td role="cell" data-label="Source"><div>{_safe(source.name)}</div></td>'
        f'<td role="cell" data-label="Settings"><div>{_safe(source.settings)}</div></td>'
        f'<td role="cell" data-label="Address"><div>{addresses}</div></td></tr>\n'
    )
