"""Page 7: what the results show and do not show, what follows, and what would change our mind. The author's words."""

from __future__ import annotations

from headwork.report.document import Section, Side
from headwork.report.material import Material


def page(material: Material) -> Section:
    notes = material.notes
    return Section(
        "reflection",
        "Reflection",
        (
            Side((notes.part("Shows"),), (notes.part("Does not show"),)),
            Side((notes.part("Alignment"),), (notes.part("Change our mind"),)),
        ),
    )
