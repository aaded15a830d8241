"""Addition (or subtraction) modulo p, the task of Power et al. 2022 and Nanda et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.examples import Described, Examples, every_pair, framed, whole


@dataclass(frozen=True)
class ModularAddition(Described):
    """Two numbers below `modulus`, then the token `equals` if there is one; the answer is read at the last position.

    `second` is added to the second number's token, where it has a vocabulary of its own. With `subtract` the answer is
    a − b instead of a + b. Raises `UserError` where tokens collide.
    """

    modulus: int
    equals: int | None = None
    second: int = 0
    subtract: bool = False
    GENERATOR: ClassVar[str] = "modular-addition"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, modulus=self.modulus)
        whole(self.GENERATOR, 0, second=self.second)
        if 0 < self.second < self.modulus:
            raise UserError(f"{self.GENERATOR}: second = {self.second} must be 0, or {self.modulus} or more.")
        if self.equals is not None:
            whole(self.GENERATOR, self.modulus + self.second, equals=self.equals)

    def every(self) -> Examples:
        """All p² pairs, the second number running fastest."""
        return self.of(every_pair(self.modulus))

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` pairs, drawn uniformly."""
        return self.of(torch.randint(0, self.modulus, (batch, 2), generator=generator))

    def of(self, pairs: Int[Tensor, "batch 2"]) -> Examples:
        """The examples for these numbers."""
        a, b = pairs.T
        answers = (a - b if self.subtract else a + b) % self.modulus
        tokens = framed(torch.stack([a, b + self.second], 1), after=[self.equals])
        return Examples(tokens, answers[:, None], (tokens.shape[1] - 1,))
