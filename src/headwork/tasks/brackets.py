"""Whether brackets are balanced: the classifier of Redwood Research, as ARENA's course trained it (McDougall 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.examples import Described, Examples, distinct, whole


@dataclass(frozen=True)
class BalancedBrackets(Described):
    """`start`, a string of at most `length` brackets, `end`, and `pad` up to length + 2 tokens.

    The answer is read at position 0: 1 where the string is balanced, else 0.
    """

    length: int
    start: int = 0
    pad: int = 1
    end: int = 2
    opening: int = 3
    closing: int = 4
    GENERATOR: ClassVar[str] = "balanced-brackets"

    def __post_init__(self) -> None:
        whole(self.GENERATOR, 2, length=self.length)
        tokens = {name: getattr(self, name) for name in ("start", "pad", "end", "opening", "closing")}
        distinct(self.GENERATOR, 0, **tokens)

    def sample(self, batch: int, generator: torch.Generator) -> Examples:
        """Strings of even lengths drawn uniformly: a third balanced, a third with as many closing as opening brackets
        in random order, a third of random brackets.
        """
        texts = []
        for i in range(batch):
            n = 1 + int(torch.randint(0, self.length // 2, (), generator=generator))
            steps = torch.ones(2 * n, dtype=torch.long)
            steps[torch.randperm(2 * n, generator=generator)[:n]] = -1
            if i % 3 == 0:
                steps = _balanced(n, generator)
            elif i % 3 == 2:
                steps = 2 * torch.randint(0, 2, (2 * n,), generator=generator) - 1
            texts.append("".join("(" if step == 1 else ")" for step in steps.tolist()))
        return self.of(texts)

    def of(self, texts: Sequence[str]) -> Examples:
        """The examples for these strings. Raises `UserError` for a string that is too long or has other characters."""
        tokens = torch.full((len(texts), self.length + 2), self.pad)
        ids = {"(": self.opening, ")": self.closing}
        for row, text in zip(tokens, texts):
            if len(text) > self.length or set(text) - ids.keys():
                raise UserError(
                    f"{self.GENERATOR}: {text[:60]!r} must be brackets '(' and ')', at most {self.length} of them."
                )
            row[: len(text) + 2] = torch.tensor([self.start, *(ids[symbol] for symbol in text), self.end])
        low, total = self.elevations(tokens)
        return Examples(tokens, ((low >= 0) & (total == 0)).long()[:, None], (0,))

    def elevations(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        """The lowest elevation and the last: how many more brackets have been opened than closed, from the left.

        A string is balanced where neither the lowest is below 0 nor the last other than 0.
        """
        steps = (tokens == self.opening).long() - (tokens == self.closing).long()
        height = steps.cumsum(1)
        return height.amin(1).clamp(max=0), height[:, -1]

    def fails(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """The two ways to be unbalanced: some elevation is below 0; the last is not 0."""
        low, total = self.elevations(tokens)
        return low < 0, total != 0


def _balanced(n: int, generator: torch.Generator) -> Int[Tensor, " steps"]:
    """n pairs of brackets as steps +1 and −1, uniform among the balanced strings.

    Of the 2n + 1 rotations of n + 1 openings and n closings just one stays above 0 (the cycle lemma); without its first
    opening it is balanced.
    """
    steps = torch.ones(2 * n + 1, dtype=torch.long)
    steps[torch.randperm(2 * n + 1, generator=generator)[:n]] = -1
    # The right start is behind the last place where the sums are lowest.
    sums = steps.cumsum(0)
    last_lowest = int((sums == sums.min()).nonzero()[-1])
    return steps.roll(-(last_lowest + 1))[1:]
