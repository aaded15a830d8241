"""The real Fourier basis modulo p, and what frequencies make of functions of one number and of two."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.adders import noise
from torch import Tensor

from headwork.errors import UserError
from headwork.methods import fourier

MODULI = (3, 4, 7, 12)


def wave(p: int, k: int, phase: float = 0) -> Tensor:
    return torch.tensor([math.cos(2 * math.pi * k * x / p + phase) for x in range(p)], dtype=torch.float64)


def directions(p: int, k: int) -> list[Tensor]:
    """cos(w(a + b)) and sin(w(a + b)) over all pairs, each of length 1; only the first where the second vanishes."""
    found = []
    for phase in (0, -math.pi / 2):
        values = torch.tensor(
            [[math.cos(2 * math.pi * k * (a + b) / p + phase) for b in range(p)] for a in range(p)], dtype=torch.float64
        )
        if values.norm() > 1e-6:
            found.append(values / values.norm())
    return found


@pytest.mark.parametrize("p", [*MODULI, 59, 113])
def test_the_basis_is_orthonormal_and_each_row_has_its_frequency(p: int) -> None:
    basis, frequency = fourier.fourier_basis(p), fourier.frequency_of_row(p)
    torch.testing.assert_close(basis @ basis.T, torch.eye(p, dtype=torch.float64), rtol=0, atol=1e-12)
    assert frequency.tolist() == sorted([0, *range(1, p // 2 + 1), *range(1, (p + 1) // 2)])
    for row, k in zip(basis, frequency.tolist()):
        along = sum(
            abs(float(row @ w / w.norm())) ** 2 for w in (wave(p, k), wave(p, k, math.pi / 2)) if w.norm() > 1e-6
        )
        assert along == pytest.approx(1)
    assert float(basis[1] @ wave(p, 1)) > 0 > float(basis[2] @ wave(p, 1, math.pi / 2)) or p == 4


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 20), st.integers(0, 1000))
def test_powers_add_up_to_the_sum_of_squares(p: int, seed: int) -> None:
    one, two = noise(p, 2, seed=seed), noise(p, p, 2, seed=seed)
    torch.testing.assert_close(fourier.spectrum(one).sum(), one.square().sum())
    torch.testing.assert_close(fourier.transform_pairs(two).square().sum(), two.square().sum())


@pytest.mark.parametrize("p", MODULI)
def test_a_wave_of_any_phase_has_one_frequency(p: int) -> None:
    for k in range(1, (p - 1) // 2 + 1):
        power = fourier.spectrum(3 * wave(p, k, 0.7)[:, None])
        expected = torch.zeros(p // 2 + 1, dtype=torch.float64)
        expected[k] = 9 * p / 2
        torch.testing.assert_close(power, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", MODULI)
def test_waves_in_the_sum_equal_inner_products_written_out(p: int) -> None:
    values = noise(p, p, 3)
    power = fourier.sum_power(values)
    for k in range(1, p // 2 + 1):
        slow, squares = torch.zeros_like(values), 0.0
        for direction in directions(p, k):
            for n in range(3):
                inner = (direction * values[:, :, n]).sum()
                slow[:, :, n] += inner * direction
                squares += float(inner**2)
        torch.testing.assert_close(fourier.sum_part(values, torch.tensor([k])), slow)
        assert float(power[k]) == pytest.approx(squares)
    every = fourier.sum_part(values, torch.arange(p // 2 + 1))
    torch.testing.assert_close(fourier.sum_part(every, torch.arange(p // 2 + 1)), every)


@pytest.mark.parametrize("p", MODULI)
def test_eight_waves_of_a_frequency_equal_inner_products_written_out(p: int) -> None:
    values, basis = noise(p, p, 2), fourier.fourier_basis(p)
    coefficients = fourier.transform_pairs(values)
    found = fourier.one_frequency_power(values)
    for k in range(1, p // 2 + 1):
        rows = [0, *(i for i in range(p) if int(fourier.frequency_of_row(p)[i]) == k)]
        for n in range(2):
            squares = 0.0
            for i in rows:
                for j in rows:
                    inner = float((torch.outer(basis[i], basis[j]) * values[:, :, n]).sum())
                    assert float(coefficients[i, j, n]) == pytest.approx(inner, abs=1e-9)
                    squares += inner**2 if i or j else 0
            assert float(found[k - 1, n]) == pytest.approx(squares)


def test_a_modulus_without_frequencies_is_refused() -> None:
    with pytest.raises(UserError, match="The modulus is 2; frequencies need one of 3 or more"):
        fourier.fourier_basis(2)
