"""Batched linear fits reach the optimum of each problem, and units are ranked by what they tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize as by_scipy
from torch import Tensor

from headwork.methods.linear_fit import fit_classes, fit_numbers, informative_units, lasso_units, minimise


def data(n: int, d: int, problems: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (problems, n), generator=generator)
    y[:, 0], y[:, 1] = 0, classes - 1
    return x, y


def cost(weights: Tensor, x: Tensor, y: Tensor, penalty: float) -> Tensor:
    logits = x @ weights[:-1] + weights[-1]
    return torch.nn.functional.cross_entropy(logits, y) + penalty / 2 * weights[:-1].square().sum()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(5, 40), st.integers(1, 12), st.integers(2, 4), st.sampled_from([1e-3, 0.1, 10.0]), st.integers(0, 99)
)
def test_softmax_regression_reaches_the_optimum(n: int, d: int, classes: int, penalty: float, seed: int) -> None:
    x, y = data(n, d, 3, classes, seed)
    found = fit_classes(x[None], y, classes, penalty)
    for weights, labels in zip(found, y):
        free = weights.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cost(free, x, labels, penalty), free)
        assert float(slope.abs().max()) < 2e-6


def test_softmax_regression_equals_scipys() -> None:
    x, y = data(40, 5, 2, 3)

    def of(flat: np.ndarray, labels: Tensor) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).view(6, 3).requires_grad_()
        loss = cost(weights, x, labels, 0.05)
        return float(loss.detach()), torch.autograd.grad(loss, weights)[0].flatten().numpy()

    for weights, labels in zip(fit_classes(x[None], y, 3, 0.05), y):
        slow = by_scipy(of, np.zeros(18), (labels,), jac=True, method="BFGS", options={"gtol": 1e-9}).x
        expected = torch.from_numpy(slow).view(6, 3)
        # Adding a number to all intercepts changes nothing.
        expected[-1] += weights[-1].mean() - expected[-1].mean()
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_a_problem_does_not_depend_on_its_company() -> None:
    x, y = data(50, 8, 5, 2)
    own = x * torch.linspace(0.1, 30, 5, dtype=torch.float64).view(-1, 1, 1)
    together = fit_classes(own, y, 2, 0.01)
    for i in range(5):
        torch.testing.assert_close(
            fit_classes(own[i : i + 1], y[i : i + 1], 2, 0.01)[0], together[i], rtol=0, atol=1e-8
        )


def test_minima_of_badly_scaled_functions_are_found() -> None:
    curvature = torch.tensor([[1.0, 1e4], [1e-2, 3.0], [5.0, 5.0]], dtype=torch.float64)
    centre = torch.tensor([[3.0, -2.0], [-50.0, 1.0], [0.0, 0.0]], dtype=torch.float64)

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        away = point - centre
        return (curvature * away.square()).sum(1) / 2, curvature * away

    torch.testing.assert_close(minimise(objective, torch.zeros_like(centre)), centre, rtol=0, atol=1e-4)


def test_ridge_regression_equals_least_squares_on_stacked_rows() -> None:
    x, _ = data(30, 4, 1, 2)
    y = torch.randn(3, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fit_numbers(x[None], y, 0.2)
    own = fit_numbers(x.expand(3, -1, -1), y, 0.2)
    torch.testing.assert_close(found, own)
    for weights, one in zip(found, y):
        centred = x - x.mean(0)
        rows = torch.cat([centred, (0.2 * 30) ** 0.5 * torch.eye(4, dtype=torch.float64)])
        right = torch.cat([one - one.mean(), torch.zeros(4, dtype=torch.float64)])
        expected = torch.linalg.lstsq(rows, right[:, None]).solution
        torch.testing.assert_close(weights[:-1], expected)
        torch.testing.assert_close(weights[-1, 0], one.mean() - x.mean(0) @ expected[:, 0])


def test_informative_units_are_those_whose_classes_differ() -> None:
    x, y = data(40, 6, 2, 3)
    x[:, 2] = 1.5  # constant
    found = informative_units(x, torch.nn.functional.one_hot(y, 3).double())
    for row, labels in zip(found.tolist(), y):
        for unit in range(6):
            values = x[:, unit]
            means = torch.stack([values[labels == c].mean() for c in labels])
            expected = 0.0 if unit == 2 else float(means.var(correction=0) / values.var(correction=0))
            assert row[unit] == pytest.approx(expected, abs=1e-12)
    numbers = torch.randn(2, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = informative_units(x, numbers[..., None])
    for row, target in zip(found, numbers):
        for unit in (0, 1, 3):
            assert float(row[unit]) == pytest.approx(np.corrcoef(x[:, unit], target)[0, 1] ** 2)
        assert row[2] == 0


def test_the_lasso_does_not_take_two_units_for_one_thing() -> None:
    x, _ = data(300, 10, 1, 2)
    x[:, 5] = x[:, 3] + 0.3 * x[:, 5]  # nearly a copy
    numbers = 2 * x[:, 3] + x[:, 7]
    classes = torch.nn.functional.one_hot((numbers > 0).long(), 2).double()[None]
    for targets in (classes, numbers[None, :, None]):
        best = lasso_units(x, targets).argsort(1, descending=True)[0, :2]
        assert set(best.tolist()) == {3, 7}
        assert set(informative_units(x, targets).argsort(1, descending=True)[0, :2].tolist()) == {3, 5}


def test_on_unrelated_units_the_lasso_ranks_by_correlation() -> None:
    q = torch.linalg.qr(torch.cat([torch.ones(60, 1, dtype=torch.float64), data(60, 8, 1, 2)[0]], 1)).Q[:, 1:]
    numbers = q @ torch.tensor([3.0, -1, 0.5, 4, -2, 0.1, 0.7, -5], dtype=torch.float64)
    found = lasso_units(q, numbers[None, :, None])[0]
    assert found.argsort(descending=True)[:7].tolist() == [7, 3, 0, 4, 1, 6, 2]
    # Standardised, these units have the identity as their covariance, so a weight is its correlation less the penalty.
    size = (q.T @ numbers).abs() / 60**0.5
    for unit in range(7):
        path = size.max() * 0.01 ** (torch.arange(1, 26, dtype=torch.float64) / 25)
        place = int((size[unit] > path).int().argmax())
        left = float(size[unit] - path[place])
        assert float(found[unit]) == pytest.approx(25 - place + left / (1 + left), abs=1e-6)
