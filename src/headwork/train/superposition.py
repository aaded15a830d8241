"""Toy models of superposition (Elhage et al. 2022), many networks trained at once.

Two kinds, both on sparse data: each feature of an example is there with probability `density`, apart from the others.

- *reconstruction*: x̂ = ReLU(Wᵀ W x + b), a feature that is there being uniform in [0, 1]: can n features be read off
  m < n hidden dimensions?
- *absolute value*: ŷ = ReLU(W_out ReLU(W x) + b) for y = |x|, a feature that is there being uniform in [−1, 1]: can
  neurons compute on features in superposition?

The loss of an example is Σᵢ Iᵢ (wantedᵢ − foundᵢ)², with the importances I. All networks of one shape are trained by
the same matrix products; no network's numbers enter another's, so each comes out as when trained alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.tasks.examples import whole
from headwork.train.recipe import derived_seed

Kind = Literal["reconstruction", "absolute value"]
DRAWN = 25
"""Steps whose data is drawn at once. A network's data depends on it."""


@dataclass(frozen=True)
class Toy:
    """One network: `features` in, `hidden` dimensions or neurons, and the data it is trained on.

    `density` is the probability that a feature is there (one minus the paper's sparsity); `importance` weighs the
    features in the loss, all alike where left out. `seed` decides the initial weights and the random numbers of the
    data, which networks that differ in density or importance alone share. Raises `UserError` for impossible values.
    """

    features: int
    hidden: int
    density: float
    importance: tuple[float, ...] = ()
    seed: int = 0
    kind: Kind = "reconstruction"

    def __post_init__(self) -> None:
        whole("superposition", 1, features=self.features, hidden=self.hidden)
        whole("superposition", 0, seed=self.seed)
        if self.kind not in get_args(Kind):
            raise unknown("kind of toy model", str(self.kind), get_args(Kind))
        if not 0 < self.density <= 1:
            raise UserError(f"superposition: density = {self.density!r}; it must be above 0 and at most 1.")
        object.__setattr__(self, "importance", tuple(self.importance) or (1.0,) * self.features)
        if len(self.importance) != self.features or not all(math.isfinite(i) and i > 0 for i in self.importance):
            raise UserError(
                f"superposition: {list(self.importance)} are no importances of {self.features} features; one number "
                "above 0 is needed for each."
            )

    @property
    def shape(self) -> tuple[Kind, int, int]:
        """Networks of one shape are trained as one."""
        return self.kind, self.features, self.hidden


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam, its rate falling to zero along half a cosine; `batch` examples a step."""

    steps: int = 1500
    batch: int = 256
    rate: float = 1e-2

    def __post_init__(self) -> None:
        whole("superposition", 1, steps=self.steps, batch=self.batch)
        if not 0 < self.rate < math.inf:
            raise UserError(f"superposition: rate = {self.rate!r}; it must be a number above 0.")


@dataclass(frozen=True, eq=False)
class TrainedToy:
    """A trained network; `W_out` is `Wᵀ` in a reconstruction. `loss` is the mean over 4,096 fresh examples."""

    toy: Toy
    W: Float[Tensor, "hidden feature"]
    W_out: Float[Tensor, "feature hidden"]
    b: Float[Tensor, " feature"]
    loss: float

    def __call__(self, x: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """What the network makes of these examples."""
        hidden = x @ self.W.T
        hidden = hidden.relu() if self.toy.kind == "absolute value" else hidden
        return (hidden @ self.W_out.T + self.b).relu()


def toys(
    features: int,
    hidden: int,
    *,
    densities: Sequence[float],
    importances: Sequence[Sequence[float]] = ((),),
    seeds: Sequence[int] = range(32),
    kind: Kind = "reconstruction",
) -> list[Toy]:
    """Every combination; seeds run fastest, then importances."""
    return [Toy(features, hidden, d, tuple(i), s, kind) for d in densities for i in importances for s in seeds]


def phase_grid(steps: int = 8, seeds: Sequence[int] = range(8)) -> list[Toy]:
    """The paper's phase diagram of two features in one dimension: density 0.01–1, the second's importance 0.1–10."""
    densities = torch.logspace(-2, 0, steps).tolist()
    second = torch.logspace(-1, 1, steps).tolist()
    return toys(2, 1, densities=densities, importances=[(1.0, i) for i in second], seeds=seeds)


def geometry_grid(seeds: Sequence[int] = range(32)) -> list[Toy]:
    """Features of one importance, as many as figures have corners: 3 or 5 in two dimensions, 4, 6 or 8 in three."""
    shapes = ((3, 2), (5, 2), (4, 3), (6, 3), (8, 3))
    return [toy for n, m in shapes for toy in toys(n, m, densities=(0.03, 0.1), seeds=seeds)]


def train_toys(
    networks: Sequence[Toy],
    schedule: Schedule | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
) -> list[TrainedToy]:
    """Train all of them, those of one shape as one batch, and return them in the order given.

    `progress` is called with the number of network-steps done since the last call. Raises `UserError` where no network
    is given, and where one's loss does not stay finite.
    """
    if not networks:
        raise UserError("No toy model was given to train.")
    schedule = schedule or Schedule()
    groups: dict[tuple[Kind, int, int], list[int]] = {}
    for i, toy in enumerate(networks):
        groups.setdefault(toy.shape, []).append(i)
    found: dict[int, TrainedToy] = {}
    with _denormals_flushed(), torch.no_grad():
        for members in groups.values():
            found |= zip(members, _train_group([networks[i] for i in members], schedule, dtype, progress))
    return [found[i] for i in range(len(networks))]


def _train_group(
    group: list[Toy], schedule: Schedule, dtype: torch.dtype, progress: Callable[[int], None] | None
) -> list[TrainedToy]:
    kind = group[0].kind
    weights = [_initial(toy, dtype) for toy in group]
    W, W_out, b = (torch.stack(parts) for parts in zip(*weights))
    importance = torch.tensor([toy.importance for toy in group], dtype=dtype)[..., None]
    free = [W, b] if kind == "reconstruction" else [W, W_out, b]
    optimizer = torch.optim.Adam(free, lr=schedule.rate)
    data = _Data(group, dtype)
    for step, x in enumerate(data.batches(schedule.steps, schedule.batch)):
        optimizer.param_groups[0]["lr"] = schedule.rate * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        for parameter, gradient in zip(free, gradients(kind, W, W_out, b, x, importance)):
            parameter.grad = gradient
        optimizer.step()
        if progress is not None and (step + 1) % DRAWN == 0:
            progress(DRAWN * len(group))
    if progress is not None and schedule.steps % DRAWN:
        progress(schedule.steps % DRAWN * len(group))
    W_out = W.mT if kind == "reconstruction" else W_out
    loss = sum(_losses(kind, W, W_out, b, x, importance) for x in data.batches(16, 256)) / 16
    wrong = (~torch.as_tensor(loss).isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"The loss of {group[wrong[0]]} does not stay finite; a lower rate than {schedule.rate} may help."
        )
    values = torch.as_tensor(loss).tolist()
    return [
        TrainedToy(toy, W[i].clone(), W_out[i].clone(), b[i, :, 0].clone(), values[i]) for i, toy in enumerate(group)
    ]


def gradients(
    kind: Kind,
    W: Float[Tensor, "toy hidden feature"],
    W_out: Float[Tensor, "toy feature hidden"],
    b: Float[Tensor, "toy feature one"],
    x: Float[Tensor, "toy feature batch"],
    importance: Float[Tensor, "toy feature one"],
) -> list[Tensor]:
    """The loss's gradients with respect to `W` and `b` (reconstruction), or `W`, `W_out` and `b` (absolute value).

    Written out, since a recorded pass costs several times as much in networks as small as these. A reconstruction
    multiplies x with WᵀW, so that there is one product with it each way.
    """
    scale = importance * (2 / x.shape[2])
    if kind == "reconstruction":
        out = torch.baddbmm(b, W.mT @ W, x).relu_()
        at_pre = (out - x).mul_(out > 0).mul_(scale)
        both = at_pre @ x.mT
        return [W @ (both + both.mT), at_pre.sum(2, keepdim=True)]
    neurons = (W @ x).relu_()
    out = torch.baddbmm(b, W_out, neurons).relu_()
    at_pre = (out - x.abs()).mul_(out > 0).mul_(scale)
    at_neurons = (W_out.mT @ at_pre).mul_(neurons > 0)
    return [at_neurons @ x.mT, at_pre @ neurons.mT, at_pre.sum(2, keepdim=True)]


def _losses(kind: Kind, W: Tensor, W_out: Tensor, b: Tensor, x: Tensor, importance: Tensor) -> Float[Tensor, " toy"]:
    hidden = W @ x
    hidden, wanted = (hidden.relu(), x.abs()) if kind == "absolute value" else (hidden, x)
    return ((torch.baddbmm(b, W_out, hidden).relu() - wanted) ** 2 * importance).sum(1).mean(1)


def _initial(toy: Toy, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Normal weights of variance 2 / (features + hidden) (Glorot and Bengio 2010), no bias."""
    generator = torch.Generator().manual_seed(derived_seed(toy.seed, "weights"))
    n, m = toy.features, toy.hidden
    scale = math.sqrt(2 / (n + m))
    W, W_out = (torch.randn(shape, generator=generator).to(dtype) * scale for shape in ((m, n), (n, m)))
    return W, W_out, torch.zeros(n, 1, dtype=dtype)


class _Data:
    """The group's examples: one stream of random numbers for each seed, thinned for each network."""

    def __init__(self, group: Sequence[Toy], dtype: torch.dtype) -> None:
        seeds = sorted({toy.seed for toy in group})
        self.streams = [torch.Generator().manual_seed(derived_seed(seed, "data")) for seed in seeds]
        self.stream = torch.tensor([seeds.index(toy.seed) for toy in group])
        self.density = torch.tensor([toy.density for toy in group], dtype=dtype)[:, None, None]
        self.signed = group[0].kind == "absolute value"
        self.features, self.dtype = group[0].features, dtype

    def batches(self, steps: int, batch: int) -> Iterator[Float[Tensor, "toy feature batch"]]:
        """A uniform number below the density says that the feature is there and, divided by it, its value."""
        for first in range(0, steps, DRAWN):
            shape = (DRAWN, self.features, batch)
            drawn = torch.stack([torch.rand(shape, generator=g) for g in self.streams], 1).to(self.dtype)
            for uniform in drawn[: steps - first]:
                value = uniform[self.stream] / self.density
                there = value < 1
                yield (value.mul_(2).sub_(1) if self.signed else value).mul_(there)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Numbers too small for full precision count as zero: late in training they are many, and slow."""
    before = not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
