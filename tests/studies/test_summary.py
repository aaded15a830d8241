"""The object that `reproduce --json` prints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.report import example

from headwork.studies.record import Estimate
from headwork.studies.summary import summary

KEYS = "finding model verdict decided_by expected claims controls followups report html record seconds"
CLAIM_KEYS = "id statement paper value interval verdict central null unit"


def test_a_summary_is_plain_json_with_the_promised_keys(tmp_path: Path) -> None:
    found = summary(example.record(), tmp_path, 3.14159)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert " ".join(found) == KEYS
    assert found["seconds"] == 3.14
    assert list(found["claims"][0]) == [
        "id",
        "statement",
        "paper",
        "value",
        "interval",
        "verdict",
        "central",
        "null",
        "unit",
    ]
    assert list(found["controls"][0]) == ["name", "verdict", "expected", "as_expected"]
    assert list(found["followups"][0]) == ["factor", "values", "verdict", "levels"]


def test_claims_carry_the_headline_s_numbers(tmp_path: Path) -> None:
    record = example.record()
    for said, claim in zip(summary(record, tmp_path, 1.0)["claims"], record.headline.claims, strict=True):
        assert said["value"] == claim.estimate.value
        assert said["interval"] == (None if claim.estimate.low is None else [claim.estimate.low, claim.estimate.high])
        assert said["null"] == (None if claim.null is None else claim.null.value)
        assert (said["verdict"], said["central"]) == (claim.verdict, claim.central)
    assert any(said["interval"] is None for said in summary(record, tmp_path, 1.0)["claims"])


def test_followups_list_their_values_with_verdicts(tmp_path: Path) -> None:
    record = example.record()
    for said, followup in zip(summary(record, tmp_path, 1.0)["followups"], record.followups, strict=True):
        assert said["values"] == [level.value for level in followup.levels]
        assert [level["seeds"] for level in said["levels"]] == [level.seeds for level in followup.levels]
        assert said["verdict"] == followup.verdict


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = summary(example.record(), Path("out"), 1.0)
    assert found["report"] == str(tmp_path / "out" / "report.pdf")
    assert found["html"] == str(tmp_path / "out" / "report.html")
    assert found["record"] == str(tmp_path / "out" / "record.json")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_null(tmp_path: Path, value: float | None) -> None:
    record = example.record()
    claim = record.headline.claims[0].model_copy(update={"estimate": Estimate(value=value, low=value, high=value)})
    headline = record.headline.model_copy(update={"claims": [claim]})
    said = summary(record.model_copy(update={"headline": headline}), tmp_path, 1.0)["claims"][0]
    assert (said["value"], said["interval"]) == (None, None)
