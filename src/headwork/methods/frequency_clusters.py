"""Which frequency each neuron and each head's attention has, over all pairs of numbers (Nanda et al. 2023).

A function of (a, b) belongs to the frequency whose eight waves – cos and sin of wa, of wb, and the four products of one
of a with one of b – explain the largest share of its variance over all p² pairs. A neuron is counted as clustered where
that share is larger than a bound, 0.85 in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.fourier import centred, highest_frequency, one_frequency_power
from headwork.methods.key_frequencies import check_draws
from headwork.methods.number_pairs import renamed

if TYPE_CHECKING:
    import xarray

BOUND = 0.85
"""The share of variance from which Nanda et al. 2023 count a neuron to a frequency."""


def neuron_frequencies(
    neurons: Float[Tensor, "first second neuron"], *, bound: float = BOUND, draws: int = 10, seed: int = 0
) -> xarray.Dataset:
    """Each neuron's frequency, and how many neurons have one, beside the same network with its numbers renamed.

    Dims `neuron`, `frequency` (1 … ⌊p/2⌋), `draw`; a neuron that is the same for all pairs has NaN and frequency 0:

    - `share` [neuron, frequency]: share of the neuron's variance that the frequency explains;
    - `largest`, `of` [neuron]: the largest of these shares, and its frequency;
    - `clustered` []: the share of all neurons, constant ones included, whose largest share exceeds `bound`;
    - `constant` []: how many neurons are the same for all pairs;
    - `null_clustered` [draw]: `clustered` in each renaming; `null_largest` [draw]: the largest share of any neuron.

    Raises `UserError` for other shapes than [p, p, neuron], values that are not finite, a bound outside 0–1.
    """
    if neurons.dim() != 3 or neurons.shape[0] != neurons.shape[1] or not neurons.shape[2]:
        raise UserError(f"The neurons have shape {list(neurons.shape)}; needed is [p, p, neurons].")
    if not neurons.isfinite().all():
        raise UserError("Some neurons are not finite.")
    if not 0 < bound < 1:
        raise UserError(f"bound = {bound}; a share of variance lies between 0 and 1.")
    check_draws(draws)
    p = len(neurons)
    share = frequency_shares(neurons)
    generator = torch.Generator().manual_seed(seed)
    null = torch.stack([_largest(frequency_shares(renamed(neurons, generator))) for _ in range(draws)])
    largest, constant = _largest(share), share[0].isnan()
    of = torch.where(constant, 0, share.nan_to_num(-1).argmax(0) + 1)
    import xarray

    units = {"units": "share of variance"}
    return xarray.Dataset(
        {
            "share": (("neuron", "frequency"), share.T.numpy(), units),
            "largest": ("neuron", largest.where(~constant, torch.nan).numpy(), units),
            "of": ("neuron", of.numpy(), {"units": "frequency"}),
            "clustered": ((), _over(largest, bound).item(), {"units": "share of neurons"}),
            "constant": ((), int(constant.sum()), {"units": "neurons"}),
            "null_clustered": ("draw", _over(null, bound).numpy(), {"units": "share of neurons"}),
            "null_largest": ("draw", null.amax(1).numpy(), units),
        },
        coords={"frequency": range(1, highest_frequency(p) + 1)},
        attrs={"method": "neurons by frequency", "modulus": p, "bound": bound, "draws": draws, "seed": seed},
    )


def clusters(found: xarray.Dataset) -> dict[int, list[int]]:
    """The clustered neurons of each frequency that has any, from the dataset of `neuron_frequencies`."""
    of, inside = found["of"].values, found["largest"].values > found.attrs["bound"]
    return {int(k): np.flatnonzero(inside & (of == k)).tolist() for k in np.unique(of[inside])}


def attention_frequencies(pattern: Float[Tensor, "first second head key"]) -> xarray.Dataset:
    """Each head's attention as a function of the two numbers, and the frequency that explains most of it.

    Dims `first`, `second`, `head`, `key` (position looked at), `frequency`; where attention does not vary, NaN and 0:

    - `pattern` [first, second, head, key]: attention from the position of the answer;
    - `mean`, `deviation` [head, key]: its mean over all pairs, and its standard deviation;
    - `share` [head, key, frequency]: share of its variance that the frequency explains; `of` [head, key]: the largest.
    """
    if pattern.dim() != 4 or pattern.shape[0] != pattern.shape[1]:
        raise UserError(f"The attention has shape {list(pattern.shape)}; needed is [p, p, head, key].")
    p, flat = len(pattern), pattern.double().flatten(2)
    share = frequency_shares(flat)
    of = torch.where(share[0].isnan(), 0, share.nan_to_num(-1).argmax(0) + 1)
    places = pattern.shape[2:]
    import xarray

    dims = ("head", "key")
    return xarray.Dataset(
        {
            "pattern": (("first", "second", *dims), pattern.numpy(), {"units": "attention"}),
            "mean": (dims, flat.mean((0, 1)).view(places).numpy(), {"units": "attention"}),
            "deviation": (dims, centred(flat).square().mean((0, 1)).sqrt().view(places).numpy()),
            "share": ((*dims, "frequency"), share.T.unflatten(0, places).numpy(), {"units": "share of variance"}),
            "of": (dims, of.view(places).numpy(), {"units": "frequency"}),
        },
        coords={"frequency": range(1, highest_frequency(p) + 1)},
        attrs={"method": "attention by frequency", "modulus": p},
    )


def frequency_shares(values: Float[Tensor, "first second n"]) -> Float[Tensor, "frequency n"]:
    """The share of each function's variance over all pairs that each frequency from 1 on explains; constants NaN."""
    varies = values.amax((0, 1)) > values.amin((0, 1))
    values = centred(values)
    share = one_frequency_power(values) / values.square().sum((0, 1))
    return share.where(varies, torch.nan)


def _largest(share: Float[Tensor, "frequency n"]) -> Float[Tensor, " n"]:
    """The largest share of each function; 0 for constants."""
    return share.nan_to_num(0).amax(0)


def _over(largest: Float[Tensor, "*draw n"], bound: float) -> Float[Tensor, "*draw"]:
    return (largest > bound).double().mean(-1)
