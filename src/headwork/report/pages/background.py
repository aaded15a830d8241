"""Page 2: why the claim matters, and the claimed circuit with the effects measured along its edges."""

from __future__ import annotations

from headwork.report.document import Block, Column, Section, Table
from headwork.report.material import Material, beside, strong, words
from headwork.report.sources import HEADLINE


def page(material: Material) -> Section:
    prose = beside(material.notes.part("Motivation"), material.notes.part("Background"))
    blocks: list[Block] = [*prose, *material.figures_in("circuit")]
    if material.record.headline.heads:
        blocks.append(_heads(material))
    return Section("background", "Background and the claimed circuit", tuple(blocks))


def _heads(material: Material) -> Table:
    rows = tuple(
        (words(strong(role)), words(material.value(", ".join(heads), marked=False)) if heads else words("none found"))
        for role, heads in material.record.headline.heads.items()
    )
    caption = "Heads by role (layer.head), chosen on discovery data by the rule of the finding."
    return Table(caption, (Column("Role", 1.0), Column("Heads", 3.0, material.key(HEADLINE))), rows)
