"""`headwork reproduce FINDING`: from a published claim to a verdict and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwork.cli.options import AsJson, Device
from headwork.cli.output import print_json, print_lines, print_table
from headwork.cli.progress import progress

if TYPE_CHECKING:
    from headwork.studies.record import ClaimResult, Level, Record


def reproduce(
    finding: Annotated[str, typer.Argument(metavar="FINDING", help="A finding of `headwork findings`.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="zoo:NAME, hf:ORG/NAME, artifact:NAME or a model folder.",
            show_default="the finding's own",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Trained networks per level of a follow-up.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the report goes.", show_default="headwork-out/FINDING")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Reproduce a published finding.

    Measures the claim on a network, its controls and its follow-ups, and writes a report as PDF and HTML. What was
    measured before comes from the store.
    """
    from headwork.report import pipeline
    from headwork.studies.summary import summary

    with progress(as_json) as report:
        outcome = pipeline.reproduce(finding, model, seeds, out or Path("headwork-out") / finding, device, report)
    if as_json:
        print_json(summary(outcome.record, outcome.folder, outcome.seconds))
        return
    _print_verdict(outcome.record)
    _print_claims(outcome.record)
    _print_controls(outcome.record)
    _print_followups(outcome.record)
    _print_files(outcome.record, outcome.folder, outcome.seconds, outcome.from_store)


def _print_verdict(record: Record) -> None:
    from headwork.report.verdicts import SYMBOLS, expectation

    decisive = next((claim for claim in record.headline.claims if claim.id == record.decided_by), None)
    expected = ", as expected" if record.expected == record.verdict else ""
    print_lines(
        "",
        f"{SYMBOLS[record.verdict]} {record.title} on {record.model}: {record.verdict}{expected}.",
        f"Decided by: {record.decided_by if decisive is None else f'{decisive.statement} {decisive.why}'}",
        *([expectation(record)] if record.expected else []),
    )


def _null(claim: ClaimResult) -> str:
    from headwork.report.numbers import estimate

    if claim.null is not None:
        return estimate(claim.null)
    return "0 by definition" if claim.control_available else "unavailable; 0"


def _print_claims(record: Record) -> None:
    from headwork.report.numbers import estimate

    print_table(
        ("sub-claim", "paper", "ours [95 %]", "null", "verdict"),
        [
            (
                f"{'● ' if claim.central else ''}{claim.statement}",
                claim.paper or "–",
                f"{estimate(claim.estimate)} {claim.quantity_unit}",
                _null(claim),
                claim.verdict,
            )
            for claim in record.headline.claims
        ],
        "Sub-claims (● central: these decide)",
    )


def _print_controls(record: Record) -> None:
    if record.controls:
        print_table(
            ("control", "network", "verdict", ""),
            [
                (c.name, c.model, c.verdict, "✓ as expected" if c.as_expected else f"✗ expected: {c.expected}")
                for c in record.controls
            ],
            "Controls: networks that lack the mechanism",
        )


def _print_followups(record: Record) -> None:
    if record.followups:
        print_table(
            ("follow-up", "value", "verdict", "networks", "outcome"),
            [
                (
                    "" if number else followup.factor,
                    f"{level.value}{' (headline)' if level.baseline else ''}",
                    level.verdict,
                    _networks(level),
                    "" if number else followup.verdict,
                )
                for followup in record.followups
                for number, level in enumerate(followup.levels)
            ],
            "Follow-ups: one setting changed at a time",
        )


def _print_files(record: Record, folder: Path, seconds: float, from_store: bool) -> None:
    from headwork.findings.registry import finding
    from headwork.report.numbers import duration
    from headwork.studies.summary import HTML, PDF

    known = finding(record.finding)
    other = next(spec for spec in (known.model, *known.controls.values()) if spec != record.model)
    print_lines(
        f"Report: {folder / PDF}",
        f"        {folder / HTML}",
        f"Took {duration(seconds)}{', with results from the store' if from_store else ''}.",
        f"Next: headwork reproduce {record.finding} --model {other}",
    )


def _networks(level: Level) -> str:
    """`5 of 5 agree`: how many seeds have the level's verdict by themselves."""
    return f"{level.seed_verdicts.count(level.verdict)} of {len(level.seeds)} agree"
