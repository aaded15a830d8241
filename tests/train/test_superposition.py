"""Toy models trained many at once equal those trained one at a time by the obvious loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.train import superposition as module
from headwork.train.recipe import derived_seed
from headwork.train.superposition import (
    Kind,
    Schedule,
    Toy,
    TrainedToy,
    geometry_grid,
    gradients,
    phase_grid,
    toys,
    train_toys,
)

SHORT = Schedule(steps=40, batch=16)
KINDS: tuple[Kind, ...] = ("reconstruction", "absolute value")


def trained_alone(toy: Toy, schedule: Schedule) -> tuple[list[Tensor], float]:
    """The network by automatic differentiation, example by row, in float64; and its mean loss on what is drawn next."""
    n, m, absolute = toy.features, toy.hidden, toy.kind == "absolute value"
    weights = torch.Generator().manual_seed(derived_seed(toy.seed, "weights"))
    W = torch.nn.Parameter(torch.randn(m, n, generator=weights).double() * math.sqrt(2 / (n + m)))
    W_out = torch.nn.Parameter(torch.randn(n, m, generator=weights).double() * math.sqrt(2 / (n + m)))
    b = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = torch.optim.Adam([W, W_out, b] if absolute else [W, b], lr=schedule.rate)
    data = torch.Generator().manual_seed(derived_seed(toy.seed, "data"))

    def loss_on(uniform: Tensor) -> Tensor:
        value = uniform / toy.density
        x = torch.where(uniform < toy.density, 2 * value - 1 if absolute else value, 0)
        hidden = torch.relu(x @ W.T) if absolute else x @ W.T
        out = torch.relu(hidden @ (W_out if absolute else W.T).T + b)
        return ((out - (x.abs() if absolute else x)) ** 2 * torch.tensor(toy.importance)).sum(1).mean()

    drawn = torch.empty(0)
    for step in range(schedule.steps):
        if step % module.DRAWN == 0:
            drawn = torch.rand(module.DRAWN, n, schedule.batch, generator=data).double()
        optimizer.param_groups[0]["lr"] = schedule.rate * (1 + math.cos(math.pi * step / schedule.steps)) / 2
        optimizer.zero_grad()
        loss_on(drawn[step % module.DRAWN].T).backward()
        optimizer.step()
    fresh = torch.rand(module.DRAWN, n, 256, generator=data).double()[:16]
    loss = sum(loss_on(uniform.T).item() for uniform in fresh) / 16
    return [W.detach(), (W_out if absolute else W.T).detach(), b.detach()], loss


def some(kind: Kind) -> list[Toy]:
    """Two shapes, two densities, two importances and two seeds, mixed."""
    small = toys(3, 2, densities=(0.2, 1.0), importances=((), (1.0, 0.5, 2.0)), seeds=(0, 7), kind=kind)
    return [*small[::2], *toys(4, 3, densities=(0.5,), seeds=(7,), kind=kind), *small[1::2]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_of_a_batch_equals_the_slow_loop_alone(kind: Kind) -> None:
    for toy, found in zip(some(kind), train_toys(some(kind), SHORT, dtype=torch.float64)):
        alone, loss = trained_alone(toy, SHORT)
        for value, wanted in zip((found.W, found.W_out, found.b), alone):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-10)
        assert found.toy == toy
        assert found.loss == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_the_company_changes_little(kind: Kind) -> None:
    """The tolerance is that of float32 over this many steps; which networks share a product decides its rounding."""
    schedule = Schedule(steps=300, batch=32)
    together = train_toys(some(kind), schedule)
    for toy, found in zip(some(kind)[:3], together):
        [alone] = train_toys([toy], schedule)
        torch.testing.assert_close(found.W, alone.W, rtol=0, atol=1e-4)
        assert found.loss == pytest.approx(alone.loss, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_the_loss(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    W, W_out, b, x, importance = (
        torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 4), (4, 3), (4, 1), (4, 50), (4, 1))
    )
    x = x if kind == "absolute value" else x.abs()
    free = [W, b] if kind == "reconstruction" else [W, W_out, b]
    for value in free:
        value.requires_grad_()
    readout = W.mT if kind == "reconstruction" else W_out
    hidden = W @ x if kind == "reconstruction" else (W @ x).relu()
    loss = (((readout @ hidden + b).relu() - x.abs()) ** 2 * importance).sum(1).mean(1)
    expected = torch.autograd.grad(loss.sum(), free)
    with torch.no_grad():
        found = gradients(kind, W, W_out, b, x, importance)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_feature_is_there_as_often_as_its_density_says_and_uniform_then() -> None:
    group = toys(2, 1, densities=(0.1, 1.0), seeds=(0, 1))
    x = torch.cat(list(module._Data(group, torch.float64).batches(50, 256)), 2)
    there = (x > 0).double().mean((1, 2))
    torch.testing.assert_close(there, torch.tensor([0.1, 0.1, 1, 1]).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(x.sum((1, 2)) / (x > 0).sum((1, 2)), torch.full((4,), 0.5).double(), rtol=0, atol=0.02)
    assert not torch.equal(x[2], x[3])  # another seed, other examples
    signed = toys(2, 1, densities=(0.1,), seeds=(0,), kind="absolute value")
    y = torch.cat(list(module._Data(signed, torch.float64).batches(50, 256)), 2)
    assert abs(float((y != 0).double().mean()) - 0.1) < 0.01
    assert -1 <= float(y.min()) < -0.9
    assert 0.9 < float(y.max()) <= 1


def test_features_that_fit_are_represented_in_full() -> None:
    """As many dimensions as features: nothing need be lost, and what is called is the network that was trained."""
    [found] = train_toys([Toy(2, 2, 0.5)], Schedule(steps=600, batch=128, rate=3e-2))
    assert found.loss < 1e-4
    torch.testing.assert_close(found.W.T @ found.W, torch.eye(2), rtol=0, atol=0.02)
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(x), x, rtol=0, atol=0.03)
    neurons = torch.tensor([[1.0], [-1.0]])
    exact = TrainedToy(Toy(1, 2, 0.5, kind="absolute value"), neurons, neurons.T.abs(), torch.zeros(1), 0.0)
    torch.testing.assert_close(exact(torch.tensor([[-0.5], [0.25]])), torch.tensor([[0.5], [0.25]]))


def test_training_leaves_the_processors_treatment_of_small_numbers_as_it_was() -> None:
    def flushes() -> bool:
        return not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)

    seen: list[bool] = []
    for before in (False, True):
        torch.set_flush_denormal(before)
        try:
            train_toys([Toy(2, 1, 0.5)], Schedule(30, 4), progress=lambda _: seen.append(flushes()))
            assert flushes() == before
        finally:
            torch.set_flush_denormal(False)
    assert seen == [True] * 4


def test_progress_counts_every_step_of_every_network() -> None:
    calls: list[int] = []
    train_toys(some("reconstruction"), SHORT, progress=calls.append)
    assert sum(calls) == 40 * 9


def test_the_grids_cover_what_they_say() -> None:
    phase = phase_grid(5, range(3))
    assert len(phase) == 5 * 5 * 3
    assert {toy.shape for toy in phase} == {("reconstruction", 2, 1)}
    assert {round(toy.importance[1] / toy.importance[0], 3) for toy in phase} == {0.1, 0.316, 1, 3.162, 10}
    assert {toy.density for toy in phase} >= {1.0}
    assert len({toy.seed for toy in geometry_grid()}) >= 30


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toy(0, 1, 0.5), "features = 0"),
        (lambda: Toy(2, 1.5, 0.5), "hidden = 1.5"),  # type: ignore[arg-type]
        (lambda: Toy(2, 1, 0.0), "density = 0.0; it must be above 0"),
        (lambda: Toy(2, 1, math.nan), "density = nan"),
        (lambda: Toy(2, 1, 0.5, (1.0,)), "no importances of 2 features"),
        (lambda: Toy(2, 1, 0.5, (1.0, 0.0)), "above 0"),
        (lambda: Toy(2, 1, 0.5, seed=-1), "seed = -1"),
        (lambda: Toy(2, 1, 0.5, kind="absolute"), "absolute value"),  # type: ignore[arg-type]
        (lambda: Schedule(steps=0), "steps = 0"),
        (lambda: Schedule(rate=math.inf), "rate = inf"),
        (lambda: train_toys([]), "No toy model"),
        (lambda: train_toys([Toy(2, 1, 0.5)], Schedule(40, 8, 1e30)), "does not stay finite"),
    ],
)
def test_impossible_values_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
