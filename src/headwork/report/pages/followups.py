"""Page 5: follow-ups, each changing one key, with the difference of the settings as the machine found it."""

from __future__ import annotations

from collections import Counter

from headwork.report.document import Block, Code, Column, Inline, Inlines, Paragraph, Part, Section, Table
from headwork.report.material import Material, joined, sentence, strong, words
from headwork.report.sources import level_id, runs_by_name
from headwork.report.verdicts import level_badge
from headwork.studies.record import FollowUp, Level

_QUANTITIES = 3


def page(material: Material) -> Section:
    parts: list[Block] = [_part(material, followup) for followup in material.record.followups]
    if not parts:
        parts = [Paragraph(words("This reproduction has no follow-ups."))]
    return Section("followups", "Follow-ups", (*parts, *material.figures_in("followups")))


def _part(material: Material, followup: FollowUp) -> Part:
    intro = words(f"{sentence(followup.question)} One key changes: ", Code(followup.key), ". ", *_overall(followup))
    blocks: list[Block] = [Paragraph(intro), _levels(material, followup)]
    if followup.unavailable:
        blocks.append(Paragraph(words("Not available: ", "; ".join(followup.unavailable), "."), small=True))
    return Part(f"Follow-up: {followup.factor}", tuple(blocks))


def _overall(followup: FollowUp) -> Inlines:
    return words("What the claim predicts of every value: ", strong(followup.verdict), ".")


def _levels(material: Material, followup: FollowUp) -> Table:
    quantities = _quantities(material, followup)
    units = {claim.id: claim.quantity_unit for claim in material.record.headline.claims}
    columns = (
        Column(followup.factor, 0.9),
        Column("Change of the settings", 2.6),
        *(Column(f"{name} ({units[name]})" if units.get(name) else name, 1.35) for name in quantities),
        Column("Seeds", 1.8),
        Column("Verdict", 1.9),
    )
    rows = tuple(_row(material, followup, level, quantities) for level in followup.levels)
    caption = f"{followup.factor}: means over seeds with 95 % intervals over seeds. Nothing but the key shown differs."
    return Table(caption, columns, rows)


def _quantities(material: Material, followup: FollowUp) -> list[str]:
    """The central sub-claims that every level measured, as many as fit; others where there are none."""
    measured = [set(level.estimates) for level in followup.levels]
    shared = set.intersection(*measured) if measured else set()
    claims = sorted(material.record.headline.claims, key=lambda claim: not claim.central)
    chosen = [claim.id for claim in claims if claim.id in shared]
    return (chosen or sorted(shared))[:_QUANTITIES]


def _row(material: Material, followup: FollowUp, level: Level, quantities: list[str]) -> tuple[Inlines, ...]:
    source = level_id(followup, level)
    return (
        words(strong(level.value), material.value("", source)),
        _change(followup, level),
        *(material.estimate(level.estimates.get(name), source, marked=False) for name in quantities),
        _seeds(material, level, source),
        (level_badge(level),),
    )


def _change(followup: FollowUp, level: Level) -> Inlines:
    if level.baseline or level.value not in followup.diff:
        return words("none: as the headline")
    before, after = followup.diff[level.value]
    return words(Code(f"{followup.key}: {before} → {after}"))


def _seeds(material: Material, level: Level, source: str) -> Inlines:
    """How many seeds came out how, and which diverged at which step."""
    tally = joined(
        (
            words(material.count(n, source, marked=False), f" {verdict}")
            for verdict, n in Counter(level.seed_verdicts).items()
        ),
        ", ",
    )
    runs = runs_by_name(material.record)
    diverged: list[str | Inline] = []
    for run in (runs[name] for name in level.runs if name in runs):
        if run.diverged_at is not None:
            seed = "a seed" if run.seed is None else f"seed {run.seed}"
            diverged += [f"; {seed} diverged at step ", material.count(run.diverged_at, source, marked=False)]
    return words(*tally, *diverged)
