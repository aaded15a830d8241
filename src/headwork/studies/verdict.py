"""Verdicts: from an estimate, its matched control and a threshold fixed in advance, to one of six words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headwork.findings.claim import ClaimCard, SubClaim
from headwork.studies import statistics
from headwork.studies.record import ClaimResult, Estimate, Verdict

# From worst to best: the worst central sub-claim decides.
ORDER: tuple[Verdict, ...] = ("not reproduced", "inconclusive", "partially reproduced", "reproduced")


def judge(claim: SubClaim, values: Mapping[str, np.ndarray], unit: str | None = None) -> ClaimResult:
    """The verdict of one sub-claim.

    `values` holds arrays over units by variable name, scalars for quantities computed exactly. `unit` overrides the
    claim's unit of replication (networks, where each value is one network's). Let d be quantity − control, paired by
    unit, and v the quantity on which the threshold is set. Then, for a claim that says “above”:
    interval of d not above 0 → not reproduced if it is below 0, or if v's interval is short of a threshold that is more
    than the control, else inconclusive; d above 0 and v's interval past the threshold → reproduced; d above 0
    otherwise → partially reproduced. A `signed` quantity must be above 0 itself, or the same words apply to that: an
    effect of the wrong sign is none, however much worse its control is. Raises ValueError where the values are one for
    each unit although the claim says that they are exact, or the other way round.
    """
    unit = unit or (f"{claim.replicate}s" if claim.replicate else "")
    quantity = values.get(claim.quantity)
    denominators = values.get(claim.ratio_of) if claim.ratio_of else None
    if quantity is None or (claim.ratio_of and denominators is None):
        missing = Estimate(value=None, method="not there to measure")
        return _result(claim, missing, None, None, "inconclusive", "This network has nothing to measure it on.", True)
    if (np.ndim(quantity) == 0) != (claim.replicate is None):
        # A mean without its units would pass for a number without uncertainty.
        raise ValueError(
            f"{claim.quantity} has {np.ndim(quantity)} axes; its unit of replication is {claim.replicate}."
        )
    null = values.get(claim.null) if claim.null else None
    sign = 1.0 if claim.direction == "above" else -1.0
    estimate = _estimate(quantity, denominators, unit)
    null_estimate = None if null is None else _estimate(null, None, unit)
    difference = estimate if null is None else _estimate(quantity - null, None, unit)
    on = difference if claim.threshold_on == "difference" else estimate
    available = claim.null is None or null is not None
    verdict, why = _decide(estimate, difference, on, claim, sign)
    if not available:
        why = f"No matched control exists here; compared with 0. {why}"
    return _result(claim, estimate, null_estimate, None if null is None else difference, verdict, why, available)


def _estimate(values: np.ndarray, denominators: np.ndarray | None, unit: str) -> Estimate:
    if np.ndim(values) == 0:
        return statistics.exact(float(values))
    if denominators is not None:
        return statistics.ratio(values, denominators, unit)
    return statistics.mean(values, unit)


def _decide(
    estimate: Estimate, difference: Estimate, on: Estimate, claim: SubClaim, sign: float
) -> tuple[Verdict, str]:
    if estimate.value is None or difference.value is None or on.value is None:
        return "inconclusive", "No finite value could be computed."
    verdict, why = _beyond(difference, on, claim, sign)
    if claim.signed:
        low, high = _bounds(estimate, sign)
        if high <= 0:
            return "not reproduced", "Its own sign is not the claimed one."
        if low <= 0 and ORDER.index(verdict) > ORDER.index("inconclusive"):
            return "inconclusive", "Its own interval spans 0."
    return verdict, why


def _beyond(difference: Estimate, on: Estimate, claim: SubClaim, sign: float) -> tuple[Verdict, str]:
    """Whether it is past its control and past the threshold."""
    low, high = _bounds(difference, sign)
    past_low, past_high = _bounds(on, sign)
    threshold = sign * claim.threshold
    if low <= 0:
        if high <= 0:
            return "not reproduced", "It is not on the claimed side of its control."
        if past_high < threshold:
            return "not reproduced", "It is no more than its control, and short of the threshold."
        return "inconclusive", "The interval spans the control."
    if past_low >= threshold:
        return "reproduced", "The whole interval is past control and threshold."
    if past_high < threshold:
        return "partially reproduced", "It is past its control, but short of the threshold."
    return "partially reproduced", "It is past its control; the interval spans the threshold."


def _bounds(estimate: Estimate, sign: float) -> tuple[float, float]:
    """The interval's ends in the claimed direction; an exact value is both."""
    value = estimate.value
    assert value is not None  # noqa: S101 – checked by the caller
    if estimate.low is None or estimate.high is None:
        # One unit alone has no interval: it decides nothing by itself unless it was computed exactly.
        wide = 0.0 if estimate.method == "computed exactly" else np.inf
        return sign * value - wide, sign * value + wide
    ends = sorted((sign * estimate.low, sign * estimate.high))
    return ends[0], ends[1]


def _result(
    claim: SubClaim,
    estimate: Estimate,
    null: Estimate | None,
    difference: Estimate | None,
    verdict: Verdict,
    why: str,
    available: bool,
) -> ClaimResult:
    return ClaimResult(
        id=claim.id,
        statement=claim.statement,
        kind=claim.kind,
        central=claim.central,
        quantity_unit=claim.unit,
        paper=claim.paper,
        paper_source=claim.paper_source,
        source_status=claim.source_status,
        estimate=estimate,
        null=null,
        null_meaning=claim.null_meaning,
        difference=difference,
        direction=claim.direction,
        threshold=claim.threshold,
        threshold_source=claim.threshold_source,
        verdict=verdict,
        why=why,
        control_available=available,
    )


def overall(results: Sequence[ClaimResult]) -> tuple[Verdict, str]:
    """The worst central sub-claim's verdict, and which one decided."""
    central = [r for r in results if r.central]
    worst = min(central, key=lambda r: ORDER.index(r.verdict))
    same = [r.id for r in central if r.verdict == worst.verdict]
    if worst.verdict == "reproduced":
        return "reproduced", f"all {len(central)} central sub-claims are reproduced"
    return worst.verdict, f"central sub-claim{'s' if len(same) > 1 else ''} {', '.join(same)}: {worst.verdict}"


def capped(
    verdict: Verdict, decided_by: str, card: ClaimCard, spec: str, failed_controls: Sequence[str]
) -> tuple[Verdict, str]:
    """What controls and scope leave of a verdict.

    A control that does not come out as it should makes anything better than *not reproduced* inconclusive. A claim
    about one network, shown on another, is at most *analogue only*.
    """
    if failed_controls and ORDER.index(verdict) > ORDER.index("inconclusive"):
        return "inconclusive", f"the control {', '.join(failed_controls)} did not come out as it should"
    if card.scope == "network" and spec != card.network_spec and verdict in ("reproduced", "partially reproduced"):
        return "analogue only", f"the claim is about {card.network_spec}; {decided_by}"
    return verdict, decided_by
