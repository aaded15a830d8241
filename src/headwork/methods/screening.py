"""Screening: many effects roughly, the largest of them exactly, and how far the rough ones can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwork.errors import UserError


@dataclass(frozen=True, eq=False)
class Screening:
    """Rough effects of all cells, and `chosen`: those of the largest mean effect, which are computed again exactly."""

    rough: Float[Tensor, "*cells batch"]
    chosen: Bool[Tensor, "*cells"]

    def confirmed(self, exact: Float[Tensor, "*cells batch"]) -> Float[Tensor, "*cells batch"]:
        """Exact effects where they were chosen, rough ones elsewhere."""
        return torch.where(self.chosen[..., None], exact, self.rough.to(exact))

    def attrs(self, exact: Float[Tensor, "*cells batch"]) -> dict[str, int | float | str]:
        """What the confirmation showed.

        `screening_error`: the largest error of a rough mean effect among the confirmed cells. `certain_top`: how many
        of the largest effects no other cell can exceed, if no cell's rough effect is further off than that.
        """
        rough, mean = self.rough.double().mean(-1), exact.double().mean(-1)
        error = float((rough - mean)[self.chosen].abs().max())
        others = rough[~self.chosen].abs()
        bar = float(others.max()) + error if others.numel() else -1.0
        return {
            "screened": "products with weights in bfloat16; cells that are not confirmed are rough",
            "confirmed_cells": int(self.chosen.sum()),
            "screening_error": error,
            "certain_top": int((mean[self.chosen].abs() > bar).sum()),
        }


def screening(rough: Float[Tensor, "*cells batch"], count: int) -> Screening:
    """Choose the `count` cells with the largest mean effect, of either sign."""
    size = rough.double().mean(-1).abs()
    chosen = torch.zeros(size.numel(), dtype=torch.bool)
    chosen[size.flatten().cpu().argsort(descending=True, stable=True)[:count]] = True
    return Screening(rough, chosen.view(size.shape).to(rough.device))


def checked_count(confirm: int) -> int:
    """`UserError` unless at least one cell is to be confirmed."""
    if confirm < 1:
        raise UserError(f"Screening confirms the largest effects exactly: confirm = {confirm}; it needs 1 or more.")
    return confirm
