"""`findings` and `findings show`."""

from __future__ import annotations

from tests.cli.conftest import Cli

from headwork.findings.registry import findings


def test_findings_lists_all(cli: Cli) -> None:
    found = cli("findings", "--json").json["findings"]
    assert [entry["id"] for entry in found] == list(findings())
    printed = cli("findings").out
    for name, finding in findings().items():
        assert name in printed
        assert finding.card.title in printed


def test_show_prints_every_sub_claim_with_its_threshold_and_where_that_comes_from(cli: Cli) -> None:
    for name, finding in findings().items():
        printed = " ".join(cli("findings", "show", name).out.split())
        for claim in finding.card.subclaims:
            for part in (claim.statement, claim.threshold_source, claim.null_meaning, claim.unit, claim.kind):
                assert part in printed
        for missing in finding.card.not_measurable:
            assert missing in printed


def test_show_as_json_is_the_card_with_its_hash(cli: Cli) -> None:
    card = findings()["induction-heads"].card
    found = cli("findings", "show", "induction-heads", "--json").json
    assert found.pop("sha256") == card.sha256
    assert found["id"] == card.id
    assert [claim["id"] for claim in found["subclaims"]] == [claim.id for claim in card.subclaims]
