"""Page 4: the main result, the paper's against ours, with its figures."""

from __future__ import annotations

from headwork.report.document import Block, Column, Facts, Part, Section, Table
from headwork.report.material import Material, sentence, strong, words
from headwork.report.pages.summary import threshold
from headwork.report.sources import CARD, HEADLINE
from headwork.studies.record import ClaimResult


def page(material: Material) -> Section:
    blocks: list[Block] = [_comparison(material), *material.figures_in("main", "attention", "secondary")]
    scalars = material.record.headline.scalars
    if scalars:
        pairs = tuple(
            (name.replace("_", " "), material.estimate(value, marked=False)) for name, value in scalars.items()
        )
        blocks.append(Part("Also measured", (Facts(pairs, columns=3),), material.key(HEADLINE)))
    return Section("result", "Main result", tuple(blocks))


def _comparison(material: Material) -> Table:
    card, ours = material.key(CARD), material.key(HEADLINE)
    columns = (
        Column("Sub-claim", 1.2),
        Column("Paper", 1.7, card),
        Column("Ours [95 %]", 1.25, ours),
        Column("Ours − null", 1.25, ours),
        Column("Threshold with its source, and what decided", 3.8, card),
    )
    rows = tuple(_row(material, claim) for claim in material.record.headline.claims)
    caption = "What decided each sub-claim. Differences from the null are paired by unit, with 95 % intervals."
    return Table(caption, columns, rows)


def _row(material: Material, claim: ClaimResult) -> tuple:
    source = f" ({claim.threshold_source})" if claim.threshold_source else ""
    return (
        words(strong(claim.id)),
        words(claim.paper or "no number"),
        material.estimate(claim.estimate, marked=False),
        material.estimate(claim.difference, marked=False),
        words(f"{threshold(claim)}{source}. {sentence(claim.why)}"),
    )
