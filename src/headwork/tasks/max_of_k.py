"""The largest of k numbers, the task of Gross et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.tasks.examples import Described, Examples, every_list, whole


@dataclass(frozen=True)
class MaxOfK(Described):
    """`k` numbers below `vocab`; the answer is read at the last position."""

    vocab: int
    k: int = 2
    GENERATOR: ClassVar[str] = "max-of-k"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab, k=self.k)

    def every(self) -> Examples:
        """All `vocab`^k lists, the last number running fastest."""
        return self.of(every_list(self.vocab, self.k))

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` lists, drawn uniformly."""
        return self.of(torch.randint(0, self.vocab, (batch, self.k), generator=generator))

    def of(self, numbers: Int[Tensor, "batch k"]) -> Examples:
        """The examples for these numbers."""
        return Examples(numbers, numbers.amax(1, keepdim=True), (self.k - 1,))
