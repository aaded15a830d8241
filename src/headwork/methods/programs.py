"""Small programs with named variables, as hypotheses about what a network computes and where it keeps it.

A program computes its variables from the prompt and its answer from the variables; each variable is said to lie at some
places in the network. That is tested by interchange interventions (Geiger et al. 2021, 2024; see `program_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.edits import replace as put
from headwork.errors import UserError, unknown
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of, resolve, sites

Values = Mapping[str, Tensor]
Compute = Callable[[Int[Tensor, "batch pos"], Values], Tensor]


@dataclass(frozen=True)
class Spot:
    """Where a variable lies: a site, some of its `heads`, and some `positions` (queries, at attention maps).

    None stands for all of them; negative positions count from the end.
    """

    site: str
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    def checked(self, config: TransformerConfig, length: int) -> Spot:
        """With the site's full name and positions from the start; `UserError` for what does not exist, or comes last.

        Accepted are sites up to the last block, which every later computation reads.
        """
        names = resolve(config, [self.site])
        if len(names) != 1:
            raise UserError(f"A variable's place needs one site; {self.site!r} stands for {len(names)}.")
        if layer_of(names[0]) is None and names[0] not in ("embed", "pos_embed"):
            raise UserError(
                f"The site {names[0]} comes after the blocks; a variable's place must lie before their end."
            )
        wrong = [p for p in self.positions or () if not -length <= p < length]
        if wrong:
            raise UserError(f"The prompts have positions 0–{length - 1}; position {wrong[0]} does not exist.")
        for what, chosen in (("heads", self.heads), ("positions", self.positions)):
            if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
                raise UserError(f"The {what} of a place at {names[0]} must be some, each named once; given: {chosen}.")
        positions = None if self.positions is None else tuple(p % length for p in self.positions)
        put(names[0], 0.0, self.heads, positions).checked(config, 1, length)
        return replace(self, site=names[0], positions=positions)

    def edit(self, source: Mapping[str, Tensor]) -> Edit:
        """The source run's activation, put there."""
        return put(self.site, source[self.site], self.heads, self.positions)

    def __str__(self) -> str:
        heads = "" if self.heads is None else f" heads {list(self.heads)}"
        return f"{self.site}{heads}" + ("" if self.positions is None else f" at {list(self.positions)}")


@dataclass(frozen=True)
class Variable:
    """A named quantity: `compute(tokens, earlier)` gives one value for each prompt, `[batch]` or `[batch, …]`.

    `earlier` holds the values of the program's variables before this one, replaced where they were replaced. `places`
    are where the network is said to keep it; all of them are interchanged together.
    """

    name: str
    compute: Compute
    places: tuple[Spot, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", (self.places,) if isinstance(self.places, Spot) else tuple(self.places))
        if not self.name or not self.places:
            raise UserError(f"The variable {self.name!r} needs a name and at least one place.")


@dataclass(frozen=True)
class Program:
    """A hypothesis: variables in the order in which they are computed, and the answer that they lead to.

    `output(tokens, values)` gives the token that the network answers at `answer_position`, one for each prompt;
    `values` has all variables, replaced where they were replaced. `answers` are the tokens that count as answers; all
    where left out. Raises `UserError` for no variables, and twice the same name.
    """

    name: str
    variables: tuple[Variable, ...]
    output: Compute
    answer_position: int = -1
    answers: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise UserError(f"The program {self.name!r} needs variables with names of their own; it has {list(names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    def values(self, tokens: Int[Tensor, "batch pos"], replaced: Values | None = None) -> dict[str, Tensor]:
        """Every variable's value; those in `replaced` have these values, and later ones are computed from them."""
        replaced = replaced or {}
        for name in replaced:
            if name not in self.names:
                raise unknown(f"variable of {self.name}:", name, self.names)
        found: dict[str, Tensor] = {}
        for variable in self.variables:
            if variable.name in replaced:
                value = replaced[variable.name]
            else:
                value = variable.compute(tokens, dict(found))
            if not isinstance(value, Tensor) or not value.dim() or len(value) != len(tokens):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(
                    f"The variable {variable.name!r} of {self.name} has shape {shape} for {len(tokens)} prompts; "
                    "it needs one value for each."
                )
            found[variable.name] = value
        return found

    def answer(self, tokens: Int[Tensor, "batch pos"], replaced: Values | None = None) -> Int[Tensor, " batch"]:
        """The token that the program answers, with some variables replaced."""
        found = self.output(tokens, self.values(tokens, replaced))
        if found.shape != (len(tokens),) or found.is_floating_point() or found.dtype == torch.bool:
            raise UserError(
                f"The program {self.name} answers with {found.dtype} of shape {list(found.shape)} for {len(tokens)} "
                "prompts; it must be one token for each."
            )
        wrong = [token for token in found.unique().tolist() if self.answers and token not in self.answers]
        if wrong:
            raise UserError(f"The program {self.name} answers with token {wrong[0]}, which is not among its answers.")
        return found.long()

    def exchanged(
        self, base: Int[Tensor, "batch pos"], source: Int[Tensor, "batch pos"], name: str
    ) -> Int[Tensor, " batch"]:
        """The answers on `base` once the variable has the value that it has on `source`."""
        return self.answer(base, {name: self.values(source)[name]})

    def checked(self, config: TransformerConfig, length: int) -> Program:
        """With every place checked, and `answer_position` from the start."""
        if not -length <= self.answer_position < length:
            raise UserError(
                f"The program reads the answer at position {self.answer_position}; the prompts have 0–{length - 1}."
            )
        for token in self.answers:
            if not 0 <= token < config.outputs:
                raise UserError(f"The answer {token} has no logit; this network has them for 0–{config.outputs - 1}.")
        variables = tuple(
            replace(v, places=tuple(spot.checked(config, length) for spot in v.places)) for v in self.variables
        )
        return replace(self, variables=variables, answer_position=self.answer_position % length)


def similar_spots(
    config: TransformerConfig, length: int, places: Sequence[Spot], generator: torch.Generator
) -> tuple[Spot, ...]:
    """Random places of the same kind and size: the same part of any layer, as many heads, as many positions.

    Each is drawn for itself; sites before the blocks stay where they are, with other positions.
    """
    found = []
    for spot in places:
        site = sites(config)[spot.site]
        layer = layer_of(spot.site)
        name = spot.site
        if layer is not None:
            drawn = int(torch.randint(config.n_layers, (1,), generator=generator))
            name = spot.site.replace(f"blocks.{layer}.", f"blocks.{drawn}.", 1)
        heads = spot.heads
        if heads is not None:
            count = config.kv_heads if "kv_head" in site.axes else config.n_heads
            heads = _some(count, len(heads), generator)
        positions = None if spot.positions is None else _some(length, len(spot.positions), generator)
        found.append(Spot(name, heads, positions))
    return tuple(found)


def alternatives(config: TransformerConfig, length: int, places: Sequence[Spot]) -> float:
    """How many places `similar_spots` can draw, these included."""
    total = 1.0
    for spot in places:
        axes = sites(config)[spot.site].axes
        total *= config.n_layers if layer_of(spot.site) is not None else 1
        if spot.heads is not None:
            total *= math.comb(config.kv_heads if "kv_head" in axes else config.n_heads, len(spot.heads))
        if spot.positions is not None:
            total *= math.comb(length, len(spot.positions))
    return total


def _some(count: int, n: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(sorted(torch.randperm(count, generator=generator)[:n].tolist()))
