"""Claim cards: what a paper claims, as quantities, thresholds and their sources, fixed before anything is run."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from headwork.store.address import canonical

Kind = Literal["behaviour", "cause", "representation"]
Scope = Literal["class", "network"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A paper, for the bibliography."""

    key: str
    authors: str
    year: int
    title: str
    venue: str
    url: str


@dataclass(frozen=True, kw_only=True)
class SubClaim:
    """One measurable part of a claim.

    `quantity` names a variable of the finding's dataset, with one value per unit of `replicate` (`sequence`, `network`)
    or, with `replicate = None`, one value that was computed exactly and has no interval. The claim says that the
    quantity lies on the `direction` side of `threshold` [unit]. `null` names the variable that holds the matched
    control in the same units, or is None where the control's value is zero by definition (`null_meaning` says what it
    is). The threshold is set on the quantity's `value` or on its `difference` from the control (`threshold_on`). With
    `ratio_of` the quantity is divided by that variable, as a ratio of means. A `signed` quantity is an effect that must
    itself be on the claimed side of 0, whatever its control does. A central sub-claim decides the verdict.
    """

    id: str
    statement: str
    kind: Kind
    central: bool
    quantity: str
    unit: str
    replicate: str | None
    threshold: float
    threshold_source: str
    null_meaning: str
    threshold_on: Literal["value", "difference"] = "difference"
    null: str | None = None
    direction: Literal["above", "below"] = "above"
    paper: str | None = None
    paper_source: str = ""
    source_status: Literal["checked", "unchecked"] = "unchecked"
    ratio_of: str | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self.ratio_of and (self.null or self.replicate is None):
            raise ValueError(f"{self.id} is a ratio over units: its control must be zero by definition.")


@dataclass(frozen=True, kw_only=True)
class ClaimCard:
    """A finding's claim: about which networks, on which data, and the sub-claims that decide it.

    `scope` is `class` for a claim about a class of networks (any member can reproduce it) and `network` for a claim
    about one network (`network_spec`), which others can show as an analogue only.
    """

    id: str
    title: str
    claim: str
    references: tuple[Reference, ...]
    scope: Scope
    networks: str
    data: str
    subclaims: tuple[SubClaim, ...]
    not_measurable: tuple[str, ...] = ()
    network_spec: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data as JSON has it, which is hashed and recorded."""
        return _plain(dataclasses.asdict(self))

    @property
    def sha256(self) -> str:
        """The hash that the record of every run carries: a changed card is another card."""
        return hashlib.sha256(canonical(self.to_dict()).encode()).hexdigest()

    @property
    def central(self) -> tuple[SubClaim, ...]:
        return tuple(s for s in self.subclaims if s.central)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
