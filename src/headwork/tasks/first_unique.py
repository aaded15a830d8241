"""The first letter that has occurred just once so far: ARENA's problem of August 2023 (McDougall)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.tasks.examples import Described, Examples, distinct, framed, whole


@dataclass(frozen=True)
class FirstUnique(Described):
    """The token `none`, then `length` letters below `vocab`; after each, the answer is the first letter that has
    occurred once so far, or `none`.
    """

    vocab: int
    length: int
    none: int
    GENERATOR: ClassVar[str] = "first-unique"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, vocab=self.vocab)
        whole(self.GENERATOR, 1, length=self.length)
        distinct(self.GENERATOR, self.vocab, none=self.none)

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` strings of letters, drawn uniformly."""
        return self.of(torch.randint(0, self.vocab, (batch, self.length), generator=generator))

    def of(self, letters: Int[Tensor, "batch length"]) -> Examples:
        """The examples for these strings."""
        same = letters[:, :, None] == letters[:, None, :]
        # counts[b, end, place]: how often the letter at `place` occurs in the first end + 1 letters.
        counts = same.long().cumsum(1)
        places = torch.arange(letters.shape[1])
        unique = (counts == 1) & (places[None, None, :] <= places[None, :, None])
        first = unique.long().argmax(2)
        answers = torch.where(unique.any(2), letters.gather(1, first), self.none)
        return Examples(framed(letters, [self.none]), answers, tuple(range(1, letters.shape[1] + 1)))
