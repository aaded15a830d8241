"""Figures of a finding: a picture, what it shows, and where it stands in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwork.draw.picture import Picture, View

Slot = Literal["circuit", "main", "secondary", "attention", "followups", "robustness"]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; both ends None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


# The mean over independent units with its interval: how studies estimate, handed to the figures.
Summary = Callable[[np.ndarray], Interval]


@dataclass(frozen=True)
class ShownLevel:
    """One value of a follow-up's factor, as a figure shows it: per sub-claim an estimate over seeds and the seeds."""

    factor: str
    value: str
    baseline: bool
    verdict: str
    estimates: Mapping[str, Interval]
    per_seed: Mapping[str, Sequence[float | None]]
    diverged: int


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`basis` says on what the figure rests: n and the interval, or "one example, chosen by rule …".

    `picture` goes into print and HTML; `view`, where there is one, replaces it in HTML. `width` is the share of the
    text width (0–1) that it takes in print.
    """

    name: str
    slot: Slot
    title: str
    caption: str
    basis: str
    picture: Picture
    view: View | None = None
    width: float = 1.0
