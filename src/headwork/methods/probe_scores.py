"""How well a probe does on examples it has not seen, with 95 % intervals over them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.methods.interchange import wilson


def accuracy(found: Int[Tensor, "p n"], labels: Int[Tensor, "p n"]) -> Float[Tensor, " p"]:
    """Share of right answers."""
    return (found == labels).double().mean(1)


def balanced_accuracy(found: Int[Tensor, "p n"], labels: Int[Tensor, "p n"]) -> Float[Tensor, " p"]:
    """Mean over the classes that occur of the share of right answers in each; chance is 1 ÷ their number."""
    right, total, classes = (found == labels).double(), torch.zeros(len(labels), dtype=torch.float64), 0
    classes = torch.zeros_like(total)
    for c in labels.unique():
        here = (labels == c).double()
        count = here.sum(1)
        total += torch.where(count > 0, (right * here).sum(1) / count.clamp(min=1), 0.0)
        classes += count > 0
    return total / classes


def variance_explained(found: Float[Tensor, "p n"], labels: Float[Tensor, "p n"]) -> Float[Tensor, " p"]:
    """R²: 1 − squared error ÷ squared deviation from these examples' own mean; NaN where they are all equal."""
    deviation = (labels - labels.mean(1, keepdim=True)).square().sum(1)
    return torch.where(deviation > 0, 1 - (labels - found).square().sum(1) / deviation, torch.nan)


def interval(
    measure: str, found: Float[Tensor, " n"] | Int[Tensor, " n"], labels: Tensor, groups: Int[Tensor, " n"] | None
) -> tuple[float, float]:
    """95 %, over examples: Wilson's for accuracy, for balanced accuracy Wilson's of every class combined (Zou & Donner
    2008). For R², and wherever examples come in groups, a jackknife over examples or groups with Student's t. Where it
    sees no spread in a share, as when all is right, Wilson's with the groups as its examples."""
    if measure == "accuracy" and groups is None:
        return wilson(int((found == labels).sum()), len(labels))
    if measure == "balanced_accuracy" and groups is None:
        return _combined(found, labels)
    return _jackknife(measure, found, labels, torch.arange(len(labels)) if groups is None else groups)


def _combined(found: Tensor, labels: Tensor) -> tuple[float, float]:
    below = above = total = 0.0
    classes = labels.unique()
    for c in classes:
        right = found[labels == c] == c
        share = float(right.double().mean())
        low, high = wilson(int(right.sum()), len(right))
        total, below, above = total + share, below + (share - low) ** 2, above + (high - share) ** 2
    count = len(classes)
    return max(0.0, (total - math.sqrt(below)) / count), min(1.0, (total + math.sqrt(above)) / count)


def _jackknife(measure: str, found: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, float]:
    from scipy import stats

    score = MEASURES[measure]
    whole = float(score(found[None], labels[None])[0])
    kept = [groups != g for g in groups.unique()]
    if len(kept) < 2:
        return math.nan, math.nan
    without = torch.tensor([float(score(found[k][None], labels[k][None])[0]) for k in kept], dtype=torch.float64)
    count = len(kept)
    error = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    if measure == "r2":
        return whole - half, whole + half
    # No spread among a few groups is no certainty.
    return wilson(round(whole * count), count) if error < 1e-12 else (max(0.0, whole - half), min(1.0, whole + half))


MEASURES = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "r2": variance_explained}
