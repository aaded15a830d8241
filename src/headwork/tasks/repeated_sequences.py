"""Random tokens in which one random segment occurs several times: what induction heads are trained and measured on.

A fixed distance between the copies lets a network predict by position alone, so the places of the copies vary within
every batch unless a distribution says otherwise (`varies`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.model.transformer import Transformer

GENERATOR = "repeated-sequences"
Placement = Literal["scattered", "adjacent", "fixed"]


@dataclass(frozen=True)
class RepeatedBatch:
    """Sequences and where their copies are: `copy` counts the copies from 0 and `index` the tokens within one, −1
    outside."""

    tokens: Int[Tensor, "batch pos"]
    copy: Int[Tensor, "batch pos"]
    index: Int[Tensor, "batch pos"]

    @property
    def predictable(self) -> Bool[Tensor, "batch pos"]:
        """Positions in a second or later copy whose next token belongs to the same copy: an earlier copy tells it."""
        same_copy_goes_on = torch.zeros_like(self.copy, dtype=torch.bool)
        same_copy_goes_on[:, :-1] = (self.copy[:, 1:] == self.copy[:, :-1]) & (self.copy[:, :-1] >= 1)
        return same_copy_goes_on

    @property
    def unpredictable(self) -> Bool[Tensor, "batch pos"]:
        """Positions whose next token is a fresh random one: it is outside the copies, or in the first of them."""
        fresh = torch.zeros_like(self.copy, dtype=torch.bool)
        fresh[:, :-1] = self.copy[:, 1:] <= 0
        return fresh

    @property
    def targets(self) -> Int[Tensor, "batch pos"]:
        """The next token at each position (at the last one, where there is none, the first)."""
        return self.tokens.roll(-1, 1)

    def last_copy(self) -> Bool[Tensor, "batch pos"]:
        """The predictable positions that lie in the last copy."""
        return self.predictable & (self.copy == self.copy.amax(1, keepdim=True))

    def with_earlier_copies_replaced(self, generator: torch.Generator, vocab: tuple[int, int]) -> RepeatedBatch:
        """The same sequences with every copy before the last overwritten by fresh tokens, each unlike the old one.

        Content then no longer tells what the last copy goes on with; positions are as they were.
        """
        low, high = vocab
        earlier = (self.copy >= 0) & (self.copy < self.copy.amax(1, keepdim=True))
        shift = torch.randint(1, high - low, self.tokens.shape, generator=generator)
        fresh = low + (self.tokens - low + shift) % (high - low)
        return RepeatedBatch(torch.where(earlier, fresh, self.tokens), self.copy, self.index)


@dataclass(frozen=True)
class RepeatedSequences:
    """The distribution. `segment` and `copies` are inclusive ranges, drawn for each sequence.

    `placement`: `scattered` puts the copies at random among random tokens; `adjacent` one right after the other from a
    random start; `fixed` the same from position 0. Tokens are drawn uniformly from `first_token` … `vocab` − 1; with
    `bos` every sequence starts with that token, counted in `length`. Raises `UserError` where no sequence could be
    drawn.
    """

    vocab: int
    length: int
    segment: tuple[int, int]
    copies: tuple[int, int] = (2, 2)
    placement: Placement = "scattered"
    first_token: int = 0
    bos: int | None = None

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise unknown("placement of repeats", str(self.placement), get_args(Placement))
        for name, value in (("vocab", self.vocab), ("length", self.length), ("first_token", self.first_token)):
            _check_whole(name, value)
        if self.bos is not None:
            _check_whole("bos", self.bos)
        for name, (low, high), least in (("segment", self.segment, 2), ("copies", self.copies, 2)):
            if not least <= low <= high:
                raise UserError(f"{name} = [{low}, {high}] must be a range that starts at {least} or more.")
        if self.segment[1] * self.copies[1] > self.room:
            raise UserError(
                f"{self.copies[1]} copies of {self.segment[1]} tokens do not fit into sequences of {self.room} tokens."
            )
        if self.vocab - self.first_token < 3:
            raise UserError(f"A vocabulary of {self.vocab - self.first_token} tokens is too small for random segments.")

    @property
    def alphabet(self) -> tuple[int, int]:
        """The first token drawn and the one after the last."""
        return self.first_token, self.vocab

    @property
    def room(self) -> int:
        """How many tokens of a sequence are drawn: all but the `bos`."""
        return self.length - (self.bos is not None)

    @property
    def varies(self) -> bool:
        """Whether the distance between copies differs from sequence to sequence."""
        # Scattered copies that fill the whole sequence stand one right after the other.
        space = self.room > self.segment[0] * self.copies[0]
        return self.segment[0] != self.segment[1] or (self.placement == "scattered" and space)

    def with_varied_distance(self) -> RepeatedSequences:
        """This distribution, or where its distance is fixed the nearest one in which it is not.

        The longest segment stays; shorter ones, down to a quarter of it, and random places join. Raises `UserError`
        where the sequences are too short for that.
        """
        if self.varies:
            return self
        longest = self.segment[1]
        varied = dataclasses.replace(self, segment=(max(2, longest // 4), longest), placement="scattered")
        if not varied.varies:
            raise UserError(
                f"Sequences of {self.room} tokens are filled by {self.copies[0]} copies of {longest}; for the distance "
                f"between copies to vary they need {self.room + 1} or more."
            )
        return varied

    def sample(self, batch: int, generator: torch.Generator) -> RepeatedBatch:
        """`batch` sequences, all randomness from `generator` (on the CPU)."""
        begin = int(self.bos is not None)

        def uniform(low: int, high: int) -> Int[Tensor, " batch"]:
            return torch.randint(low, high + 1, (batch,), generator=generator)

        segment, copies = uniform(*self.segment), uniform(*self.copies)
        most = self.copies[1]
        spare = self.room - segment * copies
        starts = self._offsets(spare, copies, generator) + torch.arange(most) * segment[:, None]
        tokens = torch.randint(*self.alphabet, (batch, self.length), generator=generator)
        content = torch.randint(*self.alphabet, (batch, self.segment[1]), generator=generator)
        if self.bos is not None:
            tokens[:, 0] = self.bos
        copy, index = torch.full_like(tokens, -1), torch.full_like(tokens, -1)
        position = torch.arange(self.room)
        for number in range(most):
            place = position - starts[:, number, None]
            here = (place >= 0) & (place < segment[:, None]) & (copies[:, None] > number)
            copy[:, begin:][here] = number
            index[:, begin:][here] = place[here]
        inside = index >= 0
        tokens[inside] = content.gather(1, index.clamp(min=0))[inside]
        return RepeatedBatch(tokens, copy, index)

    def _offsets(
        self, spare: Int[Tensor, " batch"], copies: Int[Tensor, " batch"], generator: torch.Generator
    ) -> Int[Tensor, "batch copies"]:
        """How many filler tokens stand before each copy: independent uniform draws, sorted."""
        shape = (len(spare), self.copies[1])
        if self.placement == "fixed":
            return torch.zeros(shape, dtype=torch.long)
        draws = torch.rand(shape, generator=generator)
        if self.placement == "adjacent":
            draws = draws[:, :1].expand(shape)
        used = torch.arange(self.copies[1]) < copies[:, None]
        draws = torch.where(used, draws, 2.0).sort(1).values.clamp(max=1 - 1e-7)
        return (draws * (spare[:, None] + 1)).long()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a model's card; `from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        return {"generator": GENERATOR, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RepeatedSequences:
        """Read what a card states; a single number stands for a range of one. Raises `UserError`."""
        values = {k: v for k, v in data.items() if k != "generator"}
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise unknown("key in the training distribution:", key, names)
        for key in ("segment", "copies"):
            if key in values:
                values[key] = _as_range(key, values[key])
        missing = [n for n in ("vocab", "length", "segment") if n not in values]
        if missing:
            raise UserError(f"The training distribution lacks {', '.join(missing)}.")
        return cls(**values)


def stated_distribution(model: Transformer) -> RepeatedSequences | None:
    """The distribution of repeated sequences that the model's card states, None where it states none."""
    data = model.card.data if model.card is not None else None
    return RepeatedSequences.from_dict(data) if data is not None and data.get("generator") == GENERATOR else None


