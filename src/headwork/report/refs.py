"""References in the author's notes: `{{name}}` stands for a number of the record, and never goes out of date.

The names, where SUBCLAIM is a sub-claim's id and an estimate E may be followed by `.value`, `.low`, `.high` or `.n`:

- `verdict`, `decided_by`, `model`, `seeds`, `seconds`, `finding`
- `headline.verdict`, `headline.seconds`, `headline.SUBCLAIM` (E), `headline.SUBCLAIM.null` (E),
  `headline.SUBCLAIM.difference` (E), `headline.SUBCLAIM.threshold`, `.paper`, `.unit`, `.verdict`,
  `headline.scalars.NAME` (E), `headline.heads.ROLE`
- `run.RUN.…` – the same for any other run
- `control.NAME.verdict`, `control.NAME.expected`, `control.NAME.…` as for a run
- `followup.FACTOR.verdict`, `followup.FACTOR.LEVEL.verdict`, `followup.FACTOR.LEVEL.seeds`,
  `followup.FACTOR.LEVEL.NAME` (E)
- `grid.CHOICE` (E), `grid.CHOICE.difference` (E), `grid.CHOICE.verdict`; several choices are joined by `+`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headwork.errors import unknown
from headwork.report import numbers
from headwork.report.document import Source, Value
from headwork.report.sources import CARD, HEADLINE, RECORD, control_id, level_id, run_id, runs_by_name, sources
from headwork.studies.record import ClaimResult, Estimate, GridCell, Record, RunResult

Resolve = Callable[[str], Value]


def resolver(record: Record) -> Resolve:
    """What turns the name of a reference into a value. It raises UserError, naming the nearest, for an unknown name."""
    table = names(record)

    def resolve(name: str) -> Value:
        if name not in table:
            raise unknown("reference in the notes", name, table)
        text, source = table[name]
        return Value(text, source.key, name)

    return resolve


def names(record: Record) -> dict[str, tuple[str, Source]]:
    """Every name that notes may use, with its text and its source."""
    by_id = sources(record)
    return {name: (text, by_id[source]) for name, text, source in _names(record)}


_Named = Iterator[tuple[str, str, str]]


def _names(record: Record) -> _Named:
    yield "verdict", record.verdict, HEADLINE
    yield "decided_by", record.decided_by, HEADLINE
    yield "model", record.model_name, RECORD
    yield "finding", record.finding, RECORD
    yield "seeds", numbers.whole(record.seeds), RECORD
    yield "seconds", numbers.number(record.seconds), RECORD
    yield from _run("headline", record.headline, HEADLINE)
    runs = runs_by_name(record)
    for name, run in runs.items():
        yield from _run(f"run.{name}", run, run_id(name))
    for control in record.controls:
        source = control_id(control.name)
        if control.run in runs:
            yield from _run(source, runs[control.run], source)
        yield f"{source}.verdict", control.verdict, source
        yield f"{source}.expected", control.expected, CARD
    for followup in record.followups:
        yield f"followup.{followup.factor}.verdict", followup.verdict, RECORD
        for level in followup.levels:
            name = level_id(followup, level)
            for quantity, estimate in level.estimates.items():
                yield from _estimate(f"{name}.{quantity}", estimate, name)
            yield f"{name}.verdict", level.verdict, name
            yield f"{name}.seeds", numbers.whole(len(level.seeds)), name
    for cell in record.grid:
        yield from _cell(cell)


def _run(name: str, run: RunResult, source: str) -> _Named:
    for claim in run.claims:
        yield from _claim(f"{name}.{claim.id}", claim, source)
    for scalar, estimate in run.scalars.items():
        yield from _estimate(f"{name}.scalars.{scalar}", estimate, source)
    for role, heads in run.heads.items():
        yield f"{name}.heads.{role}", ", ".join(heads) or "none", source
    yield f"{name}.verdict", run.verdict, source
    yield f"{name}.seconds", numbers.number(run.seconds), source


def _claim(name: str, claim: ClaimResult, source: str) -> _Named:
    yield from _estimate(name, claim.estimate, source)
    if claim.null is not None:
        yield from _estimate(f"{name}.null", claim.null, source)
    if claim.difference is not None:
        yield from _estimate(f"{name}.difference", claim.difference, source)
    yield f"{name}.threshold", numbers.exact(claim.threshold), CARD
    yield f"{name}.paper", claim.paper or "no number", CARD
    yield f"{name}.unit", claim.quantity_unit, CARD
    yield f"{name}.verdict", claim.verdict, source


def _estimate(name: str, estimate: Estimate, source: str) -> _Named:
    decimals = numbers.precision(estimate)
    yield name, numbers.estimate(estimate), source
    yield f"{name}.value", numbers.number(estimate.value, decimals), source
    yield f"{name}.low", numbers.number(estimate.low, decimals), source
    yield f"{name}.high", numbers.number(estimate.high, decimals), source
    yield f"{name}.n", numbers.whole(estimate.n), source


def _cell(cell: GridCell) -> _Named:
    name = "grid." + "+".join(cell.choice.values())
    yield from _estimate(name, cell.estimate, HEADLINE)
    if cell.difference is not None:
        yield from _estimate(f"{name}.difference", cell.difference, HEADLINE)
    yield f"{name}.verdict", cell.verdict, HEADLINE
