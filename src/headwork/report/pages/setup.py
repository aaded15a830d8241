"""Page 3: network, data and settings; what deviates from the paper; and which difference could have been seen."""

from __future__ import annotations

from headwork.report import numbers
from headwork.report.document import Block, Column, Facts, Inline, Inlines, Paragraph, Part, Section, Side, Table
from headwork.report.material import Material, grouped, plural, sentence, strong, words
from headwork.report.sources import HEADLINE, RECORD
from headwork.studies.record import ClaimResult

_HELD_OUT = (
    "Heads are chosen on discovery data and scored on held-out data. "
    "The null is chosen in the same way, as the best of as many candidates."
)
# A deviation says under these keys whether it is as stated, inferred or changed, and what it is about; then why.
_STATUS, _WHAT = "status", "what"


def page(material: Material) -> Section:
    blocks: tuple[Block, ...] = (
        _network(material),
        Side((_data(material),), (_settings(material), _seeds(material))),
        Part("Deviations from the paper", _deviations(material)),
        _power(material),
    )
    return Section("setup", "Set-up, deviations and power", blocks)


def _network(material: Material) -> Part:
    record = material.record
    pairs: list[tuple[str, Inlines]] = [("model", words(record.model))]
    pairs.append(("weights sha256", _setting(material, record.headline.weights_sha256[:12])))
    # What a card repeats of the two lines above is not printed again.
    known = (record.model, record.headline.weights_sha256)
    card = {key: value for key, value in record.model_card.items() if value not in known}
    pairs += [(key, _setting(material, value)) for key, value in grouped(card).items()]
    return Part("Network", (Facts(tuple(pairs)),), material.key(RECORD))


def _data(material: Material) -> Part:
    record = material.record
    pairs = tuple((key, _setting(material, value)) for key, value in grouped(record.data).items())
    blocks: list[Block] = [Facts(pairs)] if pairs else []
    blocks.append(Paragraph(words(sentence(record.data_note), " " if record.data_note else "", _HELD_OUT)))
    return Part("Data", tuple(blocks), material.key(RECORD))


def _settings(material: Material) -> Part:
    pairs = tuple((key, _setting(material, value)) for key, value in grouped(material.record.settings).items())
    return Part("Settings of the headline run", (Facts(pairs),) if pairs else (), material.key(RECORD))


def _seeds(material: Material) -> Part:
    record = material.record
    parts: list[str | Inline] = []
    if record.headline.seed is not None:
        parts += ["The headline network has seed ", material.count(record.headline.seed, HEADLINE), ". "]
    if record.followups:
        networks = plural(record.seeds, "network")
        parts += ["The follow-ups measure ", material.count(record.seeds), f" {networks} a level, one per seed."]
    return Part("Seeds", (Paragraph(words(*(parts or ["No seed is recorded for this network."]))),))


def _setting(material: Material, text: str) -> Inlines:
    return words(material.value(text, RECORD, marked=False))


def _deviations(material: Material) -> tuple[Block, ...]:
    remarks = material.notes.part("Deviations")
    listed = material.record.deviations
    if not listed:
        return (remarks,)
    rows = tuple(
        (
            words(strong(deviation.get(_STATUS, "not stated"))),
            words(deviation.get(_WHAT, "")),
            words("; ".join(text for key, text in deviation.items() if key not in (_STATUS, _WHAT) and text)),
        )
        for deviation in listed
    )
    caption = "What is as the paper states, what was inferred because the paper leaves it open, and what was changed."
    return (Table(caption, (Column("Status", 0.8), Column("What", 2.4), Column("Why", 2.4)), rows), remarks)


def _power(material: Material) -> Table:
    ours = material.key(HEADLINE)
    columns = (
        Column("Sub-claim", 1.2),
        Column("n", 1.3, ours),
        Column("Interval by", 1.6),
        Column("Half-width", 1.0, ours),
        Column("What could have been detected", 2.6, ours),
    )
    rows = tuple(_power_row(material, claim) for claim in material.record.headline.claims)
    caption = "Power: a difference smaller than the half-width of its 95 % interval cannot be told from none."
    return Table(caption, columns, rows)


def _power_row(material: Material, claim: ClaimResult) -> tuple[Inlines, ...]:
    compared = claim.difference or claim.estimate
    name, method = words(strong(claim.id)), words(compared.method or "–")
    n = words("–")
    if compared.n is not None:
        n = words(material.count(compared.n, HEADLINE, marked=False), f" {compared.unit}")
    half = numbers.half_width(compared)
    if half is None:
        reach = numbers.MISSING if compared.value is None else "any difference: the value is exact"
        return name, n, method, words("–"), words(reach)
    width = material.value(numbers.number(half, numbers.precision(compared)), marked=False)
    unit = f" {claim.quantity_unit}" if claim.quantity_unit else ""
    apart = "from the null" if claim.difference else f"from {numbers.exact(claim.threshold)}"
    return name, n, method, words(width), words("a difference of ", width, f"{unit} {apart}")
