"""The sum of two numbers, digit by digit: ARENA's problem of September 2023 (McDougall)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.examples import Described, Examples, distinct, framed, whole


@dataclass(frozen=True)
class DigitSums(Described):
    """a, `plus`, b, `equals`, a + b: each digit of the sum is predicted from those before it, the highest first.

    Both numbers have `digits` digits and a first one below 5, so that the sum has as many.
    """

    digits: int
    plus: int = 10
    equals: int = 11
    GENERATOR: ClassVar[str] = "digit-sums"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 1, digits=self.digits)
        distinct(self.GENERATOR, 10, plus=self.plus, equals=self.equals)
        if self.digits > 17:
            raise UserError(f"{self.GENERATOR}: digits = {self.digits}; it must be at most 17.")

    @property
    def limit(self) -> int:
        """The number that both addends stay below."""
        return 5 * 10 ** (self.digits - 1)

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` pairs of numbers below `limit`, drawn uniformly."""
        return self.of(torch.randint(0, self.limit, (batch, 2), generator=generator))

    def of(self, pairs: Int[Tensor, "batch 2"]) -> Examples:
        """The examples for these numbers. Raises `UserError` for one that is negative or not below `limit`."""
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= self.limit):
            raise UserError(f"{self.GENERATOR}: numbers must be from 0 to {self.limit - 1}.")
        a, b, total = (self._written(n) for n in (pairs[:, 0], pairs[:, 1], pairs.sum(1)))
        tokens = torch.cat([framed(a, after=[self.plus]), framed(b, after=[self.equals]), total], 1)
        first = 2 * self.digits + 1
        return Examples(tokens, total, tuple(range(first, first + self.digits)))

    def _written(self, numbers: Int[Tensor, " batch"]) -> Int[Tensor, "batch digit"]:
        places = 10 ** torch.arange(self.digits - 1, -1, -1)
        return numbers[:, None] // places % 10
