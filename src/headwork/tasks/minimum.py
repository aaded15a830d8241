"""The smallest of a few numbers, one of Kissane's practice tasks of 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.tasks.examples import Described, Examples, distinct, every_list, framed, whole


@dataclass(frozen=True)
class Minimum(Described):
    """`length` numbers below `vocab`, then the token `end`, where the answer is read."""

    vocab: int
    length: int
    end: int
    GENERATOR: ClassVar[str] = "minimum"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab, length=self.length)
        distinct(self.GENERATOR, self.vocab, end=self.end)

    def every(self) -> Examples:
        """All lists, the last number running fastest."""
        return self.of(every_list(self.vocab, self.length))

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` lists, drawn uniformly."""
        return self.of(torch.randint(0, self.vocab, (batch, self.length), generator=generator))

    def of(self, numbers: Int[Tensor, "batch length"]) -> Examples:
        """The examples for these numbers."""
        return Examples(framed(numbers, after=[self.end]), numbers.amin(1, keepdim=True), (self.length,))
