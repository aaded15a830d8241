"""Inputs of a task with the right answers, and where in the logits a network gives its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.errors import UserError, unknown

T = TypeVar("T", bound="Described")


@dataclass(frozen=True)
class Examples:
    """`labels[:, i]` are the right answers at the position `read[i]`; several where the task has several answers."""

    tokens: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch answer"]
    read: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def answers(self, logits: Tensor) -> Int[Tensor, "batch answer"]:
        """What a network answers: its largest logit. `logits [batch, pos, out]`, or `[batch, out]` of one answer."""
        if logits.dim() == 2 and len(self.read) == 1:
            return logits.argmax(-1, keepdim=True)
        if logits.dim() != 3 or logits.shape[:2] != self.tokens.shape:
            raise UserError(
                f"The logits have shape {list(logits.shape)}; for these tokens they must be "
                f"[{self.tokens.shape[0]}, {self.tokens.shape[1]}, outputs]."
            )
        return logits[:, list(self.read)].argmax(-1)

    def correct(self, logits: Float[Tensor, "*any"]) -> Bool[Tensor, "batch answer"]:
        """Which answers are right."""
        return self.answers(logits).cpu() == self.labels

    def accuracy(self, logits: Float[Tensor, "*any"]) -> float:
        """The share of right answers, each counted for itself."""
        return self.correct(logits).double().mean().item()


class Task(Protocol):
    """A distribution of examples: drawn at random, or, where there are few enough, all of them."""

    def sample(self, batch: int, generator: torch.Generator) -> Examples: ...

    def to_dict(self) -> dict[str, Any]: ...


class Described:
    """A task that a model's card describes as plain data, under the name of its `generator`."""

    GENERATOR: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a model's card; `from_dict` is the inverse."""
        return {"generator": self.GENERATOR, **asdict(self)}  # type: ignore[call-overload] – all are dataclasses

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """Read what a card states. Raises `UserError` for unknown keys, missing ones and impossible values."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        values = {key: value for key, value in data.items() if key != "generator"}
        for key in values:
            if key not in names:
                raise unknown(f"key in the description of {cls.GENERATOR}:", key, names)
        try:
            return cls(**values)
        except TypeError:
            raise UserError(f"The description of {cls.GENERATOR} lacks some of {', '.join(names)}.") from None


def whole(task: str, least: int, **values: Any) -> None:
    """Raise `UserError` unless all values are whole numbers from `least` on."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{task}: {name} = {value!r}; it must be a whole number, {least} or more.")


def distinct(task: str, values: int, **marks: int | None) -> None:
    """Raise `UserError` unless the marks, of those that are given, are tokens of their own beside 0 … `values` − 1."""
    given = {name: mark for name, mark in marks.items() if mark is not None}
    whole(task, 0, **given)
    for name, mark in given.items():
        if mark < values:
            raise UserError(f"{task}: {name} = {mark} is one of the {values} values; it must be {values} or more.")
    if len(set(given.values())) < len(given):
        raise UserError(f"{task}: {', '.join(f'{n} = {m}' for n, m in given.items())} must differ from each other.")


def framed(
    values: Int[Tensor, "batch n"], before: Sequence[int | None] = (), after: Sequence[int | None] = ()
) -> Int[Tensor, "batch pos"]:
    """The values between fixed tokens; `None` stands for no token."""
    batch = len(values)
    marks = [[torch.full((batch, 1), m) for m in side if m is not None] for side in (before, after)]
    return torch.cat([*marks[0], values, *marks[1]], 1)


def every_pair(n: int) -> Int[Tensor, "pair 2"]:
    """All pairs (a, b) of numbers below n, b running fastest."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n))


def every_list(n: int, length: int) -> Int[Tensor, "list length"]:
    """All lists of numbers below n, the last place running fastest."""
    counted = torch.arange(n**length)
    return torch.stack([counted // n**place % n for place in reversed(range(length))], 1)
