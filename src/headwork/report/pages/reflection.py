"""Page 7: what the results show and do not show, what follows, and what would change our mind. The author's words."""

from __future__ import annotations

from headwork.report.document import Section
from headwork.report.material import Material, beside


def page(material: Material) -> Section:
    notes = material.notes
    return Section(
        "reflection",
        "Reflection",
        (
            *beside(notes.part("Shows"), notes.part("Does not show")),
            *beside(notes.part("Alignment"), notes.part("Change our mind")),
        ),
    )
