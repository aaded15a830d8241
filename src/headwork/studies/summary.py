"""A record in brief: the one object that `headwork reproduce --json` prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from headwork.studies.record import ClaimResult, Estimate, FollowUp, Record

PDF, HTML, RECORD = "report.pdf", "report.html", "record.json"


def summary(record: Record, folder: Path, seconds: float) -> dict[str, Any]:
    """Plain values for JSON: verdicts, numbers, and where the files are (absolute paths in `folder`).

    A value that was not measured is None; so is the interval of one that was computed exactly. `seconds` is what this
    call took, which is little where the results were in the store.
    """
    folder = folder.absolute()
    return {
        "finding": record.finding,
        "model": record.model,
        "verdict": record.verdict,
        "decided_by": record.decided_by,
        "expected": record.expected,
        "claims": [_claim(claim) for claim in record.headline.claims],
        "controls": [
            {"name": c.name, "verdict": c.verdict, "expected": c.expected, "as_expected": c.as_expected}
            for c in record.controls
        ],
        "followups": [_followup(followup) for followup in record.followups],
        "report": str(folder / PDF),
        "html": str(folder / HTML),
        "record": str(folder / RECORD),
        "seconds": round(seconds, 2),
    }


def _claim(claim: ClaimResult) -> dict[str, Any]:
    return {
        "id": claim.id,
        "statement": claim.statement,
        "paper": claim.paper,
        "value": _number(claim.estimate.value),
        "interval": _interval(claim.estimate),
        "verdict": claim.verdict,
        "central": claim.central,
        "null": None if claim.null is None else _number(claim.null.value),
        "unit": claim.quantity_unit,
    }


def _followup(followup: FollowUp) -> dict[str, Any]:
    return {
        "factor": followup.factor,
        "values": [level.value for level in followup.levels],
        "verdict": followup.verdict,
        "levels": [
            {
                "value": level.value,
                "verdict": level.verdict,
                "expected": level.expected,
                "seeds": level.seeds,
                "seed_verdicts": level.seed_verdicts,
            }
            for level in followup.levels
        ],
    }


def _number(value: float | None) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def _interval(estimate: Estimate) -> list[float] | None:
    low, high = _number(estimate.low), _number(estimate.high)
    return None if low is None or high is None else [low, high]
