"""Whether a list reads the same backwards: ARENA's problem of July 2023 (McDougall)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.examples import Described, Examples, distinct, framed, whole


@dataclass(frozen=True)
class Palindromes(Described):
    """`start`, `length` numbers below `vocab`, and `end`, where the answer is read: 1 for a palindrome, else 0."""

    vocab: int
    length: int
    start: int
    end: int
    GENERATOR: ClassVar[str] = "palindromes"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab, length=self.length)
        distinct(self.GENERATOR, self.vocab, start=self.start, end=self.end)
        if self.length % 2:
            raise UserError(f"{self.GENERATOR}: length = {self.length}; it must be even.")

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """Palindromes in the first half of the batch, then palindromes of which every number of the second half was
        drawn again with probability one half: near misses among them, and a few that are palindromes still.
        """
        half = torch.randint(0, self.vocab, (batch, self.length // 2), generator=generator)
        fresh = torch.randint(0, self.vocab, half.shape, generator=generator)
        again = torch.rand(half.shape, generator=generator) < 0.5
        again[: batch // 2] = False
        return self.of(torch.cat([half, torch.where(again, fresh, half.flip(1))], 1))

    def of(self, numbers: Int[Tensor, "batch length"]) -> Examples:
        """The examples for these lists."""
        labels = (numbers == numbers.flip(1)).all(1, keepdim=True).long()
        return Examples(framed(numbers, [self.start], [self.end]), labels, (self.length + 1,))
