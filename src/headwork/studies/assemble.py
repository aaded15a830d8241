"""From finished runs to the record: every sub-claim judged, controls compared, follow-ups summed up over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headwork.findings.claim import ClaimCard, SubClaim
from headwork.findings.registry import Grid
from headwork.studies import statistics
from headwork.studies.plan import Plan, PlannedFollowUp, PlannedLevel, Task
from headwork.studies.record import (
    ClaimResult,
    ControlResult,
    Estimate,
    FollowUp,
    GridCell,
    Level,
    Record,
    RunResult,
    Verdict,
)
from headwork.studies.runs import Run
from headwork.studies.verdict import ORDER, capped, judge, overall

if TYPE_CHECKING:
    import xarray

FORMAT = 1


def assemble(
    plan: Plan,
    runs: Mapping[str, Run],
    datasets: Mapping[str, xarray.Dataset],
    environment: Mapping[str, str],
    created: str,
    seconds: float,
) -> Record:
    """The record of a reproduction. `runs` lacks the networks whose training diverged; they are recorded as such."""
    card = plan.finding.card
    tasks = plan.tasks()
    results = {
        name: run_result(card, runs[name], datasets[name]) if name in runs else diverged(task)
        for name, task in tasks.items()
    }
    controls = [_control(name, results[task.name]) for name, task in plan.controls.items()]
    failed = [control.name for control in controls if not control.as_expected]
    headline, followups = results["headline"], [_followup(card, f, results) for f in plan.followups]
    spec = plan.headline.located.spec
    verdict, decided_by = capped(headline.verdict, headline.decided_by, card, spec, failed)
    run = runs["headline"]
    return Record(
        format=FORMAT,
        finding=card.id,
        title=card.title,
        card=card.to_dict(),
        card_sha256=card.sha256,
        model=spec,
        model_name=plan.headline.located.card.name,
        model_card=plan.headline.located.card.to_dict(),
        data=run.data,
        data_note=run.data_note,
        settings=dict(plan.finding.settings),
        seeds=plan.seeds,
        verdict=verdict,
        decided_by=decided_by,
        expected=cast("Verdict | None", plan.expected),
        headline=headline,
        runs=[result for name, result in results.items() if name != "headline"],
        controls=controls,
        followups=followups,
        grid=_grid(plan.finding.grid, card, datasets["headline"], plan.finding.settings) if plan.finding.grid else [],
        deviations=_deviations(run),
        failures=_failures(results, controls, followups, plan.unavailable),
        environment=dict(environment),
        created=created,
        seconds=seconds,
    )


def run_result(card: ClaimCard, run: Run, dataset: xarray.Dataset) -> RunResult:
    """Every sub-claim judged on one network."""
    values = per_unit(dataset)
    claims = [judge(claim, values) for claim in card.subclaims]
    verdict, decided_by = overall(claims)
    scalars = {
        name: statistics.exact(float(array)) if array.ndim == 0 else statistics.mean(array, "sequences")
        for name, array in values.items()
    }
    return _result(run.task, run.address, verdict, decided_by, claims, scalars, run.heads, run.notes, run.seconds)


def diverged(task: Task) -> RunResult:
    """What stands for a network whose training diverged: it is shown, not dropped."""
    result = _result(task, "", "not attempted", f"training diverged at step {task.diverged_at}", [], {}, {}, [], 0.0)
    return result.model_copy(update={"diverged_at": task.diverged_at})


def per_unit(dataset: xarray.Dataset) -> dict[str, np.ndarray]:
    """The variables with one value for each sequence, and those with one value in all."""
    return {
        str(name): variable.values.astype(np.float64)
        for name, variable in dataset.data_vars.items()
        if variable.dims in ((), ("sequence",)) and variable.dtype.kind in "fiu"
    }


def _result(
    task: Task,
    at: str,
    verdict: Verdict,
    decided_by: str,
    claims: list[ClaimResult],
    scalars: dict[str, Estimate],
    heads: dict[str, list[str]],
    notes: list[str],
    seconds: float,
) -> RunResult:
    card = task.located.card
    return RunResult(
        run=task.name,
        model=task.located.spec + (" (untrained)" if task.untrained else ""),
        model_name=card.name,
        weights_sha256=task.located.sha256,
        seed=task.seed,
        address=at,
        verdict=verdict,
        decided_by=decided_by,
        claims=claims,
        scalars=scalars,
        heads=heads,
        notes=notes,
        seconds=seconds,
    )


def _control(name: str, result: RunResult) -> ControlResult:
    expected: Verdict = "not reproduced"
    failed = [claim for claim in result.claims if claim.central and claim.verdict == result.verdict]
    return ControlResult(
        name=name,
        model=result.model,
        verdict=result.verdict,
        expected=expected,
        as_expected=result.verdict == expected,
        decided_by=result.decided_by,
        why=" ".join(f"{claim.id}: {claim.why}" for claim in failed),
        run=result.run,
    )


def _followup(card: ClaimCard, planned: PlannedFollowUp, results: Mapping[str, RunResult]) -> FollowUp:
    levels = [
        _level(card, level, [results[task.name] for task in level.tasks]).model_copy(
            update={"expected": planned.factor.expects[level.value]}
        )
        for level in planned.levels
    ]
    return FollowUp(
        factor=planned.factor.name,
        key=planned.factor.key,
        question=planned.factor.question,
        diff={str(level.value): level.diff for level in planned.levels if level.diff is not None},
        levels=levels,
        verdict=_as_predicted(levels),
        unavailable=list(planned.unavailable),
    )


def _as_predicted(levels: Sequence[Level]) -> Verdict:
    """*reproduced* where all levels come out as the claim predicts and no seed diverged; else the worst one decides."""
    grades: list[Verdict] = []
    for level in levels:
        if level.expected == level.verdict:
            diverged = any(verdict.startswith("diverged") for verdict in level.seed_verdicts)
            grades.append("partially reproduced" if diverged else "reproduced")
        elif level.verdict in ("inconclusive", "not attempted"):
            grades.append("inconclusive")
        elif level.verdict == "partially reproduced" and level.expected == "reproduced":
            grades.append("partially reproduced")
        else:
            grades.append("not reproduced")
    return min(grades, key=ORDER.index)


def _level(card: ClaimCard, planned: PlannedLevel, results: Sequence[RunResult]) -> Level:
    """One level over its seeds: networks are the units, so each contributes one number to every quantity."""
    finished = [r for r in results if r.diverged_at is None]
    if len(finished) > 1:
        claims = [_over_networks(claim, [_claim(r, claim.id) for r in finished]) for claim in card.subclaims]
        verdict, decided_by = overall(claims)
    elif finished:
        claims, verdict, decided_by = finished[0].claims, finished[0].verdict, finished[0].decided_by
    else:
        claims, verdict, decided_by = [], "not attempted", "every seed diverged"
    if finished and len(finished) < len(results) and verdict == "reproduced":
        verdict, decided_by = "partially reproduced", f"{len(results) - len(finished)} of {len(results)} seeds diverged"
    return Level(
        value=str(planned.value),
        baseline=planned.baseline,
        runs=[r.run for r in results],
        verdict=verdict,
        decided_by=decided_by,
        estimates={c.id: c.estimate for c in claims},
        per_seed={
            c.id: [_claim(r, c.id).estimate.value if r.claims else None for r in results] for c in card.subclaims
        },
        seeds=[-1 if r.seed is None else r.seed for r in results],
        seed_verdicts=[
            f"diverged at step {r.diverged_at}" if r.diverged_at is not None else r.verdict for r in results
        ],
    )


def _over_networks(claim: SubClaim, own: Sequence[ClaimResult]) -> ClaimResult:
    """The sub-claim with networks as the units: each gives its own estimate, ratios already taken.

    The control is what each network's own verdict compared with, so that one without a matched control does not spare
    the others theirs. A network without a value is no reason to judge by the others alone: unless its own verdict
    agrees with theirs, the sub-claim is inconclusive.
    """
    quantity = np.array([_number(one.estimate) for one in own])
    values = {claim.quantity: quantity}
    if claim.null and any(one.difference is not None for one in own):
        values[claim.null] = quantity - np.array([_number(one.difference or one.estimate) for one in own])
    result = judge(dataclasses.replace(claim, ratio_of=None, replicate="network"), values, unit="networks")
    without = [one for one in own if (one.difference or one.estimate).value is None]
    if not without:
        return result
    verdicts = {one.verdict for one in without} | ({result.verdict} if len(without) < len(own) else set())
    verdict = verdicts.pop() if len(verdicts) == 1 else "inconclusive"
    why = f"{len(without)} of {len(own)} networks have no value. {without[0].why}"
    return result.model_copy(update={"verdict": verdict, "why": why})


def _number(estimate: Estimate) -> float:
    return np.nan if estimate.value is None else estimate.value


def _claim(result: RunResult, id: str) -> ClaimResult:
    return next(claim for claim in result.claims if claim.id == id)


def _grid(grid: Grid, card: ClaimCard, dataset: xarray.Dataset, settings: Mapping[str, Any]) -> list[GridCell]:
    claim = next(c for c in card.subclaims if c.id == grid.claim)
    cells = []
    for choice in dataset[grid.axis].values:
        values = {claim.quantity: dataset[grid.quantity].sel({grid.axis: choice}).values}
        if claim.null and grid.null in dataset:
            values[claim.null] = dataset[grid.null].sel({grid.axis: choice}).values
        result = judge(claim, values)
        cells.append(
            GridCell(
                choice={grid.setting: str(choice)},
                quantity=claim.id,
                unit=claim.unit,
                primary=str(choice) == settings[grid.setting],
                estimate=result.estimate,
                difference=result.difference,
                verdict=result.verdict,
            )
        )
    return cells


def _deviations(run: Run) -> list[dict[str, str]]:
    found = [{"what": "prompts", "status": run.data_status, "why": run.data_note}]
    return found + [{"what": "network", "status": "inferred", "why": line} for line in run.inferred]


def _failures(
    results: Mapping[str, RunResult],
    controls: Sequence[ControlResult],
    followups: Sequence[FollowUp],
    unavailable: Sequence[str],
) -> list[str]:
    lines = [f"{r.run} ({r.model}): {r.decided_by}." for r in results.values() if r.diverged_at is not None]
    lines += [f"Control {c.name}: {c.verdict}, expected {c.expected}." for c in controls if not c.as_expected]
    lines += [f"{line}." for line in (*unavailable, *(line for f in followups for line in f.unavailable))]
    for followup in followups:
        for level in followup.levels:
            odd = [f"seed {s}" for s, v in zip(level.seeds, level.seed_verdicts) if v != level.verdict]
            if odd:
                verdicts = ", ".join(sorted({v for v in level.seed_verdicts if v != level.verdict}))
                lines.append(
                    f"{followup.factor} = {level.value}: {level.verdict} over seeds, but {', '.join(odd)} {verdicts}."
                )
    return lines
