"""Effects of interventions as a dataset: raw, and divided by what they could have been at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.methods.ablation_choices import Direction

if TYPE_CHECKING:
    import xarray

Variables = dict[str, tuple[Sequence[str], Any, dict[str, str]]]

IN_METRIC = {"units": "units of the metric"}
RATIO = {"units": "1"}


def between_runs(
    effect: Float[Tensor, "*cells batch"],
    coords: Mapping[str, Sequence[Any]],
    labels: Sequence[str],
    base: Float[Tensor, " batch"],
    other: Float[Tensor, " batch"],
    direction: Direction,
    attrs: Mapping[str, Any],
) -> xarray.Dataset:
    """Effects of what one run puts into another (`base`): a dataset with dims `coords` and `prompt`.

    - `effect` [*coords, prompt], in the metric's unit, as given;
    - `normalised` [*coords]: mean effect ÷ mean of (other − base), NaN where the two runs have the same mean;
    - `normalised_by_prompt` [*coords, prompt]: effect ÷ (other − base), NaN where a prompt has none;
    - `clean`, `corrupt` [prompt]: the metric of the two runs; base is the corrupt one when `direction` is denoising.
    """
    import xarray

    clean, corrupt = (other, base) if direction == "denoising" else (base, other)
    variables = effect_variables(effect, list(coords), other - base, other.abs() + base.abs())
    variables["clean"] = ("prompt", _array(clean), IN_METRIC)
    variables["corrupt"] = ("prompt", _array(corrupt), IN_METRIC)
    named = {name: list(values) for name, values in coords.items()} | {"prompt": list(labels)}
    return xarray.Dataset(variables, named, dict(attrs))


def effect_variables(
    effect: Float[Tensor, "*cells batch"],
    dims: Sequence[str],
    gap: Float[Tensor, " batch"],
    size: Float[Tensor, " batch"],
) -> Variables:
    """`effect`, `normalised` (ratio of means, which no single prompt with a small gap rules) and the ratio by prompt.

    `gap` is divided by; where it is no more than what rounding leaves of numbers as large as `size`, the ratio is NaN.
    """
    noise = 16 * torch.finfo(effect.dtype).eps
    effect, gap, size = effect.double().cpu(), gap.double().cpu(), size.double().cpu()
    none = gap.abs() <= noise * size
    no_mean = bool(gap.mean().abs() <= noise * size.mean())
    by_prompt = torch.where(none, torch.nan, effect / torch.where(none, 1.0, gap))
    normalised = torch.full_like(effect[..., 0], torch.nan) if no_mean else effect.mean(-1) / gap.mean()
    return {
        "effect": ((*dims, "prompt"), effect.numpy(), IN_METRIC),
        "normalised": (tuple(dims), normalised.numpy(), RATIO),
        "normalised_by_prompt": ((*dims, "prompt"), by_prompt.numpy(), RATIO),
    }


def _array(values: Float[Tensor, " batch"]) -> Any:
    return values.double().cpu().numpy()
