"""Page 1: the verdict, a summary in one paragraph, the claim card, and every sub-claim against the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from headwork.report import numbers
from headwork.report.document import (
    Badge,
    Banner,
    Code,
    Column,
    Emph,
    Facts,
    Inlines,
    Paragraph,
    Part,
    Section,
    Table,
    Text,
)
from headwork.report.material import Material, joined, plural, sentence, strong, words
from headwork.report.sources import CARD, HEADLINE, level_id
from headwork.report.verdicts import expectation, headline_badge
from headwork.studies.record import ClaimResult

_SCOPES = {
    "class": "a class of networks: any member can reproduce it",
    "network": "one network: any other can show an analogue only",
}


def page(material: Material) -> Section:
    record = material.record
    banner = Banner(headline_badge(record), words(*_decided(material), f" {expectation(record)}".rstrip()))
    blocks = (banner, Paragraph(_summary(material)), _card(material), _subclaims(material))
    return Section("summary", "Summary", blocks)


def _decided(material: Material) -> Inlines:
    """What decided, in words: the sub-claim's own reason where a sub-claim did."""
    record = material.record
    deciding = {claim.id: claim for claim in record.headline.claims}.get(record.decided_by)
    if deciding is None:
        said = sentence(record.decided_by)
        return words(said[:1].upper() + said[1:], material.value("", HEADLINE))
    return words("Decided by ", strong(deciding.id), ": ", sentence(deciding.why), material.value("", HEADLINE))


def _summary(material: Material) -> Inlines:
    sentences = [_what(material), _outcome(material), *_leading(material), *_controls(material), *_followups(material)]
    return joined((s for s in sentences if s), " ")


def _what(material: Material) -> Inlines:
    record = material.record
    papers = [_short(reference) for reference in record.card.get("references", ())]
    of = f" ({'; '.join(papers)})" if papers else ""
    return words(f"This report tests a published claim{of} on ", strong(record.model_name), ".")


def _outcome(material: Material) -> Inlines:
    central = [claim for claim in material.record.headline.claims if claim.central]
    tally = Counter(claim.verdict for claim in central)
    counts = joined(words(material.count(n, HEADLINE), f" came out as {verdict}") for verdict, n in tally.items())
    many = plural(len(central), "central sub-claim")
    return words("Of ", material.count(len(central), CARD), f" {many}, ", *counts, ".") if central else ()


def _leading(material: Material) -> Iterator[Inlines]:
    """The first central sub-claim, as the reader's first number."""
    for claim in [c for c in material.record.headline.claims if c.central][:1]:
        null = claim.null
        against = words(" against ", *material.estimate(null), " under the null") if null is not None else ()
        unit = f" {claim.quantity_unit}" if claim.quantity_unit else ""
        yield words(sentence(claim.statement)[:-1], ": ", *material.estimate(claim.estimate), unit, *against, ".")


def _controls(material: Material) -> Iterator[Inlines]:
    controls = material.record.controls
    if controls:
        good = sum(control.as_expected for control in controls)
        many = plural(len(controls), "control")
        yield words(material.count(good), " of ", material.count(len(controls)), f" {many} came out as expected.")


def _followups(material: Material) -> Iterator[Inlines]:
    record = material.record
    for followup in record.followups:
        levels = joined(
            words(
                f"{followup.factor} {level.value} ",
                Emph(words(level.verdict)),
                material.value("", level_id(followup, level)),
            )
            for level in followup.levels
        )
        end = ", as the claim predicts." if followup.verdict == "reproduced" else "."
        yield words(f"With only the {followup.factor} changed: ", *levels, end)
    diverged = [run for run in record.runs if run.diverged_at is not None]
    if diverged:
        many = plural(len(diverged), "trained network")
        yield words(material.count(len(diverged)), f" {many} diverged and {plural(len(diverged), 'is', 'are')} shown.")


def _card(material: Material) -> Part:
    card = material.record.card
    references = "; ".join(_short(reference) for reference in card.get("references", ()))
    pairs: list[tuple[str, Inlines]] = [("Claim", words(str(card.get("claim", ""))))]
    scope = str(card.get("scope", ""))
    pairs += [
        ("About", words(_SCOPES.get(scope, scope))),
        ("Networks", words(str(card.get("networks", "")))),
        ("Data", words(str(card.get("data", "")))),
        ("From", words(references)),
    ]
    left_out = [str(text) for text in card.get("not_measurable", ())]
    if left_out:
        pairs.append(("Not measurable here", words("; ".join(left_out))))
    pairs.append(("Fixed", words("before the run; sha256 ", Code(material.record.card_sha256[:12]))))
    given = tuple(pair for pair in pairs if pair[1] != (Text(""),))
    return Part("Claim card", (Facts(given),), material.key(CARD))


def _subclaims(material: Material) -> Table:
    card, ours = material.key(CARD), material.key(HEADLINE)
    columns = (
        Column("Sub-claim", 2.9, card),
        Column("Paper", 2.0, card),
        Column("Threshold", 1.1, card),
        Column("Ours [95 %]", 1.7, ours),
        Column("Null [95 %]", 1.7, ours),
        Column("Verdict", 1.75, ours),
    )
    rows = tuple(_row(material, claim) for claim in material.record.headline.claims)
    caption = (
        "Every sub-claim: the paper's value, ours, and the matched null. Central sub-claims (●) decide the verdict."
    )
    return Table(caption, columns, rows)


def _row(material: Material, claim: ClaimResult) -> tuple[Inlines, ...]:
    mark = "● " if claim.central else "○ "
    # A control of zero by definition has no estimate: its meaning says so.
    meaning = claim.null_meaning if claim.control_available else f"unavailable, so 0: {claim.null_meaning}"
    null = material.estimate(claim.null, marked=False) if claim.null is not None else words(meaning or "–")
    return (
        words(mark, strong(claim.id), f" {sentence(claim.statement)}"),
        paper(claim),
        words(threshold(claim)),
        words(
            *material.estimate(claim.estimate, marked=False), f" {claim.quantity_unit}" if claim.quantity_unit else ""
        ),
        null,
        (Badge(claim.verdict),),
    )


def paper(claim: ClaimResult) -> Inlines:
    """The paper's value and where it stands; a value that nobody has checked says so."""
    source = [claim.paper_source] if claim.paper_source else []
    if claim.paper and claim.source_status == "unchecked":
        source.append("unchecked")
    return words(claim.paper or "no number", f" ({', '.join(source)})" if source else "")


def threshold(claim: ClaimResult) -> str:
    sign = ">" if claim.direction == "above" else "<"
    return f"{sign} {numbers.exact(claim.threshold)}"


def _short(reference: Any) -> str:
    """`Elhage et al. 2021`."""
    authors = str(reference.get("authors", ""))
    return f"{authors.split(',')[0].strip()}{' et al.' if ',' in authors else ''} {reference.get('year', '')}".strip()
