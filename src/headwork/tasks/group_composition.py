"""Multiplication in a finite group, the task of Chughtai et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.tasks.examples import Described, Examples, every_pair, framed, whole
from headwork.tasks.groups import Group
from headwork.tasks.groups import group as find_group


@dataclass(frozen=True)
class GroupComposition(Described):
    """Two elements, then the token `equals` if there is one; the answer, their product, is read at the last position.

    Networks that take the pair as such (`PairMLP`) have no `equals` and one answer for the pair. Raises `UserError`
    for a group that is not implemented.
    """

    group: str
    parameter: int
    equals: int | None = None
    GENERATOR: ClassVar[str] = "group-composition"

    def __post_init__(self) -> None:
        order = self.structure.order
        if self.equals is not None:
            whole(self.GENERATOR, order, equals=self.equals)

    @property
    def structure(self) -> Group:
        """The group itself."""
        return find_group(self.group, self.parameter)

    def every(self) -> Examples:
        """All pairs of elements, the second running fastest."""
        return self.of(every_pair(self.structure.order))

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """`batch` pairs, drawn uniformly."""
        return self.of(torch.randint(0, self.structure.order, (batch, 2), generator=generator))

    def of(self, pairs: Int[Tensor, "batch 2"]) -> Examples:
        """The examples for these elements."""
        products = self.structure.table[pairs[:, 0], pairs[:, 1]]
        tokens = framed(pairs, after=[self.equals])
        return Examples(tokens, products[:, None], (tokens.shape[1] - 1,))
