"""The record of a reproduction: everything the report prints and a script may read, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal[
    "reproduced", "partially reproduced", "analogue only", "not reproduced", "inconclusive", "not attempted"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A value with its 95 % interval [low, high]; both None where it was computed exactly (`method` says so).

    `n` counts independent units (`unit`: "sequences", "networks").
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    method: str = ""


class ClaimResult(_Frozen):
    """A sub-claim's outcome. `difference` is quantity − null, paired by unit; `why` says what decided."""

    id: str
    statement: str
    kind: str
    central: bool
    quantity_unit: str
    paper: str | None
    paper_source: str
    source_status: str
    estimate: Estimate
    null: Estimate | None
    null_meaning: str
    difference: Estimate | None
    direction: str
    threshold: float
    threshold_source: str
    verdict: Verdict
    why: str
    control_available: bool = True


class RunResult(_Frozen):
    """One network measured: `address` is where its results lie in the store, `run` its name in the results file."""

    run: str
    model: str
    model_name: str
    weights_sha256: str
    seed: int | None
    address: str
    verdict: Verdict
    decided_by: str
    claims: list[ClaimResult]
    scalars: dict[str, Estimate]
    heads: dict[str, list[str]]
    notes: list[str]
    seconds: float
    diverged_at: int | None = None


class ControlResult(_Frozen):
    """A network that lacks the mechanism; `as_expected` is whether the measurement says so."""

    name: str
    model: str
    verdict: Verdict
    expected: Verdict
    as_expected: bool
    decided_by: str
    why: str
    run: str


class Level(_Frozen):
    """One value of a follow-up's factor, over its seeds; `expected` is what the claim predicts of it."""

    value: str
    baseline: bool
    runs: list[str]
    verdict: Verdict
    decided_by: str
    estimates: dict[str, Estimate]
    per_seed: dict[str, list[float | None]]
    seeds: list[int]
    seed_verdicts: list[str]
    expected: Verdict | None = None


class FollowUp(_Frozen):
    """A factor varied alone: `diff` is the machine-made difference of the settings, one key for each level."""

    factor: str
    key: str
    question: str
    diff: dict[str, tuple[str, str]]
    levels: list[Level]
    verdict: str
    unavailable: list[str]


class GridCell(_Frozen):
    """One cell of the robustness grid: a choice of method, and what the primary quantity becomes under it."""

    choice: dict[str, str]
    quantity: str
    unit: str
    primary: bool
    estimate: Estimate
    difference: Estimate | None
    verdict: Verdict


class Record(_Frozen):
    """A reproduction: `headline` decides, controls qualify it, follow-ups vary it."""

    format: int
    finding: str
    title: str
    card: dict[str, Any]
    card_sha256: str
    model: str
    model_name: str
    model_card: dict[str, Any]
    data: dict[str, Any]
    data_note: str
    settings: dict[str, Any]
    seeds: int
    verdict: Verdict
    decided_by: str
    expected: Verdict | None
    headline: RunResult
    runs: list[RunResult]
    controls: list[ControlResult]
    followups: list[FollowUp]
    grid: list[GridCell]
    deviations: list[dict[str, str]]
    failures: list[str]
    environment: dict[str, str]
    created: str
    seconds: float
