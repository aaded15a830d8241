"""Sorting a list, token by token: Kissane's practice task of 2023, and the demonstration of Karpathy's minGPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.tasks.examples import Described, Examples, distinct, every_list, framed, whole


@dataclass(frozen=True)
class Sorting(Described):
    """`start` if there is one, the list, `middle` if there is one, and the sorted list, of which each number is
    predicted from those before it.

    The sorted list's last number is left out where no `middle` and no `start` pad the sequence: it is never read.
    """

    vocab: int
    length: int
    start: int | None = None
    middle: int | None = None
    GENERATOR: ClassVar[str] = "sorting"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab, length=self.length)
        distinct(self.GENERATOR, self.vocab, start=self.start, middle=self.middle)

    def every(self) -> Examples:
        """All `vocab`^`length` lists."""
        return self.of(every_list(self.vocab, self.length))

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` lists, drawn uniformly."""
        return self.of(torch.randint(0, self.vocab, (batch, self.length), generator=generator))

    def of(self, numbers: Int[Tensor, "batch length"]) -> Examples:
        """The examples for these lists; each answer is read one position before the token it predicts."""
        in_order = numbers.sort(1).values
        prompt = framed(numbers, [self.start], [self.middle])
        first = prompt.shape[1] - 1
        written = in_order if self.middle is not None else in_order[:, :-1]
        return Examples(torch.cat([prompt, written], 1), in_order, tuple(range(first, first + self.length)))
