"""Fourier analysis of functions of whole numbers modulo p: of one number, and of a pair of them.

The real basis is orthonormal: the constant 1/√p, then √(2/p) cos(2πkx/p) and √(2/p) sin(2πkx/p) for the frequencies
k = 1 … ⌊p/2⌋; where p is even the last one is (−1)^x/√p alone. Sums of squares of coefficients are therefore sums of
squares of values, and a frequency's power is the sum over its rows. Frequencies k and p − k are the same wave read
backwards, so only those up to p/2 are counted.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from headwork.errors import UserError

OneNumber = Float[Tensor, "p n"]
PairOfNumbers = Float[Tensor, "p p n"]


def highest_frequency(p: int) -> int:
    """⌊p/2⌋. Raises `UserError` for a modulus that has no frequency but the constant one."""
    if p < 3:
        raise UserError(f"The modulus is {p}; frequencies need one of 3 or more.")
    return p // 2


def fourier_basis(p: int) -> Float[Tensor, "p p"]:
    """The orthonormal basis in float64, one wave a row."""
    highest_frequency(p)
    k, x = frequency_of_row(p)[:, None], torch.arange(p)
    # Whole numbers modulo p are exact, so that the angle loses nothing where k·x is large.
    angle = 2 * math.pi * ((k * x) % p).double() / p
    waves = torch.where(torch.arange(p)[:, None] % 2 == 0, angle.sin(), angle.cos())
    waves[0] = 1
    return waves / waves.norm(dim=1, keepdim=True)


def frequency_of_row(p: int) -> Int[Tensor, " p"]:
    """Which frequency each row of the basis has: 0, 1, 1, 2, 2, …"""
    return (torch.arange(p) + 1) // 2


def by_frequency(rows: Float[Tensor, row * rest]) -> Float[Tensor, frequency * rest]:
    """Sums over the rows of the basis that have the same frequency, the constant's first."""
    p = len(rows)
    return rows.new_zeros((highest_frequency(p) + 1, *rows.shape[1:])).index_add(0, frequency_of_row(p), rows)


def spectrum(values: OneNumber) -> Float[Tensor, " frequency"]:
    """The power of each frequency from 0 on, summed over n: Σ of squares of `values`, split by frequency."""
    return by_frequency((fourier_basis(len(values)) @ values.double()).square().sum(1))


def transform_pairs(values: PairOfNumbers) -> Float[Tensor, "p p n"]:
    """Coefficients of functions of (a, b) in products of two waves: row of a's wave, row of b's wave."""
    waves = fourier_basis(len(values))
    left = (waves @ values.double().flatten(1)).unflatten(1, values.shape[1:])
    return waves @ left


def centred(values: PairOfNumbers) -> PairOfNumbers:
    """Less the mean over all pairs, in float64."""
    values = values.double()
    return values - values.mean((0, 1))


def sum_waves(values: PairOfNumbers) -> Complex[Tensor, "frequency n"]:
    """Σ over a and b of values · exp(−2πik(a + b)/p), for each frequency k from 0 to ⌊p/2⌋."""
    p = len(values)
    numbers = torch.arange(p)
    total = (numbers[:, None] + numbers).flatten() % p
    along = values.new_zeros(p, values.shape[2], dtype=torch.float64).index_add(0, total, values.double().flatten(0, 1))
    return torch.fft.rfft(along, dim=0)


def times_counted(p: int) -> Float[Tensor, " frequency"]:
    """How many of the p complex waves each frequency stands for: 2, but 1 for the constant and, p being even, p/2."""
    counted = torch.full((highest_frequency(p) + 1,), 2.0, dtype=torch.float64)
    counted[0] = 1
    if p % 2 == 0:
        counted[-1] = 1
    return counted


def sum_power(values: PairOfNumbers) -> Float[Tensor, " frequency"]:
    """Σ of squares of what cos(w(a + b)) and sin(w(a + b)) make of `values`, w = 2πk/p, for each k from 0 on."""
    p = len(values)
    return times_counted(p) * sum_waves(values).abs().square().sum(1) / p**2


def sum_part(values: PairOfNumbers, frequencies: Int[Tensor, " key"]) -> Float[Tensor, "p p n"]:
    """The projection on cos(w(a + b)) and sin(w(a + b)) of these frequencies, for each of the n functions."""
    p = len(values)
    waves = sum_waves(values)
    kept = torch.zeros_like(waves)
    kept[frequencies] = waves[frequencies]
    along = torch.fft.irfft(kept, n=p, dim=0) / p
    numbers = torch.arange(p)
    return along[(numbers[:, None] + numbers) % p]


def one_frequency_power(values: PairOfNumbers) -> Float[Tensor, "frequency n"]:
    """Σ of squares of what one frequency k ≥ 1 alone makes of each function: its waves in a, in b, and their products.

    These are the eight terms by which Nanda et al. 2023 assign a neuron to a frequency: cos wa, sin wa, cos wb, sin wb
    and the four products of one of a with one of b.
    """
    p = len(values)
    frequency, waves = frequency_of_row(p), fourier_basis(p)
    left = (waves @ values.double().flatten(1)).unflatten(1, values.shape[1:])
    # Of b's waves each row of a's needs only the constant and those of its own frequency.
    found = by_frequency((left.sum(1) / math.sqrt(p)).square())[1:]
    found += by_frequency((waves @ left[0]).square())[1:]
    for k in range(1, highest_frequency(p) + 1):
        rows = frequency == k
        found[k - 1] += torch.einsum("bq,aqn->abn", waves[rows], left[rows]).square().sum((0, 1))
    return found
