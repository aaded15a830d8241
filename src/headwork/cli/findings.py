"""`headwork findings`: the published findings that can be reproduced, and their claim cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwork.cli.options import AsJson
from headwork.cli.output import print_facts, print_json, print_lines, print_table

if TYPE_CHECKING:
    from headwork.findings.claim import ClaimCard, Reference, SubClaim

group = typer.Typer(rich_markup_mode=None, help="List published findings and show their claim cards.")


@group.callback(invoke_without_command=True)
def findings(context: typer.Context, as_json: AsJson = False) -> None:
    """List the findings that can be reproduced."""
    if context.invoked_subcommand is not None:
        return
    from headwork.findings.registry import findings as all_findings

    cards = [found.card for found in all_findings().values()]
    if as_json:
        print_json({"findings": [_in_brief(card) for card in cards]})
        return
    print_table(
        ("finding", "title", "papers", ">sub-claims", ">central"),
        [
            (
                c.id,
                c.title,
                "; ".join(_short(r) for r in c.references),
                len(c.subclaims),
                len(c.central),
            )
            for c in cards
        ],
    )
    print_lines("More on one: headwork findings show ID. Run one: headwork reproduce ID")


@group.command("show")
def show(
    finding: Annotated[str, typer.Argument(metavar="ID", help="A finding of `headwork findings`.")],
    as_json: AsJson = False,
) -> None:
    """Show a finding's claim card.

    What is claimed, about which networks, and what counts as reproducing each part of it.
    """
    from headwork.findings.registry import finding as one_finding

    card = one_finding(finding).card
    if as_json:
        print_json({**card.to_dict(), "sha256": card.sha256})
        return
    print_facts(
        {
            "finding": f"{card.id}: {card.title}",
            "claim": card.claim,
            "about": card.network_spec or card.networks,
            "data": card.data,
            "papers": "\n".join(f"{r.authors} ({r.year}). {r.title}. {r.venue}. {r.url}" for r in card.references),
            "not measured": "\n".join(card.not_measurable),
            "sha256": card.sha256,
        }
    )
    for number, claim in enumerate(card.subclaims, 1):
        print_lines("", f"{number}. {claim.statement}")
        print_facts(_facts(claim))
    print_lines("", f"Next: headwork reproduce {card.id}")


def _in_brief(card: ClaimCard) -> dict[str, object]:
    return {
        "id": card.id,
        "title": card.title,
        "claim": card.claim,
        "scope": card.scope,
        "references": [reference.key for reference in card.references],
        "subclaims": len(card.subclaims),
        "central": len(card.central),
    }


def _short(reference: Reference) -> str:
    return f"{reference.authors.split(',')[0].split(' and ')[0]} {reference.year}"


def _facts(claim: SubClaim) -> dict[str, object]:
    side = "above" if claim.direction == "above" else "below"
    return {
        "   kind": f"{claim.kind}{', central' if claim.central else ''}",
        "   counts if": f"{side} {claim.threshold:g} {claim.unit}",
        "   threshold": claim.threshold_source,
        "   null": claim.null_meaning,
        "   paper": f"{claim.paper} ({claim.paper_source}; {claim.source_status})" if claim.paper else "gives no value",
    }
