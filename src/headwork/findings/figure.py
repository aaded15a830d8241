"""Figures of a finding: a picture, what it shows, and where it stands in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwork.draw.picture import Picture, View

Slot = Literal["circuit", "main", "secondary", "attention", "followups", "robustness"]


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
