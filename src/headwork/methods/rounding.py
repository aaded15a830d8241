"""Products whose rounding errors are bounded on the way, for statements that must hold beyond floating point.

Each number comes with a bound that covers two things at once: how far it is from the value in exact arithmetic, and
how far from what the network itself computes in its own precision, whatever the order of its sums. The bounds are
those of running error analysis (Higham 2002, chapter 3): a sum of n products is off by at most γₙ Σ|a||b|,
γₙ = n·u/(1 − n·u), and errors that come in pass through with the weights' sizes. u is the sum of both precisions' unit
roundoffs. What underflows, even where it is flushed to zero, is off by at most the smallest normal number. The bounds
themselves are computed in float64 and widened by 2⁻⁴⁰, which covers thousands of roundings of positive numbers.

Kernels that multiply in less than the weights' precision (TF32, bfloat16 products) are not covered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError
from headwork.model.transformer import NoNorm, Norm

WIDER = 1 + 2.0**-40
_LARGEST = 1e30


@dataclass(frozen=True)
class Precision:
    """Unit roundoff of the network's arithmetic and of ours together, and what underflow may cost an operation."""

    unit: float
    tiny: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Precision:
        """Raises `UserError` for other than float32 and float64: in less, bounds on sums are too wide to be of use."""
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"The network is in {dtype}; rounding is bounded for torch.float32 and torch.float64.")
        info = torch.finfo(dtype)
        return cls(info.eps / 2 + torch.finfo(torch.float64).eps / 2, info.tiny)

    def gamma(self, n: int) -> float:
        """γₙ, the relative error of n roundings."""
        return n * self.unit / (1 - n * self.unit) * WIDER


@dataclass(frozen=True)
class Bounded:
    """Values in float64, and bounds on their errors."""

    value: Float[Tensor, "*shape"]
    error: Float[Tensor, "*shape"]

    @property
    def low(self) -> Float[Tensor, "*shape"]:
        return self._outward(self.value - self.error, -torch.inf)

    @property
    def high(self) -> Float[Tensor, "*shape"]:
        return self._outward(self.value + self.error, torch.inf)

    @property
    def size(self) -> Float[Tensor, "*shape"]:
        """What the absolute values are at most."""
        return (self.value.abs() + self.error) * WIDER

    def __getitem__(self, index: object) -> Bounded:
        return Bounded(self.value[index], self.error[index])  # type: ignore[index]

    @staticmethod
    def _outward(bound: Tensor, to: float) -> Tensor:
        return torch.nextafter(bound, torch.full_like(bound, to))


def stored(weight: Tensor) -> Bounded:
    """Weights as they are: without an error. Raises `UserError` where they are not finite, or beyond 1e30."""
    value = weight.detach().double().cpu()
    if not bool((value.abs() < _LARGEST).all()):
        raise UserError("The network has weights that are not finite or beyond 1e30; nothing can be proved of it.")
    return Bounded(value, torch.zeros_like(value))


def plus(precision: Precision, a: Bounded, b: Bounded) -> Bounded:
    """a + b."""
    return rounded(precision, Bounded(a.value + b.value, (a.error + b.error) * WIDER), 2)


def rounded(precision: Precision, a: Bounded, n: int) -> Bounded:
    """`a` after n more roundings that change nothing else."""
    return Bounded(a.value, (a.error + precision.gamma(n) * a.size + n * precision.tiny) * WIDER)


def times(
    precision: Precision,
    a: Bounded,
    weight: Float[Tensor, "inside outside"],
    bias: Float[Tensor, " outside"] | None = None,
    extra: int = 0,
) -> Bounded:
    """a · W + b; `extra` roundings lie in W's own entries."""
    value, size, n = a.value @ weight, a.size @ weight.abs(), len(weight) + 3 + extra
    if bias is not None:
        value, size = value + bias, size + bias.abs()
    error = a.error @ weight.abs() + precision.gamma(n) * size + 2 * n * precision.tiny
    return Bounded(value, error * WIDER)


def products(precision: Precision, a: Bounded, b: Bounded) -> Bounded:
    """Every row of `a [x, n]` with every row of `b [*y, n]`: `[x, *y]`."""
    n = a.value.shape[-1] + 3
    across = "xn,...n->x..."
    value = torch.einsum(across, a.value, b.value)
    error = torch.einsum(across, a.error, b.size) + torch.einsum(across, a.value.abs(), b.error)
    error = error + precision.gamma(n) * torch.einsum(across, a.size, b.size) + 2 * n * precision.tiny
    return Bounded(value, error * WIDER)


def centred(precision: Precision, a: Bounded) -> Bounded:
    """`a` less its mean over the last axis."""
    n = a.value.shape[-1] + 6
    value = a.value - a.value.mean(-1, keepdim=True)
    error = a.error + a.error.mean(-1, keepdim=True)
    error = error + precision.gamma(n) * (a.size + a.size.mean(-1, keepdim=True)) + n * precision.tiny
    return Bounded(value, error * WIDER)


def normed(precision: Precision, a: Bounded, norm: Norm | NoNorm) -> Bounded:
    """What a LayerNorm or RMSNorm makes of known vectors.

    The variance is off by 2 γ · mean(a²) at most, whether it is summed in one pass or in two, and by what the errors of
    the entries do to it. Raises `UserError` where that is more than half of it: nothing is known of the scale then.
    """
    if not isinstance(norm, Norm):
        return a
    width = a.value.shape[-1]
    gain = stored(norm.w).value
    middle = centred(precision, a) if norm.centred else a
    variance = middle.value.square().mean(-1, keepdim=True) + norm.eps
    off = 3 * (middle.error * middle.size).mean(-1, keepdim=True)
    off = off + 2 * precision.gamma(2 * width + 8) * (a.size.square().mean(-1, keepdim=True) + norm.eps)
    relative = off / variance * WIDER
    if not bool((relative < 0.5).all()):
        raise UserError(
            "A LayerNorm reads vectors that are constant but for rounding; its scale, and so the bound, is unknown."
        )
    value = middle.value / variance.sqrt() * gain
    # |1/√(1 + x) − 1| ≤ |x| for |x| ≤ ½.
    error = (middle.error * (1 + relative) + middle.value.abs() * relative) / variance.sqrt() * gain.abs()
    found = Bounded(value, error * WIDER)
    if norm.b is not None:
        found = plus(precision, found, stored(norm.b))
    return rounded(precision, found, 6)