def default_distribution(vocab: int, n_ctx: int, bos: int | None = None) -> RepeatedSequences:
    """Three scattered copies in at most 64 tokens, for a network of which no distribution is known.

    Raises `UserError` where it reads too few tokens or symbols.
    """
    length = min(64, n_ctx)
    longest = (length - (bos is not None)) // 3 - 1
    if longest < 4 or vocab < 3:
        raise UserError(
            f"Repeated sequences need at least 15 tokens over 3 symbols; this network reads {n_ctx} over {vocab}."
        )
    segment = (max(2, longest * 2 // 5), longest)
    return RepeatedSequences(vocab=vocab, length=length, segment=segment, copies=(3, 3), bos=bos)


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"The training distribution has {name} = {value!r}; it must be a whole number, 0 or more.")


def _as_range(name: str, value: Any) -> tuple[int, int]:
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2:
        raise UserError(f"The training distribution has {name} = {value!r}; it must be one number or two.")
    for end in ends:
        _check_whole(name, end)
    return ends[0], ends[1]


def followers(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Keys that hold a token which followed an earlier copy of the query's token: where induction attends."""
    same = _earlier_copies(tokens)
    follows = torch.zeros_like(same)
    follows[:, :, 1:] = same[:, :, :-1]
    return follows


def duplicates(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Keys that hold an earlier copy of the query's token."""
    return _earlier_copies(tokens)


def _earlier_copies(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    same = tokens[:, :, None] == tokens[:, None, :]
    return same & torch.ones_like(same[0]).tril(-1)
