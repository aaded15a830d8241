"""The findings by id, and what each runs on unless told otherwise. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headwork.errors import unknown
from headwork.findings.claim import ClaimCard
from headwork.findings.induction_heads.card import CARD as INDUCTION_HEADS

Expected = Literal["reproduced", "not reproduced"]


@dataclass(frozen=True)
class Factor:
    """What a follow-up changes: one key of a network's training settings, the values asked for, and what the claim
    says should come of each."""

    name: str
    key: str
    question: str
    expects: Mapping[Any, Expected]


@dataclass(frozen=True)
class Grid:
    """A robustness grid: sub-claim `claim` again for each coordinate of `axis`, on `quantity [axis, unit]` against
    `null`; the cell that the settings' key `setting` names is the primary one."""

    claim: str
    axis: str
    quantity: str
    null: str
    setting: str


@dataclass(frozen=True)
class Finding:
    """A published finding: its card, where its procedure and figures are, and its defaults.

    `module` has `measure.measure(model, settings, progress)`, `figures.figures(…)` and the notes of the default run
    (`notes.md`). `settings` are the procedure's. `controls` are networks that lack the mechanism: *not reproduced* is
    right for them.
    """

    id: str
    card: ClaimCard
    module: str
    model: str
    settings: Mapping[str, Any]
    controls: Mapping[str, str]
    factors: tuple[Factor, ...] = ()
    grid: Grid | None = None


FINDINGS: dict[str, Finding] = {
    finding.id: finding
    for finding in (
        Finding(
            id="induction-heads",
            card=INDUCTION_HEADS,
            module="headwork.findings.induction_heads",
            model="zoo:attn-only-2l",
            settings={"discovery": 128, "held_out": 256, "ablation": "mean", "seed": 0},
            controls={"one layer": "zoo:attn-only-1l", "fixed period": "zoo:attn-only-1l-fixed-period"},
            factors=(
                Factor(
                    "depth",
                    "architecture.n_layers",
                    "Does it take two layers?",
                    {1: "not reproduced", 2: "reproduced", 3: "reproduced"},
                ),
                Factor(
                    "position encoding",
                    "architecture.positions",
                    "Does it depend on rotary positions?",
                    {"rotary": "reproduced", "learned": "reproduced"},
                ),
            ),
            grid=Grid("ablation-cost", "value", "cost", "matched_cost", "ablation"),
        ),
    )
}


def findings() -> dict[str, Finding]:
    """All findings by id."""
    return dict(FINDINGS)


def finding(id: str) -> Finding:
    """The finding of that id; `UserError` names the nearest."""
    if id not in FINDINGS:
        raise unknown("finding", id, FINDINGS, "`headwork findings` lists them.")
    return FINDINGS[id]
