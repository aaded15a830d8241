"""The number that fills more than half of a list, one of Kissane's practice tasks of 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.examples import Described, Examples, distinct, framed, whole


@dataclass(frozen=True)
class Majority(Described):
    """`start`, a list of numbers below `vocab`, and `end`, where the answer is read."""

    vocab: int
    length: int
    start: int
    end: int
    GENERATOR: ClassVar[str] = "majority"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab, length=self.length)
        distinct(self.GENERATOR, self.vocab, start=self.start, end=self.end)

    @property
    def enough(self) -> int:
        """How many copies are more than half of the list."""
        return self.length // 2 + 1

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` lists of random numbers with just enough copies of another one at random places."""
        numbers = torch.randint(0, self.vocab, (batch, self.length), generator=generator)
        winner = torch.randint(0, self.vocab, (batch, 1), generator=generator)
        order = torch.rand(batch, self.length, generator=generator).argsort(1).argsort(1)
        return self.of(torch.where(order < self.enough, winner, numbers))

    def of(self, numbers: Int[Tensor, "batch length"]) -> Examples:
        """The examples for these lists. Raises `UserError` where one has no majority."""
        counts = (numbers[:, :, None] == numbers[:, None, :]).sum(2)
        most, place = counts.max(1)
        if len(most) and int(most.min()) < self.enough:
            row = numbers[int(most.argmin())].tolist()
            raise UserError(f"{self.GENERATOR}: no number fills more than half of {row}.")
        tokens = framed(numbers, [self.start], [self.end])
        return Examples(tokens, numbers.gather(1, place[:, None]), (self.length + 1,))
