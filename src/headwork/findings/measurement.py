"""What a finding's procedure gives: labelled numbers, the heads it chose, and what a reader must know of the set-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import xarray

Status = Literal["as stated", "inferred", "changed"]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Measurement:
    """`dataset` holds every quantity that the claim card names and what the figures show.

    `heads` lists the chosen components by role, `notes` what was unusual, `data` the distribution measured on (plain
    data), `data_note` where it comes from and `data_status` how it relates to what the paper or the network states.
    """

    dataset: xarray.Dataset
    heads: dict[str, list[str]]
    data: dict[str, Any]
    data_note: str
    data_status: Status
    notes: list[str] = field(default_factory=list)


def no_progress(stage: str, share: float) -> None:
    """Reports to nobody. A progress callback gets the stage's name and the share done, from 0 to 1."""
