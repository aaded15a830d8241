"""Page 6: other choices of method, controls, failures, what was clean and what was not, compute, how to rebuild."""

from __future__ import annotations

from headwork.report import numbers
from headwork.report.document import (
    Badge,
    Block,
    Column,
    Command,
    Emph,
    Facts,
    Inlines,
    Link,
    Listing,
    Paragraph,
    Part,
    Section,
    Table,
)
from headwork.report.material import Material, beside, sentence, strong, words
from headwork.report.sources import HEADLINE, RECORD, control_id
from headwork.report.verdicts import control_badge
from headwork.studies.record import GridCell


def page(material: Material) -> Section:
    record = material.record
    blocks: list[Block] = []
    if record.grid:
        blocks.append(_grid(material))
    blocks += material.figures_in("robustness")
    if record.controls:
        blocks.append(_controls(material))
    blocks += [
        Part("Failures", _failures(material)),
        *beside(material.notes.part("Clean"), material.notes.part("Interpretation")),
        *beside(_compute(material), _bibliography(material)),
        Part("Rebuild", (Command(material.rebuild_command),)),
    ]
    return Section("robustness", "Robustness, controls and failures", tuple(blocks))


def _grid(material: Material) -> Table:
    cells, ours = material.record.grid, material.key(HEADLINE)
    choices = list(dict.fromkeys(choice for cell in cells for choice in cell.choice))
    columns = (
        *(Column(choice, 1.0) for choice in choices),
        Column(f"{cells[0].quantity} [{cells[0].unit}, 95 % interval]", 1.8, ours),
        Column("Difference from the null", 1.8, ours),
        Column("Verdict", 1.3, ours),
    )
    caption = "Robustness grid: the sub-claim under other choices of method. The primary choice is marked ●."
    return Table(caption, columns, tuple(_cell(material, cell, choices) for cell in cells))


def _cell(material: Material, cell: GridCell, choices: list[str]) -> tuple[Inlines, ...]:
    first, *others = [cell.choice.get(choice, "–") for choice in choices] or [""]
    mark = "● " if cell.primary else ""
    return (
        words(mark, strong(first)),
        *(words(choice) for choice in others),
        material.estimate(cell.estimate, marked=False),
        material.estimate(cell.difference, marked=False),
        (Badge(cell.verdict),),
    )


def _controls(material: Material) -> Table:
    rows = tuple(
        (
            words(strong(control.name), material.value("", control_id(control.name)), f" {control.model}"),
            (control_badge(control),),
            words(sentence(control.why or control.decided_by)),
        )
        for control in material.record.controls
    )
    caption = "Controls: networks that lack the mechanism. Where one fails as it should, that is as expected."
    return Table(caption, (Column("Control", 1.4), Column("Verdict", 1.7), Column("What decided", 3.6)), rows)


def _failures(material: Material) -> tuple[Block, ...]:
    record = material.record
    items = [words(sentence(failure), material.value("", RECORD)) for failure in record.failures]
    items += [words(sentence(note), material.value("", HEADLINE)) for note in record.headline.notes]
    if not items:
        return (Paragraph(words("Nothing failed, and no network diverged.")),)
    return (Listing(tuple((Paragraph(item),) for item in items)),)


def _compute(material: Material) -> Part:
    record = material.record
    pairs: list[tuple[str, Inlines]] = [("time", _fact(material, numbers.duration(record.seconds)))]
    versions = ", ".join(f"{key} {value}" for key, value in record.environment.items() if value)
    pairs.append(("with", _fact(material, versions)))
    pairs.append(("made", _fact(material, numbers.moment(record.created))))
    return Part("Compute", (Facts(tuple(pairs)),), material.key(RECORD))


def _fact(material: Material, text: str) -> Inlines:
    return words(material.value(text, RECORD, marked=False))


def _bibliography(material: Material) -> Part:
    items: list[tuple[Block, ...]] = []
    for reference in material.record.card.get("references", ()):
        text = {key: str(reference.get(key, "")) for key in ("authors", "year", "title", "venue", "url")}
        venue = f" {sentence(text['venue'])}" if text["venue"] else ""
        parts = words(f"{text['authors']} ({text['year']}). ", Emph(words(sentence(text["title"]))), venue)
        if text["url"].startswith(("https://", "http://")):
            parts = words(*parts, " ", Link(words(text["url"]), text["url"]))
        items.append((Paragraph(parts),))
    return Part("Bibliography", (Listing(tuple(items), ordered=True),) if items else (Paragraph(words("None.")),))
